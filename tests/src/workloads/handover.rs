//! Programs that leave a listener to another one: to the one that they become, with its connections, as servers do that start
//! their new version in place; or to a child, as service managers do. And one that moves its listener.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use serde_json::json;

use super::gate;

/// Connections to itself of each of the two programs.
const EACH: [usize; 2] = [5, 20];

/// Both ends of so many connections.
fn connect(listener: &TcpListener, count: usize) -> Result<Vec<OwnedFd>> {
    let address = listener.local_addr()?;
    let mut ends = Vec::with_capacity(2 * count);
    for _ in 0..count {
        ends.push(TcpStream::connect(address)?.into());
        ends.push(listener.accept()?.0.into());
    }
    Ok(ends)
}

fn inherited(fd: &(impl AsFd + AsRawFd)) -> Result<String> {
    fcntl_setfd(fd, FdFlags::empty())?;
    Ok(fd.as_raw_fd().to_string())
}

/// The first program.
pub fn hand_over() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    gate::step("ready", &json!({}))?;
    let held = connect(&listener, EACH[0])?;
    gate::step("connected", &json!({ "open": EACH[0] }))?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("take-over").arg(inherited(&listener)?);
    for fd in &held {
        command.arg(inherited(fd)?);
    }
    Err(command.exec()).context("becoming the other program")
}

/// Its listener gets a higher descriptor than the connections that it has accepted.
pub fn move_listener(v6: bool) -> Result<()> {
    let listener = TcpListener::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" })?;
    let held = connect(&listener, EACH[0])?;
    let moved = fcntl_dupfd_cloexec(&listener, 500)?;
    drop(listener);
    gate::step("ready", &json!({ "open": EACH[0] }))?;
    drop(held);
    gate::step("closed", &json!({}))?;
    drop(moved);
    gate::truth(&json!({}))
}

/// A service manager: it listens, keeps the socket and never accepts. `service` does.
pub fn launch(service: &str) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    gate::step("ready", &json!({}))?;
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["take-over", &inherited(&listener)?])
        .env("OTEL_SERVICE_NAME", service)
        .spawn()?;
    ensure!(child.wait()?.success(), "{service} failed");
    Ok(())
}

/// The second one, which has the descriptors of the first.
pub fn take_over(listener: i32, held: &[i32]) -> Result<()> {
    // SAFETY: the first program left these open for this one, and nothing else in it knows them.
    let (listener, mut held): (TcpListener, Vec<OwnedFd>) = unsafe {
        let held = held.iter().map(|fd| OwnedFd::from_raw_fd(*fd));
        (OwnedFd::from_raw_fd(listener).into(), held.collect())
    };
    gate::step("taken", &json!({ "open": held.len() / 2 }))?;
    held.extend(connect(&listener, EACH[1])?);
    gate::step("more", &json!({ "open": held.len() / 2 }))?;
    drop(held);
    gate::step("closed", &json!({}))?;
    gate::truth(&json!({}))
}
