//! `tieback record`.

mod held;
mod progress;
mod target;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::oneshot;

use self::held::Held;
use self::progress::Progress;
use self::target::Target;
use super::RecordArgs;
use super::running::Running;
use crate::config::{AllocMode, Config, Watched};
use crate::export::Sources;
use crate::export::record::{FileFormat, Recorded};
use crate::pipeline::{self, Recording};

/// How a shell says that there is no such command, and that it cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

pub(super) fn run(arguments: &RecordArgs) -> Result<ExitCode> {
    let format = FileFormat::of(&arguments.output).map_err(anyhow::Error::msg)?;
    let directory = arguments
        .output
        .parent()
        .filter(|path| !path.as_os_str().is_empty());
    if !directory.unwrap_or(Path::new(".")).is_dir() {
        bail!("no directory for {}", arguments.output.display());
    }
    let probes: Vec<&str> = agent_ebpf::probes::ALL.iter().map(|probe| probe.name).collect();
    let mut config = Config::load(arguments.flags(), &probes)?;
    pipeline::keep_little_freed_memory();
    // Before there are threads that it would be a copy of.
    let held = match arguments.command.as_slice() {
        [] => None,
        command => Some(Held::start(command)?),
    };
    let target = Target::new(arguments, held.as_ref().map(|held| held.pid))?;
    config.alloc = Watched(
        arguments
            .alloc
            .map(|mode| (target.watched(), mode))
            .into_iter()
            .collect(),
    );
    // Somebody asked for it and waits; how much it was slowed is told at the end.
    config.alloc_slowdown = f64::INFINITY;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(record(arguments, format, config, target, held))
}

async fn record(
    arguments: &RecordArgs,
    format: FileFormat,
    config: Config,
    target: Target,
    held: Option<Held>,
) -> Result<ExitCode> {
    let mut stops = Stops::new()?;
    let (tell, ready) = oneshot::channel();
    let recording = Recording {
        only: target.only.clone(),
        ready: tell,
    };
    let (running, mut end) = Running::start(config, Some(recording))?;
    if ready.await.is_err() {
        running.stop()?;
        bail!("the recording ended before it began");
    }
    let began = Instant::now();
    let progress = Progress::start(&target.title, arguments.duration, held.is_some());
    let mut child = match held.map(Held::release).transpose()? {
        Some(Err(error)) => {
            let code = match error.kind() {
                std::io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_RUN,
            };
            let program = arguments
                .command
                .first()
                .map_or("".into(), |name| name.to_string_lossy());
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "no such command",
                std::io::ErrorKind::PermissionDenied => "it is not executable",
                _ => "it cannot be run",
            };
            eprintln!("tieback: {program}: {why} ({error}); nothing was recorded");
            running.stop()?;
            return Ok(ExitCode::from(code));
        }
        Some(Ok(child)) => Some(child),
        None => None,
    };
    let why = tokio::select! {
        why = stops.wait(child.as_ref()) => why,
        ended = target.ended() => { ended?; Why::Ended }
        () = after(arguments.duration) => Why::Time,
        () = target.absent(&running.sources) => Why::Absent,
        _ = &mut end => Why::Failed,
    };
    let length = began.elapsed();
    let sources = running.sources.clone();
    progress.finishing();
    // A thread of its own: signals go on being passed to the command.
    let mut stopped = tokio::task::spawn_blocking(move || running.stop());
    let in_time = tokio::time::timeout(Duration::from_secs(1), &mut stopped).await;
    match in_time {
        Ok(result) => result??,
        Err(_) => {
            eprintln!("tieback: recorded; functions are still being named");
            stopped.await??;
        }
    }
    write(arguments, format, &target, &sources, length)?;
    let Some(child) = &mut child else {
        return Ok(ExitCode::SUCCESS);
    };
    if why == Why::Time {
        tokio::select! {
            why = stops.wait(Some(child)) => return Ok(why.code()),
            ended = target.ended() => ended?,
        }
    } else if why != Why::Ended {
        return Ok(why.code());
    }
    Ok(code(child.wait().context("wait for the command")?))
}

/// What ended the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Ended,
    Time,
    Failed,
    /// No process of the service was there.
    Absent,
    Stopped(Signal),
}

impl Why {
    fn code(self) -> ExitCode {
        match self {
            Self::Stopped(signal) => ExitCode::from(128_u8.saturating_add(signal.as_raw() as u8)),
            Self::Failed | Self::Absent => ExitCode::FAILURE,
            Self::Ended | Self::Time => ExitCode::SUCCESS,
        }
    }
}

/// The command's end as a shell says it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Signals that ask for the end.
struct Stops {
    interrupt: Signals,
    terminate: Signals,
    passed: bool,
}

impl Stops {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            passed: false,
        })
    }

    /// Until the recording is to end. The first signal is the command's.
    async fn wait(&mut self, child: Option<&Child>) -> Why {
        loop {
            let signal = tokio::select! {
                _ = self.interrupt.recv() => Signal::INT,
                _ = self.terminate.recv() => Signal::TERM,
            };
            match child {
                Some(child) if !std::mem::replace(&mut self.passed, true) => {
                    if signal != Signal::INT || !by_terminal() {
                        // It may have ended just now.
                        let _ = rustix::process::kill_process(Pid::from_child(child), signal);
                    }
                }
                _ => return Why::Stopped(signal),
            }
        }
    }
}

/// Whether the terminal's interrupt went to the command, too: both are in its foreground.
fn by_terminal() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

fn write(
    arguments: &RecordArgs,
    format: FileFormat,
    target: &Target,
    sources: &Sources,
    length: Duration,
) -> Result<()> {
    let (snapshot, telemetry) = (
        Arc::clone(&sources.snapshot.borrow()),
        Arc::clone(&sources.telemetry.borrow()),
    );
    let probes = Arc::clone(&sources.probes.borrow());
    let recorded = Recorded {
        title: &target.title,
        namespace: &target.only.namespace,
        name: &target.only.name,
        alloc: arguments.alloc.map(AllocMode::as_str),
        snapshot: &snapshot,
        telemetry: &telemetry,
        probes: &probes,
    };
    if !recorded.seen() {
        bail!(target.nothing(&snapshot));
    }
    let path = &arguments.output;
    std::fs::write(path, recorded.file(format, arguments.signal)?)
        .with_context(|| format!("write {}", path.display()))?;
    eprint!(
        "\ntieback: {} for {:.3} s, in {}\n{}",
        target.title,
        length.as_secs_f64(),
        path.display(),
        recorded.summary()
    );
    Ok(())
}
