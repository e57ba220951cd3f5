//! From the kernel side's keys and histograms to the model's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::wire::{ConnKey, Hist};

use super::model::{Direction, Histogram, Peer};

pub(super) fn histogram(hist: &Hist) -> Histogram {
    Histogram {
        buckets: hist.buckets,
        sum_ns: hist.sum_ns,
    }
}

/// Direction and peer of a connection's key.
pub(super) fn peer(key: &ConnKey) -> Option<(Direction, Peer)> {
    let direction = Direction::from_index(u32::from(key.direction))?;
    let address = match key.family {
        4 => IpAddr::V4(Ipv4Addr::new(key.addr[0], key.addr[1], key.addr[2], key.addr[3])),
        6 => IpAddr::V6(Ipv6Addr::from(key.addr)),
        _ => return Some((direction, Peer::Other)),
    };
    Some(match direction {
        Direction::Out => (direction, Peer::Server(address, key.port)),
        Direction::In => (direction, Peer::Client(address)),
    })
}
