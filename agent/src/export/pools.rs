//! `/api/v1/pools`: how services use their connections, and what a person would say of it.
//!
//! The shape only ever grows: fields may be added, none changes its meaning.

use serde::Serialize;

use super::listeners::{Listener, listeners};
use super::metrics::{peer_name, pool_peer_name};
use super::opened::{OpenedBy, Openers};
use crate::aggregate::{Direction, PoolPeer, PoolTotals, RecentPool, ServiceSnapshot, Snapshot};

/// Samples from which on something is said of a pool.
const ENOUGH_SAMPLES: u64 = 20;
/// Connections from which on holding too many is worth a word.
const MANY: u64 = 10;

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Pools<'a> {
    pools: Vec<Pool<'a>>,
    listeners: Vec<Listener<'a>>,
}

/// A pool: the connections of a service with one peer in one direction. Counts, peaks, shares and ages at the end are
/// those of the recent past; what is `null` was not seen often enough to say, or cannot be known (over Unix sockets).
#[derive(Debug, Serialize)]
struct Pool<'a> {
    service: &'a str,
    namespace: &'a str,
    version: &'a str,
    direction: &'static str,
    peer: String,
    /// Of a peer with a name, if connections are opened to it; 16 at most, and `opened_by` is of these.
    addresses: Vec<String>,
    /// The code that opened connections to it, as far back as stacks are kept; from samples. A peer that has been known by its address
    /// and by its name has the same code in both pools.
    opened_by: Vec<OpenedBy>,
    /// Length of the recent past.
    seconds: f64,
    /// Samples in it.
    samples: u64,
    /// Open at the last sample, and of these: busy; without data for a minute.
    open: u64,
    busy: Option<u64>,
    quiet: Option<u64>,
    /// Most that were open at once: how many were held.
    open_peak: u64,
    /// Most that a sample found busy at once: how many were needed.
    busy_peak: Option<u64>,
    /// Share of the connections' time during which they were busy.
    busy_share: Option<f64>,
    opened: u64,
    closed: u64,
    /// Of those closed: after at most one exchange.
    closed_after_one_exchange: Option<u64>,
    /// Estimated from data segments.
    exchanges: Option<u64>,
    /// The same for each connection that was open at some time.
    exchanges_per_connection: Option<f64>,
    /// Of the closed ones; from a histogram with a bound at each power of two.
    median_life_seconds: Option<f64>,
    /// Of the open ones, likewise; connections older than the agent count from its start.
    median_age_seconds: Option<f64>,
    /// As of the last sample, exactly; connections older than the agent count from its start.
    mean_age_seconds: Option<f64>,
    oldest_age_seconds: Option<f64>,
    /// The next bound of the histogram.
    oldest_age_seconds_at_most: Option<f64>,
    findings: Vec<String>,
}

/// The document for a snapshot.
pub(super) fn pools(snapshot: &Snapshot) -> Pools<'_> {
    let pools = snapshot.services.iter().flat_map(|service| {
        let openers = Openers::of(snapshot, service);
        let each = service.recent_pools.iter();
        each.map(move |((direction, peer), recent)| {
            let opened_by = match direction {
                Direction::Out => openers.to(peer, &recent.totals.addresses),
                Direction::In => Vec::new(),
            };
            let mut pool = one(service, *direction, peer, recent, opened_by);
            if peer.counted_only() {
                pool.forget_use(*direction);
            }
            pool
        })
    });
    Pools {
        pools: pools.collect(),
        listeners: listeners(snapshot),
    }
}

