//! `/api/v1/oom_kills`: the last processes that the kernel killed for memory, and the code that had grown it.
//!
//! The shape only ever grows: fields may be added, none changes its meaning.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::aggregate::{MemoryKind, OomKill, Snapshot};

/// The document: the newest first.
#[derive(Debug, Serialize)]
pub(super) struct OomKills<'a> {
    oom_kills: Vec<Kill<'a>>,
}

#[derive(Debug, Serialize)]
struct Kill<'a> {
    /// To a tenth of a second.
    at_unix_seconds: f64,
    service: &'a str,
    namespace: &'a str,
    version: &'a str,
    pid: u32,
    comm: &'a str,
    /// When it was chosen, by kind; the kernel's own counters, which lag by some pages a CPU. Kinds that are not known are left out.
    memory_bytes: BTreeMap<&'static str, u64>,
    /// How far back `growth` reaches.
    growth_seconds: f64,
    /// Who grew anonymous memory of the service, the most first.
    growth: Vec<Growth<'a>>,
}

#[derive(Debug, Serialize)]
struct Growth<'a> {
    function: &'a str,
    file: &'a str,
    /// From samples.
    bytes: u64,
}

/// The document for a snapshot.
pub(super) fn oom_kills(snapshot: &Snapshot) -> OomKills<'_> {
    OomKills {
        oom_kills: snapshot.oom_kills.iter().rev().map(one).collect(),
    }
}

fn one(kill: &OomKill) -> Kill<'_> {
    let kinds = MemoryKind::ALL
        .iter()
        .map(|kind| (kind.as_str(), kill.victim.resident_bytes[kind.index()]));
    Kill {
        at_unix_seconds: kill.victim.at_unix_ns as f64 / 1e9,
        service: &kill.service.name,
        namespace: &kill.service.namespace,
        version: &kill.service.version,
        pid: kill.victim.pid,
        comm: &kill.victim.comm,
        memory_bytes: kinds.filter(|(_, bytes)| *bytes > 0).collect(),
        growth_seconds: kill.growth_ns as f64 / 1e9,
        growth: kill
            .growth
            .iter()
            .map(|(code, bytes)| Growth {
                function: &code.function,
                file: &code.file,
                bytes: *bytes,
            })
            .collect(),
    }
}

/// One line a kill, for people; the newest first.
pub(super) fn lines(snapshot: &Snapshot) -> impl Iterator<Item = String> {
    const MIB: f64 = (1u64 << 20) as f64;
    snapshot.oom_kills.iter().rev().map(|kill| {
        let resident: u64 = [MemoryKind::Anon, MemoryKind::File, MemoryKind::Shmem]
            .iter()
            .map(|kind| kill.victim.resident_bytes[kind.index()])
            .sum();
        let mut line = format!(
            "{} {} (pid {}) with {:.1} MiB resident",
            kill.service.name,
            kill.service.version,
            kill.victim.pid,
            resident as f64 / MIB
        );
        if let Some((code, bytes)) = kill.growth.first() {
            let minutes = kill.growth_ns as f64 / 60e9;
            line += &format!(
                "; `{}` ({}) grew {:.1} MiB in {minutes:.1} min",
                code.function,
                code.file,
                *bytes as f64 / MIB
            );
        }
        line
    })
}
