//! The metrics of services.

use super::connections::{connections, listeners, pools};
use super::family::family;
use super::writer::{Value, Writer, labels};
use crate::aggregate::{
    CodeScope, CodeSeries, FdKind, Histogram, MemoryKind, Metric, ServiceSnapshot, Snapshot, StackKind,
    metric, names,
};

/// What stands for code that has no series of its own.
pub(super) const OTHER: &str = "(other)";
/// Process ids on the info metric.
const MAX_PIDS: usize = 8;

/// All metrics of all services, as far as the budget of series admits them.
pub(super) fn write(out: &mut Writer, snapshot: &Snapshot) {
    let identities: Vec<String> = snapshot
        .services
        .iter()
        .map(|s| {
            let service = &s.service;
            labels(&[
                ("service_name", &service.name),
                ("service_namespace", &service.namespace),
                ("service_version", &service.version),
            ])
        })
        .collect();
    for &metric in Metric::ALL {
        let mut begun = false;
        for (service, identity) in snapshot.services.iter().zip(&identities) {
            if service.admitted.contains(metric) && service.series(metric) > 0 {
                if !begun {
                    out.family(family(metric));
                    begun = true;
                }
                samples(
                    &mut Series {
                        out,
                        name: metric.name(),
                        identity,
                    },
                    metric,
                    service,
                );
            }
        }
    }
}

/// Writes samples of one metric and service.
pub(super) struct Series<'a> {
    pub(super) out: &'a mut Writer,
    pub(super) name: &'static str,
    pub(super) identity: &'a str,
}

impl Series<'_> {
    pub(super) fn add(&mut self, more: &[(&str, &str)], value: Value) {
        self.out.sample(self.name, "", self.identity, more, value);
    }

    pub(super) fn histogram(&mut self, metric: Metric, more: &[(&str, &str)], histogram: &Histogram) {
        let mut ready = self.identity.to_owned();
        if !more.is_empty() {
            ready.push(',');
            ready.push_str(&labels(more));
        }
        for &exponent in metric::bounds(metric) {
            let bound = le(exponent);
            let count = metric::cumulated(histogram, exponent);
            self.out
                .sample(self.name, "_bucket", &ready, &[("le", bound)], Value::Int(count));
        }
        let count = Value::Int(metric::observations(histogram));
        self.out
            .sample(self.name, "_bucket", &ready, &[("le", "+Inf")], count);
        self.out
            .sample(self.name, "_sum", &ready, &[], Value::Nanos(histogram.sum_ns));
        self.out.sample(self.name, "_count", &ready, &[], count);
    }
}

/// `2^exponent` ns in seconds.
fn le(exponent: u32) -> &'static str {
    match exponent {
        10 => "0.000001024",
        12 => "0.000004096",
        13 => "0.000008192",
        14 => "0.000016384",
        16 => "0.000065536",
        18 => "0.000262144",
        19 => "0.000524288",
        20 => "0.001048576",
        22 => "0.004194304",
        24 => "0.016777216",
        25 => "0.033554432",
        26 => "0.067108864",
        28 => "0.268435456",
        30 => "1.073741824",
        31 => "2.147483648",
        32 => "4.294967296",
        34 => "17.179869184",
        36 => "68.719476736",
        _ => "NaN",
    }
}

