//! `tieback agent`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;

use crate::aggregate::Limits;
use crate::export::{Board, router};
use crate::governor::SyscallMode;
use crate::host::Host;
use crate::pipeline::{self, Settings};

#[derive(Args, Debug)]
pub(super) struct AgentArguments {
    /// Address to serve on; anything but loopback shows function names and peers to the network.
    #[arg(long, default_value = "127.0.0.1:9909", env = "TIEBACK_LISTEN", value_name = "ADDR")]
    listen: SocketAddr,
    /// How often everything is summed up and published.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, env = "TIEBACK_INTERVAL")]
    interval: Duration,
    /// How system calls are counted: `exact` costs every system call of the host about 100 ns.
    #[arg(long, value_enum, default_value = "auto", env = "TIEBACK_SYSCALL_MODE")]
    syscall_mode: SyscallMode,
    /// CPU samples a second and CPU.
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(u32).range(1..=999), value_name = "HZ")]
    sample_cpu_hz: u32,
    /// Age from which a process that only its program's name identifies is a service of its own.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    min_age: Duration,
    /// While this file exists, everything is detached.
    #[arg(long, default_value = "/run/tieback/disable", value_name = "PATH")]
    kill_switch: PathBuf,
    /// Share of the host's CPUs that the hooks and the agent may cost together, in percent.
    #[arg(long, default_value_t = 1.0, value_name = "PERCENT")]
    cpu_limit: f64,
    /// Code series per service and signal.
    #[arg(long, default_value_t = 20)]
    top: usize,
    /// Services at most; what comes later is `(other)`.
    #[arg(long, default_value_t = 1000)]
    services_limit: usize,
    /// Series of all services together.
    #[arg(long, default_value_t = 50_000)]
    series_limit: usize,
    /// How far back profiles reach.
    #[arg(long, default_value = "15m", value_parser = humantime::parse_duration)]
    retention: Duration,
    /// A probe to leave off; may be repeated.
    #[arg(long, value_name = "PROBE")]
    disable: Vec<String>,
    /// Look up one kernel field under a wrong name, to see that only the probes that need it suffer.
    #[arg(long, hide = true, value_name = "FIELD", env = "TIEBACK_TEST_BOGUS_FIELD")]
    test_bogus_field: Option<String>,
}

impl AgentArguments {
    /// What `tieback agent` without arguments means.
    pub(super) fn defaults() -> Self {
        #[derive(clap::Parser)]
        struct Only {
            #[command(flatten)]
            arguments: AgentArguments,
        }
        <Only as clap::Parser>::parse_from(["tieback"]).arguments
    }

    /// Validated.
    pub(super) fn settings(&self) -> Result<Settings> {
        ensure!(
            (Duration::from_millis(200)..=Duration::from_secs(600)).contains(&self.interval),
            "--interval must be between 200ms and 10m"
        );
        ensure!(self.cpu_limit > 0.0 && self.cpu_limit <= 100.0, "--cpu-limit must be between 0 and 100 percent");
        let known: Vec<&str> = agent_ebpf::probes::ALL.iter().map(|probe| probe.name).collect();
        for name in &self.disable {
            if !known.contains(&name.as_str()) {
                let nearest = known
                    .iter()
                    .max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)))
                    .copied()
                    .unwrap_or_default();
                return Err(anyhow!(
                    "--disable {name}: no such probe; did you mean {nearest}? There are: {}",
                    known.join(", ")
                ));
            }
        }
        Ok(Settings {
            interval: self.interval,
            syscall_mode: self.syscall_mode,
            cpu_hz: self.sample_cpu_hz,
            min_age: self.min_age,
            kill_switch: self.kill_switch.clone(),
            limits: Limits {
                top: self.top,
                services: self.services_limit,
                series: self.series_limit,
                retention: self.retention,
                ..Limits::default()
            },
            disabled: self.disable.clone(),
            cpu_limit: self.cpu_limit / 100.0,
            bogus_field: self.test_bogus_field.clone(),
        })
    }
}

pub(super) fn run(arguments: &AgentArguments) -> Result<ExitCode> {
    let settings = arguments.settings()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(arguments.listen, settings))
}

async fn serve(listen: SocketAddr, settings: Settings) -> Result<ExitCode> {
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}; is another agent running? --listen ADDR chooses another"))?;
    let board = Board::default();
    let stop = Arc::new(AtomicBool::new(false));
    let threads = pipeline::start(Host::new("/"), settings, board.clone(), Arc::clone(&stop))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let until = {
        let stop = Arc::clone(&stop);
        let alive = threads.first().map(std::thread::JoinHandle::thread).cloned();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stop.store(true, Ordering::Relaxed);
            if let Some(thread) = alive {
                thread.unpark();
            }
        }
    };
    // A reading thread that fails ends the agent: serving old numbers as if they were new would be a lie.
    let (failed, failure) = tokio::sync::oneshot::channel();
    let watch = std::thread::spawn(move || {
        let mut result = Ok(());
        for thread in threads {
            if let Err(error) = thread.join().unwrap_or_else(|_| Err(anyhow!("a thread of the agent panicked"))) {
                result = Err(error);
            }
        }
        let _ = failed.send(());
        result
    });
    let server = axum::serve(listener, router(board));
    tokio::select! {
        result = server.into_future() => result?,
        () = until => {}
        _ = failure => {}
    }
    stop.store(true, Ordering::Relaxed);
    watch.join().map_err(|_| anyhow!("the watching thread panicked"))??;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