impl Pool<'_> {
    /// Over Unix sockets nothing is known but how many there are, and were.
    fn forget_use(&mut self, direction: Direction) {
        (self.busy, self.quiet, self.busy_peak, self.busy_share) = (None, None, None, None);
        (self.exchanges, self.exchanges_per_connection) = (None, None);
        self.closed_after_one_exchange = None;
        self.findings.clear();
        let rate = self.opened as f64 / self.seconds.max(1e-9);
        if direction == Direction::Out
            && rate >= 1.0
            && self.closed >= MANY
            && self.open_peak * 10 <= self.opened
        {
            let kept = if self.open_peak <= 1 { "none" } else { "few" };
            let mut text = format!(
                "opens connections to {} at {}/s and keeps {kept} of them",
                self.peer,
                digits(rate)
            );
            text += &from(&self.opened_by);
            self.findings.push(text);
        }
    }
}

fn one<'a>(
    service: &'a ServiceSnapshot,
    direction: Direction,
    peer: &PoolPeer,
    recent: &RecentPool,
    opened_by: Vec<OpenedBy>,
) -> Pool<'a> {
    let pool = &recent.totals;
    let peer = pool_peer_name(peer).into_owned();
    let seconds = recent.length_ns as f64 / 1e9;
    let existed = pool.opened.max(pool.open_peak);
    let mean_age = pool.mean_age_ns();
    Pool {
        service: &service.service.name,
        namespace: &service.service.namespace,
        version: &service.service.version,
        direction: direction.as_str(),
        seconds,
        samples: pool.samples,
        open: pool.open,
        busy: Some(pool.busy),
        quiet: Some(pool.quiet),
        open_peak: pool.open_peak,
        busy_peak: Some(pool.busy_peak),
        busy_share: share(pool.busy_ns, pool.open_ns),
        opened: pool.opened,
        closed: pool.closed,
        closed_after_one_exchange: Some(pool.once),
        exchanges: Some(pool.exchanges),
        exchanges_per_connection: share(pool.exchanges, existed),
        median_life_seconds: median_life(pool),
        median_age_seconds: age(pool, 0.5),
        mean_age_seconds: mean_age.map(|ns| ns as f64 / 1e9),
        oldest_age_seconds: mean_age.map(|_| pool.oldest_ns as f64 / 1e9),
        oldest_age_seconds_at_most: age(pool, 1.0).map(|bound| bound.max(pool.oldest_ns as f64 / 1e9)),
        findings: findings(direction, &peer, pool, seconds, &opened_by),
        addresses: pool
            .addresses
            .iter()
            .map(|at| peer_name(*at).into_owned())
            .collect(),
        opened_by,
        peer,
    }
}

fn share(part: impl Into<u128>, whole: impl Into<u128>) -> Option<f64> {
    let (part, whole) = (part.into(), whole.into());
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// Where the given share of the observations is reached, within a bucket by its share; bucket `i` reaches from half its
/// bound to its bound, which is `first * 2^i`.
fn quantile(buckets: &[u64], first: f64, at: f64) -> Option<f64> {
    let all: u64 = buckets.iter().sum();
    let wanted = all as f64 * at;
    let mut below = 0.0;
    for (i, &count) in buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
        let bound = first * 2f64.powi(i32::try_from(i).unwrap_or(0));
        if below + count as f64 >= wanted {
            return Some(bound / 2.0 * (1.0 + (wanted - below) / count as f64));
        }
        below += count as f64;
    }
    None
}

fn median_life(pool: &PoolTotals) -> Option<f64> {
    quantile(pool.age.buckets(), 1.024e-6, 0.5)
}

fn age(pool: &PoolTotals, at: f64) -> Option<f64> {
    quantile(&pool.ages, 1e-3, at)
}

