//! Processes that the benchmark starts and ends, and the CPU time of any process.

use crate::command;
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A process that ends when this is dropped: by its own signal, else by SIGKILL.
pub(crate) struct Process {
    child: Child,
    signal: rustix::process::Signal,
}

impl Process {
    /// Starts a command without input. Its output is dropped, its errors go to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let errors = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {}", command::line(command)))?;
        Ok(Self {
            child,
            signal: rustix::process::Signal::TERM,
        })
    }

    /// The signal that asks it to end, where SIGTERM is not the right one.
    pub(crate) fn ended_by(mut self, signal: rustix::process::Signal) -> Self {
        self.signal = signal;
        self
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails once it has ended: nothing that the benchmark starts ends by itself.
    pub(crate) fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("process {} has ended: {status}", self.pid()),
            None => Ok(()),
        }
    }

    /// It and its children, in the order of their start.
    pub(crate) fn family(&self) -> Result<Vec<u32>> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let mut pids = vec![self.pid()];
        pids.extend(
            children
                .split_ascii_whitespace()
                .filter_map(|pid| pid.parse::<u32>().ok()),
        );
        Ok(pids)
    }

    /// Asks it to end.
    fn ask(&self) {
        // Fails only where the process has already ended.
        let _asked =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), self.signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ask();
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(POLL);
        }
        // Each fails only where the process has already ended.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Ends many at once: each is asked before the first is waited for.
pub(crate) fn end_all(processes: Vec<Process>) {
    for process in &processes {
        process.ask();
    }
    drop(processes);
}

/// The CPU of servers and loops, and that of their clients. The same on a host with one CPU.
pub(crate) fn cpus() -> (usize, usize) {
    let count = thread::available_parallelism().map_or(1, usize::from);
    (count.min(2) - 1, 0)
}

/// A command on one CPU, as a user when given, that ends with the benchmark even if that is killed.
pub(crate) fn pinned(program: &Path, cpu: usize, user: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command
        .args(["--pdeathsig", "TERM", "taskset", "--cpu-list", &cpu.to_string()])
        .arg(program);
    command
}

/// CPU time of a process, its ended threads and the slice that runs now included. `/proc/PID/schedstat` and
/// `/proc/PID/stat` lag by up to a scheduler tick, 1 % of a short slice.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut clock = 0;
    // SAFETY: the pointer is valid for writes.
    let failed = unsafe { libc::clock_getcpuclockid(i32::try_from(pid)?, &raw mut clock) };
    ensure!(failed == 0, "process {pid} has ended");
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid for writes.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(failed == 0, "process {pid} has ended");
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// A free port of loopback.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Polls until something is there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look().with_context(|| format!("wait for {what}"))? {
            return Ok(found);
        }
        ensure!(since.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(POLL);
    }
}

/// Waits until a port answers.
pub(crate) fn wait_for_port(process: &mut Process, port: u16) -> Result<()> {
    wait_for(&format!("port {port}"), || {
        process.alive()?;
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok())
    })
    .map(drop)
}

/// Gets a page by HTTP/1.0, which has neither chunks nor kept connections.
pub(crate) fn get(port: u16, path: &str) -> Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    ensure!(
        head.split_ascii_whitespace().nth(1) == Some("200"),
        "{path} answered {head}"
    );
    Ok(body.to_owned())
}
