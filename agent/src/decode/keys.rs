//! From the kernel side's keys and histograms to the model's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::wire::{ConnKey, Hist};

use super::model::{Direction, Histogram, Peer};

pub(super) fn histogram(hist: &Hist) -> Histogram {
    Histogram::new(hist.buckets, hist.sum_ns)
}

/// The address of a family, 4 or 6.
pub(super) fn address(family: u8, bytes: &[u8; 16]) -> Option<IpAddr> {
    match family {
        4 => Some(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()),
        6 => Some(Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

/// Direction and peer of a connection's key.
pub(super) fn peer(key: &ConnKey) -> Option<(Direction, Peer)> {
    let direction = Direction::from_index(u32::from(key.direction))?;
    let Some(address) = address(key.family, &key.addr) else {
        return Some((direction, Peer::Other));
    };
    Some(match direction {
        Direction::Out => (direction, Peer::Server(address, key.port)),
        Direction::In => (direction, Peer::Client(address)),
    })
}