fn samples(out: &mut Series<'_>, metric: Metric, service: &ServiceSnapshot) {
    let totals = &service.totals;
    match metric {
        Metric::ServiceInfo => info(out, service),
        Metric::Processes => out.add(&[], Value::Int(totals.processes)),
        Metric::Wait => {
            for (cause, ns) in service.causes() {
                out.add(&[("cause", cause.as_str())], Value::Nanos(ns));
            }
        }
        Metric::Cpu => {
            out.add(&[("mode", "user")], Value::Nanos(totals.cpu_user_ns));
            out.add(&[("mode", "system")], Value::Nanos(totals.cpu_system_ns));
            out.add(&[("mode", "steal")], Value::Nanos(totals.cpu_steal_ns));
        }
        Metric::MemoryResident => {
            for kind in MemoryKind::ALL {
                out.add(
                    &[("kind", kind.as_str())],
                    Value::Int(totals.resident_bytes[kind.index()]),
                );
            }
        }
        Metric::MemoryGrowth => out.add(&[], Value::Int(totals.memory_growth_bytes)),
        Metric::MemoryReturned => out.add(&[], Value::Int(totals.memory_returned_bytes)),
        Metric::MemoryStall => {
            for (kind, ns, _) in service.stalls() {
                out.add(&[("kind", kind.as_str())], Value::Nanos(ns));
            }
        }
        Metric::MemoryStalls => {
            for (kind, _, count) in service.stalls() {
                out.add(&[("kind", kind.as_str())], Value::Int(count));
            }
        }
        Metric::PageFaults => {
            out.add(&[("kind", "minor")], Value::Int(totals.faults_minor));
            out.add(&[("kind", "major")], Value::Int(totals.faults_major));
        }
        Metric::AllocBytes => counted(out, totals.alloc_objects, totals.alloc_bytes),
        Metric::AllocObjects => counted(out, totals.alloc_objects, totals.alloc_objects),
        Metric::AllocLive => counted(out, totals.alloc_live_bytes, totals.alloc_live_bytes),
        Metric::CodeAlloc => code(out, service, StackKind::Alloc, Value::Int),
        Metric::CodeAllocLive => code_of(out, &service.live.code, Value::Int),
        Metric::OomKills => out.add(&[], Value::Int(totals.oom_kills)),
        Metric::OpenFds => {
            for kind in FdKind::ALL {
                out.add(&[("kind", kind.as_str())], Value::Int(totals.fds[kind.index()]));
            }
        }
        Metric::FdLimit => {
            if totals.fd_limit > 0 {
                out.add(&[], Value::Int(totals.fd_limit));
            }
        }
        Metric::DiskBytes => {
            for (op, bytes, _) in service.disk() {
                out.add(&[("operation", op.as_str())], Value::Int(bytes));
            }
        }
        Metric::DiskDuration => {
            for (op, _, duration) in service.disk() {
                out.histogram(metric, &[("operation", op.as_str())], duration);
            }
        }
        Metric::WaitDuration => {
            for (cause, histogram) in service.wait_histograms() {
                out.histogram(metric, &[("cause", cause.as_str())], histogram);
            }
        }
        Metric::Syscalls => {
            for (&number, calls) in &totals.syscalls {
                out.add(&[("syscall", names::syscall(number))], Value::Int(calls.count));
            }
        }
        Metric::SyscallErrors => {
            for (&number, calls) in &totals.syscalls {
                for (&errno, &count) in &calls.errors {
                    let more = [
                        ("syscall", names::syscall(number)),
                        ("errno", names::errno(errno)),
                    ];
                    out.add(&more, Value::Int(count));
                }
            }
        }
        Metric::SyscallDuration => {
            for (number, histogram) in service.syscall_histograms() {
                out.histogram(metric, &[("syscall", names::syscall(number))], histogram);
            }
        }
        Metric::FdGrowth => out.add(&[], Value::Int(totals.fd_growth)),
        Metric::FdForecast => {
            if let Some(forecast) = totals.fd_forecast {
                out.add(&[], Value::Nanos(forecast.left_ns));
            }
        }
        Metric::CodeFds => code(out, service, StackKind::Fd, Value::Int),
        Metric::CodeOpenFds => {
            for opener in &*service.openers {
                let (function, file) = opener
                    .owner
                    .as_ref()
                    .map_or((OTHER, ""), |o| (&*o.function, &*o.file));
                out.add(&[("function", function), ("file", file)], Value::Int(opener.open));
            }
        }
        Metric::CodeWait => code(out, service, StackKind::Wait, Value::Nanos),
        Metric::CodeCpu => code(out, service, StackKind::Cpu, Value::Nanos),
        Metric::CodeMemoryNet => {
            for (owner, bytes) in &service.net.code {
                let code = [("function", &*owner.function), ("file", &*owner.file)];
                out.add(&code, Value::Int(*bytes));
            }
            if service.net.other > 0 {
                out.add(
                    &[("function", OTHER), ("file", "")],
                    Value::Int(service.net.other),
                );
            }
        }
        Metric::CodeMemory => code(out, service, StackKind::Memory, Value::Int),
        Metric::CodeSyscalls => code(out, service, StackKind::Syscall, Value::Int),
        Metric::CodeConnections => code(out, service, StackKind::Conn, Value::Int),
        Metric::Connections
        | Metric::ConnectionsOpened
        | Metric::ConnectionsClosed
        | Metric::ConnectionsEnded
        | Metric::ConnectionFailures
        | Metric::ConnectionBytes
        | Metric::Retransmits
        | Metric::ConnectDuration
        | Metric::ConnectionAge => connections(out, metric, service),
        Metric::PoolConnections
        | Metric::PoolPeak
        | Metric::PoolMeanAge
        | Metric::PoolOldestAge
        | Metric::PoolSeconds
        | Metric::PoolExchanges
        | Metric::PoolOpened
        | Metric::PoolOnce => pools(out, metric, service),
        Metric::ListenQueue
        | Metric::ListenLimit
        | Metric::ListenSeconds
        | Metric::ListenAccepted
        | Metric::ListenDropped => listeners(out, metric, service),
    }
}

