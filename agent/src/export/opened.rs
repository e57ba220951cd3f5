//! Which code opened connections, and to whom.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::descriptors::place;
use crate::aggregate::{
    Direction, Owner, Peer, PoolPeer, ProfileQuery, ServiceSnapshot, Snapshot, StackDetail, StackKind,
    StackValue,
};

/// Functions that are listed for a peer.
const MOST: usize = 10;
/// The function of stacks without an owner.
const UNKNOWN: &str = "(unknown)";

/// Code that opened connections to a peer.
#[derive(Debug, Serialize)]
pub(super) struct OpenedBy {
    pub(super) function: String,
    pub(super) file: String,
    /// The line of most of them, 0 when unknown.
    pub(super) line: u32,
    /// How many; scaled to the number of all that the service opened.
    pub(super) opened: u64,
    /// Its share of what was opened to this peer.
    pub(super) share: f64,
    #[serde(skip)]
    place: String,
}

impl OpenedBy {
    /// The same for a sentence, if it opened at least half of them and is known.
    pub(super) fn worth_a_word(&self) -> Option<&str> {
        (self.share >= 0.5 && self.function != UNKNOWN).then_some(&*self.place)
    }
}

/// What windows have of the connections that a service opened.
pub(super) struct Openers {
    samples: Vec<StackValue>,
    /// To how many programs over Unix sockets: which of them a sample is of, it does not say.
    unix: usize,
}

impl Openers {
    pub(super) fn of(snapshot: &Snapshot, service: &ServiceSnapshot) -> Self {
        // All windows are gone through.
        let mut directions = service.recent_pools.keys().map(|(direction, _)| *direction);
        if directions.all(|direction| direction == Direction::In) {
            return Self {
                samples: Vec::new(),
                unix: 0,
            };
        }
        let profile = snapshot.profile(&ProfileQuery {
            namespace: &service.service.namespace,
            name: &service.service.name,
            version: Some(&service.service.version),
            kind: StackKind::Conn,
            since: Duration::MAX,
            idle: false,
        });
        let pools = service.recent_pools.iter();
        let unix = pools.filter(|((direction, peer), recent)| {
            *direction == Direction::Out && peer.counted_only() && recent.totals.opened > 0
        });
        Self {
            samples: profile.map_or_else(Vec::new, |profile| profile.samples),
            unix: unix.count(),
        }
    }

    /// The code that opened those to one peer, which may have several addresses; most first. Of an address that was several
    /// services' it is the code that opened connections to any of them.
    pub(super) fn to(&self, peer: &PoolPeer, addresses: &BTreeSet<Peer>) -> Vec<OpenedBy> {
        let wanted = |to: Peer| match peer {
            peer if peer.counted_only() => to == Peer::Unix && self.unix == 1,
            PoolPeer::Address(address) => to == *address,
            _ => addresses.contains(&to),
        };
        let mut owners: BTreeMap<&Owner, BTreeMap<u32, u64>> = BTreeMap::new();
        let mut all = 0;
        for sample in &self.samples {
            if let StackDetail::Opened(to) = sample.detail
                && wanted(to)
            {
                let lines = owners.entry(&sample.stack.owner).or_default();
                *lines.entry(sample.stack.owner_line()).or_default() += sample.value;
                all += sample.value;
            }
        }
        let code = |(owner, lines): (&Owner, BTreeMap<u32, u64>)| {
            let opened = lines.values().sum();
            let line = lines.into_iter().max_by_key(|(_, count)| *count);
            let line = line.map_or(0, |(line, _)| line);
            OpenedBy {
                function: owner.function.to_string(),
                file: owner.file.to_string(),
                line,
                opened,
                share: opened as f64 / (all as f64).max(1.0),
                place: place(owner, line),
            }
        };
        let mut code: Vec<OpenedBy> = owners.into_iter().map(code).collect();
        code.sort_by_key(|code| Reverse(code.opened));
        code.truncate(MOST);
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture::stack_at;

    #[test]
    fn code_is_told_by_the_peer_that_it_connects_to() {
        let at = |port| Peer::Server("10.0.0.7".parse().unwrap(), port);
        let sample = |function: &str, peer, value| StackValue {
            detail: StackDetail::Opened(peer),
            stack: stack_at(function, 41),
            value,
        };
        let mut openers = Openers {
            samples: vec![
                sample("cache::get", at(6379), 30),
                sample("db::query", at(5432), 5),
                sample("db::query", at(5433), 20),
                sample("db::ping", at(5433), 5),
                sample("log::open", Peer::Unix, 7),
            ],
            unix: 1,
        };
        let told = |openers: &Openers, peer: &PoolPeer, addresses: &[Peer]| -> Vec<(String, u64, f64)> {
            let code = openers.to(peer, &addresses.iter().copied().collect());
            let code = code.into_iter().map(|code| (code.place, code.opened, code.share));
            code.collect()
        };
        let of = |place: &str, opened, share| (place.to_owned(), opened, share);
        let database = PoolPeer::Service("prod/postgres".into());
        assert_eq!(
            told(&openers, &database, &[at(5432), at(5433)]),
            [
                of("`db::query` (shop.rs:41)", 25, 25.0 / 30.0),
                of("`db::ping` (shop.rs:41)", 5, 5.0 / 30.0)
            ]
        );
        let redis = PoolPeer::Address(at(6379));
        assert_eq!(
            told(&openers, &redis, &[]),
            [of("`cache::get` (shop.rs:41)", 30, 1.0)]
        );
        assert_eq!(told(&openers, &PoolPeer::Address(at(80)), &[]), []);
        let logs = PoolPeer::Unix("unix:logs".into());
        assert_eq!(
            told(&openers, &logs, &[]),
            [of("`log::open` (shop.rs:41)", 7, 1.0)]
        );
        // Two are not told apart.
        openers.unix = 2;
        assert_eq!(told(&openers, &logs, &[]), []);
    }
}
