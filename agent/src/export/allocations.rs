//! `/api/v1/allocations`: services whose allocations are watched, how, what lives of them, and what leaks.
//!
//! The shape only ever grows: fields may be added, none changes its meaning.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use super::descriptors::place;
use super::profile::frame_name;
use crate::aggregate::{Leak, LiveAges, LiveCode, MemoryKind, Owner, ServiceSnapshot, Snapshot, Stack};
use crate::telemetry::{AllocSource, AllocTelemetry, Telemetry};

/// Leaks of a service that are listed, and functions that grew its memory.
const MOST_LEAKS: usize = 20;
/// Stacks of a service whose live allocations are listed.
const MOST_LIVE: usize = 100;

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Allocations<'a> {
    services: Vec<Service<'a>>,
}

#[derive(Debug, Serialize)]
struct Service<'a> {
    service: &'a str,
    namespace: &'a str,
    /// `duty` or `full`.
    mode: &'a str,
    processes: usize,
    /// Allocators that are watched, with the paths of their files, and runtimes that keep a profile of themselves.
    allocators: &'a [String],
    /// Where bytes and allocations are from: `probes`, `runtime profile`.
    allocated_from: Vec<&'static str>,
    /// Why some process is not watched.
    refused: &'a [String],
    /// Functions of the allocators of which nothing is seen, and why: what they allocate is missing, what they free seems to live.
    not_understood: &'a [String],
    /// Share of the time that is watched.
    duty: f64,
    /// How many times slower the slowest of the processes ran in the last window than it would have; estimated.
    slowdown: f64,
    /// Bytes and allocations are estimates: they are from windows, or from the samples of a runtime.
    estimated: bool,
    allocated_bytes: u64,
    allocations: u64,
    /// Not freed: of what was allocated since the processes are watched (`probes`), of all (`runtime profile`); `null` where nobody
    /// knows, which are probes in mode `duty`.
    live_bytes: Option<u64>,
    /// Objects of the stacks that are kept of it, those with the most bytes; estimated.
    live_objects: Option<u64>,
    /// Where that is from.
    live_from: Vec<&'static str>,
    /// What lives by the stack that allocated it, the most bytes first; all estimates.
    live: Vec<LiveEntry>,
    /// Lowest memory limit of the processes: their cgroup's, else the host's memory.
    memory_limit_bytes: Option<u64>,
    /// What tells of leaks: `live allocations`, which `leaks` are from, or `growth by code`, because windows do not see what is freed.
    leaks_from: &'static str,
    leaks: Vec<LeakEntry>,
    /// Anonymous memory that is still there, by the code that was the first to touch it since the agent started (which need not be who leaks
    /// what is in it), the most first.
    growth: Vec<GrowthEntry>,
}

#[derive(Debug, Serialize)]
struct LiveEntry {
    function: String,
    file: String,
    /// Innermost first.
    stack: Vec<String>,
    bytes: u64,
    #[serde(flatten)]
    ages: Ages,
}

/// Objects that live, and how long they have lived at the last tick; of Go's own profile, how long at least.
#[derive(Debug, Serialize)]
struct Ages {
    objects: u64,
    /// Of the youngest that was sampled.
    youngest_seconds: f64,
    /// Mean of the bytes: what is large counts for more.
    mean_age_seconds: f64,
    /// Of the oldest that was sampled.
    oldest_seconds: f64,
}

#[derive(Debug, Serialize)]
struct GrowthEntry {
    function: String,
    file: String,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct LeakEntry {
    function: String,
    file: String,
    /// Innermost first.
    stack: Vec<String>,
    live_bytes: u64,
    #[serde(flatten)]
    ages: Ages,
    bytes_per_hour: f64,
    /// Length of the time that this is told from.
    seconds: f64,
    /// When the memory limit is reached if all else stays as it is.
    limit_in_seconds: Option<f64>,
    finding: String,
}

/// The document for a snapshot.
pub(super) fn allocations<'a>(snapshot: &'a Snapshot, telemetry: &'a Telemetry) -> Allocations<'a> {
    let services = telemetry.alloc.iter().map(|watched| {
        let found: Vec<&ServiceSnapshot> = snapshot.find(&watched.namespace, &watched.service).collect();
        service(watched, &found)
    });
    Allocations {
        services: services.collect(),
    }
}

fn service<'a>(watched: &'a AllocTelemetry, found: &[&ServiceSnapshot]) -> Service<'a> {
    let sum = |pick: fn(&ServiceSnapshot) -> u64| found.iter().map(|service| pick(service)).sum::<u64>();
    let resident = sum(|service| {
        let kinds = [MemoryKind::Anon, MemoryKind::Shmem];
        kinds
            .iter()
            .map(|kind| service.totals.resident_bytes[kind.index()])
            .sum()
    });
    let mut leaks: Vec<&Leak> = found.iter().flat_map(|service| &service.live.leaks).collect();
    leaks.sort_by(|a, b| b.bytes_per_second.total_cmp(&a.bytes_per_second));
    let full = watched.mode == "full";
    let names = |from: &dyn Fn(&AllocSource) -> bool| -> Vec<&'static str> {
        watched
            .from
            .iter()
            .filter(|source| from(source))
            .map(|source| source.as_str())
            .collect()
    };
    let live_from = names(&|source| full || *source == AllocSource::Runtime);
    let known = full || !live_from.is_empty();
    Service {
        service: &watched.service,
        namespace: &watched.namespace,
        mode: &watched.mode,
        processes: watched.processes,
        allocators: &watched.allocators,
        allocated_from: names(&|_| true),
        refused: &watched.refused,
        not_understood: &watched.not_understood,
        duty: watched.duty,
        slowdown: watched.slowdown,
        estimated: !full || watched.from.contains(&AllocSource::Runtime),
        allocated_bytes: sum(|service| service.totals.alloc_bytes),
        allocations: sum(|service| service.totals.alloc_objects),
        live_bytes: known.then(|| sum(|service| service.totals.alloc_live_bytes)),
        live_objects: known.then(|| {
            let stacks = found.iter().flat_map(|service| &service.live.stacks);
            stacks.map(|live| live.ages.objects).sum::<f64>().round() as u64
        }),
        live: live(found),
        leaks_from: if live_from.is_empty() {
            "growth by code"
        } else {
            "live allocations"
        },
        growth: growth(found),
        live_from,
        memory_limit_bytes: watched.memory_limit_bytes,
        leaks: leaks
            .into_iter()
            .take(MOST_LEAKS)
            .map(|leak| entry(leak, watched.memory_limit_bytes, resident))
            .collect(),
    }
}

