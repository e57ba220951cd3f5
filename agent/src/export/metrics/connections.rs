//! The metrics of connections and pools.

use std::borrow::Cow;
use std::net::SocketAddr;

use super::service::{OTHER, Series};
use super::writer::Value;
use crate::aggregate::{ConnFailure, Metric, Peer, PoolPeer, ServiceSnapshot};

pub(super) fn connections(out: &mut Series<'_>, metric: Metric, service: &ServiceSnapshot) {
    match metric {
        Metric::ConnectionFailures => {
            for why in ConnFailure::ALL {
                for (peer, count) in service.by_peer(|conn| conn.failures[why.index()]) {
                    let more = [("peer", &*peer_name(peer)), ("reason", why.as_str())];
                    out.add(&more, Value::Int(count));
                }
            }
        }
        Metric::ConnectionsEnded => {
            for (direction, peer, how, count) in service.ended() {
                let more = [
                    ("direction", direction.as_str()),
                    ("peer", &*peer_name(peer)),
                    ("how", how.as_str()),
                ];
                out.add(&more, Value::Int(count));
            }
        }
        Metric::Retransmits => {
            for (peer, count) in service.by_peer(|conn| conn.retransmits) {
                out.add(&[("peer", &*peer_name(peer))], Value::Int(count));
            }
        }
        Metric::ConnectDuration | Metric::ConnectionAge => {
            let connect = metric == Metric::ConnectDuration;
            let histograms = service.conn_histograms(if connect { |c| &c.connect } else { |c| &c.age });
            for (direction, peer, histogram) in histograms {
                let more = [("direction", direction.as_str()), ("peer", &*peer_name(peer))];
                out.histogram(metric, &more, histogram);
            }
        }
        _ => {
            for (&(direction, peer), conn) in &service.totals.conns {
                let peer = peer_name(peer);
                let [direction, peer] = [("direction", direction.as_str()), ("peer", &*peer)];
                match metric {
                    Metric::Connections => out.add(&[direction, peer], Value::Int(conn.open)),
                    Metric::ConnectionsOpened => out.add(&[direction, peer], Value::Int(conn.opened)),
                    Metric::ConnectionsClosed => out.add(&[direction, peer], Value::Int(conn.closed)),
                    _ => {
                        out.add(&[direction, peer, ("way", "sent")], Value::Int(conn.sent_bytes));
                        out.add(
                            &[direction, peer, ("way", "received")],
                            Value::Int(conn.received_bytes),
                        );
                    }
                }
            }
        }
    }
}

pub(in crate::export) fn peer_name(peer: Peer) -> Cow<'static, str> {
    match peer {
        Peer::Server(address, port) => SocketAddr::new(address, port).to_string().into(),
        Peer::Client(address) => address.to_string().into(),
        Peer::Unix => "unix".into(),
        Peer::Other => OTHER.into(),
    }
}

/// The metrics of pools.
pub(super) fn pools(out: &mut Series<'_>, metric: Metric, service: &ServiceSnapshot) {
    for ((direction, whom), pool) in &service.totals.pools {
        let peer = pool_peer_name(whom);
        let [direction, peer] = [("direction", direction.as_str()), ("peer", &*peer)];
        let (first, second) = match metric {
            Metric::PoolConnections => (
                ("busy", Value::Int(pool.busy)),
                ("idle", Value::Int(pool.open.saturating_sub(pool.busy))),
            ),
            Metric::PoolPeak => (
                ("open", Value::Int(pool.open_peak)),
                ("busy", Value::Int(pool.busy_peak)),
            ),
            Metric::PoolSeconds => (
                ("busy", Value::Sum(pool.busy_ns)),
                ("idle", Value::Sum(pool.open_ns.saturating_sub(pool.busy_ns))),
            ),
            Metric::PoolMeanAge | Metric::PoolOldestAge => {
                if let Some(mean) = pool.mean_age_ns() {
                    let oldest = metric == Metric::PoolOldestAge;
                    let age = if oldest { pool.oldest_ns } else { mean };
                    out.add(&[direction, peer], Value::Nanos(age));
                }
                continue;
            }
            _ => {
                if whom.counted_only() && metric != Metric::PoolOpened {
                    continue;
                }
                let count = match metric {
                    Metric::PoolExchanges => pool.exchanges,
                    Metric::PoolOpened => pool.opened,
                    _ => pool.once,
                };
                out.add(&[direction, peer], Value::Int(count));
                continue;
            }
        };
        if whom.counted_only() {
            let value = match metric {
                Metric::PoolConnections => Value::Int(pool.open),
                Metric::PoolPeak => Value::Int(pool.open_peak),
                _ => Value::Sum(pool.open_ns),
            };
            out.add(&[direction, peer, ("state", "open")], value);
            continue;
        }
        for (state, value) in [first, second] {
            out.add(&[direction, peer, ("state", state)], value);
        }
    }
}

/// The metrics of listening sockets.
pub(super) fn listeners(out: &mut Series<'_>, metric: Metric, service: &ServiceSnapshot) {
    for (at, listener) in &service.totals.listeners {
        let value = match metric {
            Metric::ListenQueue => Value::Int(listener.queued),
            Metric::ListenLimit => Value::Int(listener.limit),
            Metric::ListenSeconds => Value::Nanos(listener.queue_ns),
            Metric::ListenAccepted => Value::Int(listener.accepted),
            _ => Value::Int(listener.dropped),
        };
        out.add(&[("listener", &*peer_name(*at))], value);
    }
}

/// What a pool's other end is called.
pub(in crate::export) fn pool_peer_name(peer: &PoolPeer) -> Cow<'_, str> {
    match peer {
        PoolPeer::Service(name) | PoolPeer::Unix(name) => Cow::Borrowed(name),
        PoolPeer::Address(peer) | PoolPeer::Slot(_, peer) => peer_name(*peer),
    }
}
