//! `/api/v1/services`: the last window and the totals of every service.
//!
//! The shape only ever grows: fields may be added, none changes its meaning.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::aggregate::{
    Cause, ConnTotals, Direction, DiskOp, FdKind, MemoryKind, ServiceInfo, ServiceSnapshot, Snapshot, Totals,
};

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Services<'a> {
    window: Window,
    services: Vec<Service<'a>>,
}

#[derive(Debug, Serialize)]
struct Window {
    /// Unix time of its end; 0 before the first window is finished.
    end_unix_seconds: f64,
    length_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Service<'a> {
    name: &'a str,
    namespace: &'a str,
    version: &'a str,
    info: Info<'a>,
    /// Per second of the last window.
    rates: Numbers,
    /// Since the agent first saw the service.
    totals: Numbers,
    /// As they were at the end of the last window.
    gauges: Gauges,
}

#[derive(Debug, Serialize)]
struct Info<'a> {
    source: &'a str,
    container_id: &'a str,
    container_runtime: &'a str,
    unit: &'a str,
    executable: &'a str,
    runtime: &'a str,
    pids: Vec<u32>,
}

/// What counts up. By cause, operation or direction only where there is anything.
#[derive(Debug, Serialize)]
struct Numbers {
    wait_seconds: BTreeMap<&'static str, f64>,
    cpu_user_seconds: f64,
    cpu_system_seconds: f64,
    cpu_steal_seconds: f64,
    syscalls: f64,
    syscall_errors: f64,
    memory_growth_bytes: f64,
    memory_returned_bytes: f64,
    page_faults_minor: f64,
    page_faults_major: f64,
    oom_kills: f64,
    disk_bytes: BTreeMap<&'static str, f64>,
    connections_opened: BTreeMap<&'static str, f64>,
    connections_closed: BTreeMap<&'static str, f64>,
    connection_failures: f64,
    tcp_retransmits: f64,
}

#[derive(Debug, Serialize)]
struct Gauges {
    processes: u64,
    threads: u64,
    memory_bytes: BTreeMap<&'static str, u64>,
    open_fds: BTreeMap<&'static str, u64>,
    /// 0 when unknown.
    fd_limit: u64,
    connections: BTreeMap<&'static str, u64>,
}

/// The document for a snapshot.
pub(super) fn services(snapshot: &Snapshot) -> Services<'_> {
    let length = snapshot.length_seconds();
    Services {
        window: Window {
            end_unix_seconds: snapshot.at_unix_ns as f64 / 1e9,
            length_seconds: snapshot.length_ns as f64 / 1e9,
        },
        services: snapshot
            .services
            .iter()
            .map(|service| one(service, length))
            .collect(),
    }
}

fn one(service: &ServiceSnapshot, length: f64) -> Service<'_> {
    Service {
        name: &service.service.name,
        namespace: &service.service.namespace,
        version: &service.service.version,
        info: info(&service.info),
        rates: numbers(&service.last, length),
        totals: numbers(&service.totals, 1.0),
        gauges: gauges(&service.totals),
    }
}

fn info(info: &ServiceInfo) -> Info<'_> {
    Info {
        source: &info.source,
        container_id: &info.container_id,
        container_runtime: &info.container_runtime,
        unit: &info.unit,
        executable: &info.executable,
        runtime: &info.runtime,
        pids: info.pids.iter().copied().collect(),
    }
}

fn numbers(totals: &Totals, length: f64) -> Numbers {
    let per = |count: u64| count as f64 / length;
    let seconds = |ns: u64| per(ns) / 1e9;
    let conns = |pick: fn(&ConnTotals) -> u64| {
        by(Direction::ALL.iter().map(|&direction| {
            let each = totals
                .conns
                .iter()
                .filter(|((d, _), _)| *d == direction)
                .map(|(_, conn)| pick(conn));
            (direction.as_str(), each.sum::<u64>())
        }))
        .into_iter()
        .map(|(direction, count)| (direction, per(count)))
        .collect()
    };
    let all_conns = |pick: fn(&ConnTotals) -> u64| per(totals.conns.values().map(pick).sum());
    let calls = totals.syscalls.values();
    Numbers {
        wait_seconds: by(Cause::ALL
            .iter()
            .map(|cause| (cause.as_str(), totals.wait_ns[cause.index()])))
        .into_iter()
        .map(|(cause, ns)| (cause, seconds(ns)))
        .collect(),
        cpu_user_seconds: seconds(totals.cpu_user_ns),
        cpu_system_seconds: seconds(totals.cpu_system_ns),
        cpu_steal_seconds: seconds(totals.cpu_steal_ns),
        syscalls: per(calls.clone().map(|calls| calls.count).sum()),
        syscall_errors: per(calls.flat_map(|calls| calls.errors.values()).sum()),
        memory_growth_bytes: per(totals.memory_growth_bytes),
        memory_returned_bytes: per(totals.memory_returned_bytes),
        page_faults_minor: per(totals.faults_minor),
        page_faults_major: per(totals.faults_major),
        oom_kills: per(totals.oom_kills),
        disk_bytes: by(DiskOp::ALL
            .iter()
            .map(|op| (op.as_str(), totals.disk[op.index()].bytes)))
        .into_iter()
        .map(|(op, bytes)| (op, per(bytes)))
        .collect(),
        connections_opened: conns(|conn| conn.opened),
        connections_closed: conns(|conn| conn.closed),
        connection_failures: all_conns(|conn| conn.failures.iter().sum()),
        tcp_retransmits: all_conns(|conn| conn.retransmits),
    }
}

fn gauges(totals: &Totals) -> Gauges {
    Gauges {
        processes: totals.processes,
        threads: totals.threads,
        memory_bytes: by(MemoryKind::ALL
            .iter()
            .map(|k| (k.as_str(), totals.resident_bytes[k.index()]))),
        open_fds: by(FdKind::ALL.iter().map(|k| (k.as_str(), totals.fds[k.index()]))),
        fd_limit: totals.fd_limit,
        connections: by(Direction::ALL.iter().map(|&direction| {
            let each = totals
                .conns
                .iter()
                .filter(|((d, _), _)| *d == direction)
                .map(|(_, conn)| conn.open);
            (direction.as_str(), each.sum())
        })),
    }
}

/// Only what is there.
fn by(amounts: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<&'static str, u64> {
    amounts.filter(|(_, amount)| *amount > 0).collect()
}
