//! `/metrics`.

mod connections;
mod family;
mod own;
mod service;
#[cfg(test)]
mod tests;
mod unwind;
mod writer;

pub(super) use self::connections::{peer_name, pool_peer_name};
use crate::aggregate::Snapshot;
use crate::load::status::ProbeStatus;
use crate::telemetry::Telemetry;

/// The content type of what [`render`] writes.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the server knows of scrapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrapes {
    /// Answered ones.
    pub count: u64,
    /// Nanoseconds that the last one took to render.
    pub last_ns: u64,
}

/// Everything in Prometheus' text format. `now_unix_ns` is only for the age of the window.
#[must_use]
pub fn render(
    snapshot: &Snapshot,
    telemetry: &Telemetry,
    probes: &[ProbeStatus],
    scrapes: Scrapes,
    now_unix_ns: u64,
) -> String {
    let mut out = writer::Writer::new(16 * 1024 + snapshot.series * 200);
    service::write(&mut out, snapshot);
    own::write(&mut out, snapshot, telemetry, probes, scrapes, now_unix_ns);
    out.finish()
}
