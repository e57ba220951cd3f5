//! The agent under measurement, switched on and off by its kill switch.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// A running agent; killed when dropped.
pub(super) struct Agent {
    child: Child,
    port: u16,
    switch: PathBuf,
}

impl Agent {
    /// Starts it with the defaults that users have, but for address and kill switch.
    pub(super) fn start(program: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let switch = std::env::temp_dir().join(format!("tieback-bench-off-{}", std::process::id()));
        let child = Command::new(program)
            .args(["agent", "--listen", &format!("127.0.0.1:{port}"), "--kill-switch"])
            .arg(&switch)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the agent")?;
        let agent = Self { child, port, switch };
        let deadline = Instant::now() + Duration::from_secs(30);
        while agent.get("/readyz").is_err() {
            ensure!(Instant::now() < deadline, "the agent is not ready after 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(agent)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(
            text.starts_with("HTTP/1.0 200") || text.starts_with("HTTP/1.1 200"),
            "{path} failed"
        );
        Ok(text)
    }

    /// Sum of a metric over its labels.
    pub(super) fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let values = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        Ok(values
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Descriptors of the agent that are BPF links: none while it is switched off.
    fn links(&self) -> Result<usize> {
        let entries = std::fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))?;
        Ok(entries
            .filter_map(Result::ok)
            .filter(|entry| {
                std::fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("link_type:"))
            })
            .count())
    }

    /// Attaches or detaches everything and waits until that is done.
    pub(super) fn switch(&self, on: bool) -> Result<()> {
        if on && self.switch.exists() {
            std::fs::remove_file(&self.switch)?;
        } else if !on {
            std::fs::write(&self.switch, "")?;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while (self.links()? > 3) != on {
            ensure!(Instant::now() < deadline, "the kill switch had no effect");
            std::thread::sleep(Duration::from_millis(10));
        }
        // What attaching costs by itself (patching of code, the first visit of all threads) is not what is measured.
        std::thread::sleep(Duration::from_millis(150));
        Ok(())
    }

    /// CPU time so far and resident memory, from /proc.
    pub(super) fn usage(&self) -> Result<(Duration, u64)> {
        let pid = self.child.id();
        let mut ns = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            ns += text
                .split_whitespace()
                .next()
                .context("schedstat")?
                .parse::<u64>()?;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("VmRSS")?;
        let kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
        Ok((Duration::from_nanos(ns), kib * 1024))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Fails only where it has already ended, or where the switch is off.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        let _removed = std::fs::remove_file(&self.switch);
    }
}
