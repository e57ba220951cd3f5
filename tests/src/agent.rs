//! Starts `tieback agent` and reads what it serves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::in_emulator;
use crate::metrics::Scrape;
use crate::program::built;

/// Pause between two looks at a condition; no test depends on its length.
const POLL: Duration = Duration::from_millis(50);

/// How long something may take before it is taken not to happen. An emulator is 20 times slower: Linux 6.1 verifies for 40 s in it,
/// longer while others need the host.
fn deadline() -> Duration {
    Duration::from_secs(if in_emulator() { 240 } else { 60 })
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    address: SocketAddr,
}

impl Agent {
    /// Starts an agent with ticks of one second and waits until it is ready. Needs root.
    pub fn start(args: &[&str]) -> Result<Self> {
        Self::start_with(args, &[])
    }

    /// The same with environment variables.
    pub fn start_with(args: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "kernel tests need root; run them by `cargo xtask test kernel`"
        );
        Self::start_by(Command::new(built("TIEBACK_BIN", "tieback")?), args, environment)
    }

    /// The same by a command that becomes the agent: with fewer rights, for example.
    pub fn start_by(mut command: Command, args: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = command
            .args(["agent", "--interval", "1s", "--listen", &address.to_string()])
            .args(args)
            // Ticks of a second on a busy or emulated machine cost more than the default; detail must not be given up.
            .env("TIEBACK_CPU_LIMIT", "100%")
            .envs(environment.iter().copied())
            .spawn()
            .context("starting the agent")?;
        let mut agent = Self { child, address };
        let start = Instant::now();
        while agent.get("/readyz").is_err() {
            if let Some(status) = agent.child.try_wait()? {
                bail!("the agent ended before it was ready: {status}");
            }
            ensure!(start.elapsed() < deadline(), "the agent is not ready");
            std::thread::sleep(POLL);
        }
        Ok(agent)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The body of a path that answers 200, as text.
    pub fn get(&self, path: &str) -> Result<String> {
        String::from_utf8(self.get_bytes(path)?).with_context(|| format!("{path} is no text"))
    }

    /// The body of a path that answers 200.
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).context("connecting to the agent")?;
        stream.set_read_timeout(Some(deadline()))?;
        // HTTP/1.0 has neither chunks nor kept connections: the body ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address)?;
        let mut answer = Vec::new();
        stream
            .read_to_end(&mut answer)
            .with_context(|| format!("reading {path}"))?;
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let body = answer.split_off(end.context("no end of the header")? + 4);
        let head = String::from_utf8_lossy(&answer);
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        ensure!(
            status == "200",
            "{path} answered {status}: {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }

    /// One scrape of `/metrics`.
    pub fn scrape(&self) -> Result<Scrape> {
        Scrape::parse(&self.get("/metrics")?)
    }

    /// Scrapes until `done` holds and returns that scrape.
    pub fn wait_for(&self, what: &str, done: impl Fn(&Scrape) -> bool) -> Result<Scrape> {
        let start = Instant::now();
        loop {
            let scrape = self.scrape()?;
            if done(&scrape) {
                return Ok(scrape);
            }
            ensure!(start.elapsed() < deadline(), "never happened: {what}");
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the agent knows a service, so that what it does from then on has an owner.
    pub fn wait_for_service(&self, service: &str) -> Result<Scrape> {
        let labels = [("service_name", service)];
        self.wait_for(service, |scrape| scrape.sum("tieback_processes", &labels) >= 1.0)
    }

    /// A scrape in which everything that has happened until now is counted: of a window that ended two windows after
    /// now. (A count of windows would not do: on a slow machine their publishing lags behind their reading.)
    pub fn settled(&self) -> Result<Scrape> {
        let now = Instant::now();
        self.wait_for("a settled window", |scrape| {
            let age = scrape.sum("tieback_window_age_seconds", &[]);
            let length = scrape.sum("tieback_window_length_seconds", &[]);
            length > 0.0 && now.elapsed().as_secs_f64() - age > 2.0 * length
        })
    }

    /// Asks the agent to end (SIGTERM) and returns how it did.
    pub fn stop(self) -> Result<ExitStatus> {
        self.stop_by(Signal::TERM)
    }

    /// The same by another signal.
    pub fn stop_by(mut self, signal: Signal) -> Result<ExitStatus> {
        kill_process(Pid::from_child(&self.child), signal)?;
        self.child.wait().context("waiting for the agent")
    }
}

impl Agent {
    /// Kills the agent (SIGKILL): it has no time to clean up.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("killing the agent")?;
        self.child.wait().context("waiting for the agent").map(drop)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails only where the agent has already ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
