//! `tieback agent`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::AgentArgs;
use super::running::Running;
use crate::config::Config;
use crate::export::{router, serve};
use crate::pipeline;

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
    let (running, end) = Running::start(config, None)?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let routes = router(running.sources.clone());
    let until = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = end => {}
        }
    };
    serve(listener, routes, until).await?;
    running.stop()?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
