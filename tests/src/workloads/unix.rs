//! Connections over a Unix socket, held by both ends or closed at once.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::gate;

/// Accepts connections on a socket of this name, in the file system or (`@NAME`) in the abstract namespace.
pub fn serve(path: &Path, count: usize) -> Result<()> {
    let listener = UnixListener::bind(path).context("binding")?;
    // A pair has no name and is no connection to anybody.
    let pair = UnixStream::pair()?;
    gate::step("ready", &json!({}))?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(listener.accept()?.0);
    }
    gate::step("accepted", &json!({ "accepted": held.len() }))?;
    drop((held, pair));
    gate::step("closed", &json!({}))?;
    gate::truth(&json!({}))
}

/// Connects and holds; then closes when told.
pub fn connect(path: &Path, count: usize) -> Result<()> {
    gate::step("ready", &json!({}))?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(UnixStream::connect(path).context("connecting")?);
    }
    gate::step("connected", &json!({ "open": held.len() }))?;
    drop(held);
    gate::step("closed", &json!({}))?;
    gate::truth(&json!({}))
}

/// Accepts so many connections, each of which it closes when the other end has.
pub fn serve_each(path: &Path, count: usize) -> Result<()> {
    let listener = UnixListener::bind(path).context("binding")?;
    gate::step("ready", &json!({}))?;
    for _ in 0..count {
        let mut connection = listener.accept()?.0;
        let request = connection.read_to_end(&mut Vec::new())?;
        anyhow::ensure!(request == 1, "a request of {request} bytes");
    }
    gate::step("served", &json!({ "accepted": count }))?;
    gate::truth(&json!({}))
}

/// Connects so many times, for a request each.
pub fn connect_each(path: &Path, count: usize) -> Result<()> {
    gate::step("ready", &json!({}))?;
    for _ in 0..count {
        UnixStream::connect(path).context("connecting")?.write_all(b"?")?;
    }
    gate::step("connected", &json!({ "opened": count }))?;
    gate::truth(&json!({}))
}
