//! Connections over a Unix socket, held by both ends.

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