/// A number of services whose allocations are watched: nothing where none was seen.
fn counted(out: &mut Series<'_>, seen: u64, number: u64) {
    if seen > 0 {
        out.add(&[], Value::Int(number));
    }
}

fn code(out: &mut Series<'_>, service: &ServiceSnapshot, kind: StackKind, value: fn(u64) -> Value) {
    code_of(out, service.code_series(kind), value);
}

fn code_of(out: &mut Series<'_>, series: &[CodeSeries], value: fn(u64) -> Value) {
    for series in series {
        let (function, file) = series
            .owner
            .as_ref()
            .map_or((OTHER, ""), |o| (&*o.function, &*o.file));
        let code = [("function", function), ("file", file)];
        match series.scope {
            CodeScope::Whole => out.add(&code, value(series.value)),
            CodeScope::Cause(cause) => {
                out.add(
                    &[("cause", cause.as_str()), code[0], code[1]],
                    value(series.value),
                );
            }
            CodeScope::Syscall(number) => {
                out.add(
                    &[("syscall", names::syscall(number)), code[0], code[1]],
                    value(series.value),
                );
            }
        }
    }
}

/// The lowest process ids stand for all: they are the longest lived as a rule, and a list of all of them would make
/// a new series with every process.
fn info(out: &mut Series<'_>, service: &ServiceSnapshot) {
    let info = &service.info;
    let mut pids: Vec<String> = info.pids.iter().take(MAX_PIDS).map(ToString::to_string).collect();
    if info.pids.len() > MAX_PIDS {
        pids.push("...".into());
    }
    out.add(
        &[
            ("source", &info.source),
            ("container_id", &info.container_id),
            ("container_runtime", &info.container_runtime),
            ("unit", &info.unit),
            ("executable", &info.executable),
            ("runtime", &info.runtime),
            ("pids", &pids.join(",")),
        ],
        Value::Int(1),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;

    #[test]
    fn as_many_lines_as_the_budget_counts() {
        let snapshot = fixture::snapshot();
        for &metric in Metric::ALL {
            for service in &snapshot.services {
                let mut out = Writer::new(0);
                samples(
                    &mut Series {
                        out: &mut out,
                        name: metric.name(),
                        identity: "",
                    },
                    metric,
                    service,
                );
                let lines = out.finish().lines().count();
                assert_eq!(
                    lines,
                    service.series(metric),
                    "{metric:?} of {}",
                    service.service.name
                );
            }
            assert!(
                snapshot.services.iter().any(|s| s.series(metric) > 0),
                "the fixture lacks {metric:?}"
            );
        }
    }

    #[test]
    fn bounds_are_powers_of_two_in_seconds() {
        for &exponent in metric::FINE_BOUNDS.iter().chain(metric::COARSE_BOUNDS) {
            let seconds: f64 = le(exponent).parse().expect("a number");
            assert_eq!(seconds, (1u64 << exponent) as f64 / 1e9);
        }
    }
}