fn live(found: &[&ServiceSnapshot]) -> Vec<LiveEntry> {
    let mut live: Vec<&LiveCode> = found.iter().flat_map(|service| &service.live.stacks).collect();
    // Those of one version are in this order; the sort is stable.
    live.sort_by_key(|live| Reverse(live.bytes));
    let most = live.into_iter().take(MOST_LIVE);
    most.map(|live| LiveEntry {
        function: live.stack.owner.function.to_string(),
        file: live.stack.owner.file.to_string(),
        stack: names(&live.stack),
        bytes: live.bytes,
        ages: ages(&live.ages),
    })
    .collect()
}

fn names(stack: &Stack) -> Vec<String> {
    stack.frames.iter().map(|frame| frame_name(frame)).collect()
}

fn ages(of: &LiveAges) -> Ages {
    // As precise as it is known; the mean of them is not more.
    let rounded = |seconds: f64| (seconds * 100.0).round() / 100.0;
    Ages {
        objects: of.objects.round() as u64,
        youngest_seconds: rounded(of.youngest_seconds),
        mean_age_seconds: rounded(of.mean_seconds),
        oldest_seconds: rounded(of.oldest_seconds),
    }
}

fn growth(found: &[&ServiceSnapshot]) -> Vec<GrowthEntry> {
    let mut by_code: BTreeMap<&Owner, u64> = BTreeMap::new();
    for (owner, bytes) in found.iter().flat_map(|service| &service.net.code) {
        *by_code.entry(owner).or_default() += bytes;
    }
    let mut by_code: Vec<_> = by_code.into_iter().collect();
    // By name where equal: the map is in the order of names, and the sort is stable.
    by_code.sort_by_key(|(_, bytes)| Reverse(*bytes));
    let most = by_code.into_iter().take(MOST_LEAKS);
    most.map(|(owner, bytes)| GrowthEntry {
        function: owner.function.to_string(),
        file: owner.file.to_string(),
        bytes,
    })
    .collect()
}

fn entry(leak: &Leak, limit: Option<u64>, resident: u64) -> LeakEntry {
    let owner = &leak.stack.owner;
    let per_hour = leak.bytes_per_second * 3600.0;
    let limit_in = limit.map(|limit| limit.saturating_sub(resident) as f64 / leak.bytes_per_second);
    let mut finding = format!(
        "leaks {}/h from {}: {} live in {} objects, none of it freed for long",
        bytes(per_hour),
        place(owner, leak.stack.owner_line()),
        bytes(leak.live_bytes as f64),
        leak.ages.objects.round()
    );
    if let (Some(seconds), Some(limit)) = (limit_in, limit) {
        finding += &format!(
            "; the limit of {} is reached in {}",
            bytes(limit as f64),
            time(seconds)
        );
    }
    LeakEntry {
        function: owner.function.to_string(),
        file: owner.file.to_string(),
        stack: names(&leak.stack),
        live_bytes: leak.live_bytes,
        ages: ages(&leak.ages),
        bytes_per_hour: per_hour,
        seconds: leak.seconds,
        limit_in_seconds: limit_in,
        finding,
    }
}

/// Bytes with a unit, for people.
pub(super) fn bytes(amount: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut amount, mut at) = (amount, 0);
    while amount >= 1024.0 && at + 1 < units.len() {
        amount /= 1024.0;
        at += 1;
    }
    if at == 0 || amount >= 100.0 {
        format!("{amount:.0} {}", units[at])
    } else {
        format!("{amount:.1} {}", units[at])
    }
}

/// A time to come, for people: no more precise than an estimate is.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds if seconds < 172_800.0 => format!("{:.0} h", seconds / 3600.0),
        seconds => format!("{:.0} days", seconds / 86400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture::stack;

    #[test]
    fn a_leak_is_told_as_a_person_would() {
        let leak = Leak {
            stack: stack("cache::remember", false),
            live_bytes: 300 << 20,
            ages: LiveAges {
                objects: 4_700.2,
                youngest_seconds: 0.1,
                mean_seconds: 150.004,
                oldest_seconds: 301.0,
            },
            bytes_per_second: 1024.0 * 1024.0,
            seconds: 300.0,
        };
        let found = entry(&leak, Some(1 << 30), 512 << 20);
        assert_eq!(found.limit_in_seconds, Some(512.0));
        assert_eq!((found.ages.objects, found.ages.mean_age_seconds), (4_700, 150.0));
        assert_eq!(
            found.finding,
            "leaks 3.5 GiB/h from `cache::remember` (shop.rs): 300 MiB live in 4700 objects, none of it freed for long; \
             the limit of 1.0 GiB is reached in 9 min"
        );
    }
}
