//! The listening side of `/api/v1/pools`.

use serde::Serialize;

use super::metrics::peer_name;
use super::pools::duration;
use crate::aggregate::{ServiceSnapshot, Snapshot};

/// Mean time in an accept queue from which on it is worth a word.
const LONG_WAIT: f64 = 0.1;

/// An address that a service listens on. Counts are since the agent knows it.
#[derive(Debug, Serialize)]
pub(super) struct Listener<'a> {
    service: &'a str,
    namespace: &'a str,
    version: &'a str,
    listener: String,
    sockets: u64,
    /// Connections that waited to be accepted at the last sample, and how many may.
    queued: u64,
    limit: u64,
    accepted: u64,
    /// Segments that did not become a connection; a client sends several.
    dropped: u64,
    /// Mean time from established to accepted; an estimate from samples.
    mean_wait_seconds: Option<f64>,
    /// Of the last window.
    findings: Vec<String>,
}

/// Every address that somebody listens on.
pub(super) fn listeners(snapshot: &Snapshot) -> Vec<Listener<'_>> {
    snapshot.services.iter().flat_map(of_service).collect()
}

fn mean(sum_ns: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum_ns as f64 / 1e9 / count as f64)
}

fn of_service(service: &ServiceSnapshot) -> impl Iterator<Item = Listener<'_>> {
    let listening = service.totals.listeners.iter();
    listening
        .filter(|(_, totals)| totals.sockets > 0)
        .map(|(at, totals)| {
            let listener = peer_name(*at).into_owned();
            let mut findings = Vec::new();
            if let Some(last) = service.last.listeners.get(at) {
                if last.dropped > 0 {
                    findings.push(format!(
                        "drops connections to {listener}: {} in the last window; at most {} wait to be accepted",
                        last.dropped, totals.limit
                    ));
                }
                if let Some(wait) = mean(last.queue_ns, last.accepted).filter(|wait| *wait >= LONG_WAIT) {
                    findings.push(format!(
                        "connections to {listener} wait {} on average to be accepted",
                        duration(wait)
                    ));
                } else if last.accepted == 0 && last.queued > 0 {
                    findings.push(format!(
                        "accepted none of {} connections to {listener} in the last window",
                        last.queued
                    ));
                }
            }
            Listener {
                service: &service.service.name,
                namespace: &service.service.namespace,
                version: &service.service.version,
                listener,
                sockets: totals.sockets,
                queued: totals.queued,
                limit: totals.limit,
                accepted: totals.accepted,
                dropped: totals.dropped,
                mean_wait_seconds: mean(totals.queue_ns, totals.accepted),
                findings,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;

    #[test]
    fn a_full_and_slow_accept_queue_is_a_finding() {
        let snapshot = fixture::snapshot();
        let [listener] = &listeners(&snapshot)[..] else {
            panic!("one listener")
        };
        assert_eq!((listener.mean_wait_seconds, listener.dropped), (Some(0.25), 6));
        assert_eq!(
            listener.findings,
            [
                "drops connections to 0.0.0.0:80: 3 in the last window; at most 128 wait to be accepted",
                "connections to 0.0.0.0:80 wait 250 ms on average to be accepted"
            ]
        );
    }
}
