//! `tieback agent`.

use std::process::ExitCode;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::AgentArgs;
use crate::config::Config;
use crate::export::{Sources, router, serve};
use crate::host::Host;
use crate::pipeline::{self, Publish};

pub(super) fn run(arguments: AgentArgs) -> Result<ExitCode> {
    pipeline::keep_little_freed_memory();
    let probes: Vec<&str> = agent_ebpf::probes::ALL.iter().map(|probe| probe.name).collect();
    let config = Config::load(arguments.flags, &probes)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(start(config))
}

async fn start(config: Config) -> Result<ExitCode> {
    let listen = config.listen;
    let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; is another agent running? --listen ADDR chooses another")
    })?;
    let (snapshot, snapshots) = watch::channel(Arc::default());
    let (telemetry, telemetries) = watch::channel(Arc::default());
    let (probes, statuses) = watch::channel(Arc::default());
    let sources = Sources {
        snapshot: snapshots,
        telemetry: telemetries,
        probes: statuses,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let publish = Publish {
        snapshot,
        telemetry,
        probes,
    };
    let threads = pipeline::start(Host::new(&config.host_root), config, publish, Arc::clone(&stop))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    // A thread that fails ends the agent: old numbers served as if they were new would be a lie.
    let (ended, end) = oneshot::channel();
    let watch = std::thread::spawn(move || {
        let mut result = Ok(());
        for thread in threads {
            if let Err(error) = thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread of the agent panicked")))
            {
                result = Err(error);
            }
        }
        // Nobody listens any more when the server was stopped by a signal.
        let _ = ended.send(());
        result
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let until = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = end => {}
        }
    };
    serve(listener, router(sources), until).await?;
    stop.store(true, Ordering::Relaxed);
    watch
        .join()
        .map_err(|_| anyhow!("the watching thread panicked"))??;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