/// What a person would say of a pool; only the side that opens connections can change anything.
fn findings(
    direction: Direction,
    peer: &str,
    pool: &PoolTotals,
    seconds: f64,
    opened_by: &[OpenedBy],
) -> Vec<String> {
    let mut said = Vec::new();
    if direction == Direction::In {
        return said;
    }
    let rate = pool.opened as f64 / seconds.max(1e-9);
    if rate >= 1.0 && pool.closed >= MANY && pool.once * 10 >= pool.closed * 9 {
        let mut text = format!("opens a connection per request to {peer}: {}/s", digits(rate));
        if let Some(life) = median_life(pool) {
            text += &format!(", median life {}", duration(life));
        }
        text += &from(opened_by);
        said.push(text);
    } else if rate >= 1.0 && pool.closed >= MANY && pool.exchanges <= pool.opened * 5 {
        said.push(format!(
            "opens a connection to {peer} for every {} requests: {}/s{}",
            digits(pool.exchanges as f64 / pool.opened as f64),
            digits(rate),
            from(opened_by)
        ));
    }
    if pool.samples < ENOUGH_SAMPLES || pool.open == 0 {
        return said;
    }
    let within = format!("in {} samples of {}", pool.samples, duration(seconds));
    if pool.open >= MANY && pool.busy_peak == 0 {
        said.push(format!(
            "holds {} connections to {peer} and used none of them {within}",
            pool.open
        ));
    } else if pool.open >= MANY && pool.busy_peak * 4 <= pool.open {
        said.push(format!(
            "holds {} connections to {peer}, never used more than {} at once {within}",
            pool.open, pool.busy_peak
        ));
    } else if pool.open >= 2
        && pool.closed * 10 <= pool.open
        && let Some(busy) = share(pool.busy_ns, pool.open_ns).filter(|busy| *busy >= 0.95)
    {
        said.push(format!(
            "all {} connections to {peer} are busy {:.0} % of the time",
            pool.open,
            busy * 100.0
        ));
    }
    said
}

/// The code that opened most of them, if that is worth a word.
fn from(opened_by: &[OpenedBy]) -> String {
    let place = opened_by.first().and_then(OpenedBy::worth_a_word);
    place.map_or_else(String::new, |place| format!(", from {place}"))
}

/// Three digits are enough to compare.
pub(super) fn digits(number: f64) -> String {
    match number {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s >= 120.0 => format!("{:.0} min", s / 60.0),
        s if s >= 1.0 => format!("{s:.0} s"),
        s if s >= 1e-3 => format!("{:.0} ms", s * 1e3),
        s => format!("{:.0} µs", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;

    #[test]
    fn findings_are_what_a_person_would_say() {
        let snapshot = fixture::snapshot();
        let document = pools(&snapshot);
        let postgres = &document.pools[0];
        assert_eq!(postgres.peer, "prod/postgres");
        assert_eq!(
            (postgres.mean_age_seconds, postgres.oldest_age_seconds),
            (Some(600.0), Some(900.0))
        );
        let said: Vec<&str> = document
            .pools
            .iter()
            .flat_map(|pool| &pool.findings)
            .map(String::as_str)
            .collect();
        assert_eq!(
            said,
            [
                "holds 100 connections to prod/postgres, never used more than 7 at once in 180 samples of 20 s",
                "opens a connection per request to 10.0.0.9:6379: 412/s, median life 3 ms, from `shop::dial` (shop.rs:41)",
            ]
        );
    }

    #[test]
    fn a_pool_in_use_is_no_finding() {
        let pool = PoolTotals {
            open: 20,
            open_peak: 20,
            busy_peak: 9,
            samples: 1000,
            opened: 5,
            closed: 5,
            exchanges: 10_000,
            open_ns: 100,
            busy_ns: 30,
            ..PoolTotals::default()
        };
        assert_eq!(
            findings(Direction::Out, "db", &pool, 900.0, &[]),
            Vec::<String>::new()
        );
        assert_eq!(
            findings(
                Direction::In,
                "db",
                &PoolTotals { busy_peak: 0, ..pool },
                900.0,
                &[]
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        assert_eq!(quantile(&[0, 0, 4], 1.0, 0.5), Some(3.0));
        assert_eq!(quantile(&[1, 0, 1], 1.0, 1.0), Some(4.0));
        assert_eq!(quantile(&[0, 0], 1.0, 0.5), None);
    }
}
