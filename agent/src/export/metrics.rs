//! `/metrics` in Prometheus's text format.

use std::collections::BTreeMap;

use anyhow::Result;
use prometheus::{
    Encoder as _, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram as ProtoHistogram, LabelPair, Metric as Series, MetricFamily, MetricType},
};

use super::Published;
use crate::aggregate::{
    CodeScope, ConnFailure, Direction, FdKind, Histogram, MemoryKind, Metric, Peer, ServiceSnapshot, StackKind,
    metric::{bounds, cumulated, observations},
    names,
};
use crate::load::status::Verdict;

const S: f64 = 1e9;

/// Families in the order of their names; a family exists only with a series.
#[derive(Default)]
struct Families(BTreeMap<&'static str, MetricFamily>);

type Labels<'a> = &'a [(&'a str, &'a str)];

fn series(labels: Labels<'_>) -> Series {
    let mut series = Series::default();
    let pairs = labels
        .iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        })
        .collect();
    series.set_label(pairs);
    series
}

impl Families {
    fn family(&mut self, name: &'static str, help: &str, kind: MetricType) -> &mut MetricFamily {
        self.0.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        })
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: Labels<'_>, value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut series = series(labels);
        series.set_counter(counter);
        self.family(name, help, MetricType::COUNTER).mut_metric().push(series);
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: Labels<'_>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut series = series(labels);
        series.set_gauge(gauge);
        self.family(name, help, MetricType::GAUGE).mut_metric().push(series);
    }

    fn histogram(&mut self, metric: Metric, help: &str, labels: Labels<'_>, histogram: &Histogram) {
        let mut proto = ProtoHistogram::default();
        proto.set_sample_count(observations(histogram));
        proto.set_sample_sum(histogram.sum_ns as f64 / S);
        let buckets = bounds(metric)
            .iter()
            .map(|exponent| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound((1u64 << exponent) as f64 / S);
                bucket.set_cumulative_count(cumulated(histogram, *exponent));
                bucket
            })
            .collect();
        proto.set_bucket(buckets);
        let mut series = series(labels);
        series.set_histogram(proto);
        self.family(metric.name(), help, MetricType::HISTOGRAM).mut_metric().push(series);
    }
}

fn peer_name(peer: &Peer) -> String {
    match peer {
        Peer::Server(address, port) => std::net::SocketAddr::new(*address, *port).to_string(),
        Peer::Client(address) => address.to_string(),
        Peer::Other => "(other)".to_owned(),
    }
}

/// One service's series: its identity's labels and where they go.
struct Of<'a> {
    families: &'a mut Families,
    service: &'a ServiceSnapshot,
}

impl Of<'_> {
    fn with<R>(&mut self, more: Labels<'_>, put: impl FnOnce(&mut Families, Labels<'_>) -> R) -> R {
        let identity = &self.service.service;
        let mut labels = vec![
            ("service_name", identity.name.as_str()),
            ("service_namespace", identity.namespace.as_str()),
            ("service_version", identity.version.as_str()),
        ];
        labels.extend_from_slice(more);
        put(self.families, &labels)
    }

    fn counter(&mut self, metric: Metric, help: &str, more: Labels<'_>, value: f64) {
        if self.service.admitted.contains(metric) {
            self.with(more, |families, labels| families.counter(metric.name(), help, labels, value));
        }
    }

    fn gauge(&mut self, metric: Metric, help: &str, more: Labels<'_>, value: f64) {
        if self.service.admitted.contains(metric) {
            self.with(more, |families, labels| families.gauge(metric.name(), help, labels, value));
        }
    }

    fn histogram(&mut self, metric: Metric, help: &str, more: Labels<'_>, histogram: &Histogram) {
        if self.service.admitted.contains(metric) {
            self.with(more, |families, labels| families.histogram(metric, help, labels, histogram));
        }
    }
}

fn service_series(families: &mut Families, service: &ServiceSnapshot) {
    let totals = &service.totals;
    let mut of = Of { families, service };
    let info = &service.info;
    of.gauge(
        Metric::ServiceInfo,
        "What is known of the service besides its identity; always 1.",
        &[
            ("source", info.source.as_str()),
            ("container_id", info.container_id.as_str()),
            ("container_runtime", info.container_runtime.as_str()),
            ("unit", info.unit.as_str()),
            ("executable", info.executable.as_str()),
        ],
        1.0,
    );
    of.gauge(Metric::Processes, "Live processes.", &[], totals.processes as f64);
    for (cause, ns) in service.causes() {
        let help = "Seconds that threads were off the CPU, by cause; exact, but for the division of futex time \
                    between lock and idle.";
        of.counter(Metric::Wait, help, &[("cause", cause.as_str())], ns as f64 / S);
    }
    for (cause, histogram) in service.wait_histograms() {
        let help = "Durations of finished waits, by cause; all futex waits count as lock here.";
        of.histogram(Metric::WaitDuration, help, &[("cause", cause.as_str())], histogram);
    }
    let help = "Seconds on the CPU: exact in total, divided by the kernel's own sampling of user and system time.";
    of.counter(Metric::Cpu, help, &[("mode", "user")], totals.cpu_user_ns as f64 / S);
    of.counter(Metric::Cpu, help, &[("mode", "system")], totals.cpu_system_ns as f64 / S);
    for kind in MemoryKind::ALL {
        let bytes = totals.resident_bytes[kind.index()];
        let help = "Memory of the service's processes in bytes; swap is not resident and stands beside.";
        of.gauge(Metric::MemoryResident, help, &[("kind", kind.as_str())], bytes as f64);
    }
    let help = "Bytes of anonymous memory that the service's processes grew by; memory given back is not taken off.";
    of.counter(Metric::MemoryGrowth, help, &[], totals.memory_growth_bytes as f64);
    for (kind, faults) in [("minor", totals.faults_minor), ("major", totals.faults_major)] {
        of.counter(Metric::PageFaults, "Page faults.", &[("kind", kind)], faults as f64);
    }
    of.counter(Metric::OomKills, "Processes that the kernel killed for memory.", &[], totals.oom_kills as f64);
    for kind in FdKind::ALL {
        let open = totals.fds[kind.index()];
        of.gauge(Metric::OpenFds, "Open descriptors, by kind.", &[("kind", kind.as_str())], open as f64);
    }
    if totals.fd_limit > 0 {
        let help = "Lowest soft limit of open descriptors (RLIMIT_NOFILE) among the service's processes.";
        of.gauge(Metric::FdLimit, help, &[], totals.fd_limit as f64);
    }
    for (operation, bytes, duration) in service.disk() {
        let labels = [("operation", operation.as_str())];
        of.counter(Metric::DiskBytes, "Bytes of block requests that the service started.", &labels, bytes as f64);
        let help = "Latency of block requests that the service started.";
        of.histogram(Metric::DiskDuration, help, &labels, duration);
    }
    syscall_series(&mut of);
    connection_series(&mut of);
    code_series(&mut of);
}

fn syscall_series(of: &mut Of<'_>) {
    let service = of.service;
    for (number, calls) in &service.totals.syscalls {
        let name = names::syscall(*number);
        let help = "Returned system calls; scaled when tieback_sampling_ratio{probe=\"syscall\"} is below 1.";
        of.counter(Metric::Syscalls, help, &[("syscall", name)], calls.count as f64);
        for (errno, count) in &calls.errors {
            let labels = [("syscall", name), ("errno", names::errno(*errno))];
            of.counter(Metric::SyscallErrors, "Failed system calls, by errno.", &labels, *count as f64);
        }
    }
    for (number, histogram) in service.syscall_histograms() {
        let help = "Durations of system calls, of an unbiased sample scaled to all calls.";
        of.histogram(Metric::SyscallDuration, help, &[("syscall", names::syscall(number))], histogram);
    }
}

fn connection_series(of: &mut Of<'_>) {
    let service = of.service;
    for ((direction, peer), conn) in &service.totals.conns {
        let name = peer_name(peer);
        let labels = [("direction", direction.as_str()), ("peer", name.as_str())];
        of.gauge(Metric::Connections, "TCP connections open now.", &labels, conn.open as f64);
        let help = "TCP connections established: connected (out) or accepted by the kernel (in).";
        of.counter(Metric::ConnectionsOpened, help, &labels, conn.opened as f64);
        of.counter(Metric::ConnectionsClosed, "Established TCP connections that ended.", &labels, conn.closed as f64);
        for (way, bytes) in [("sent", conn.sent_bytes), ("received", conn.received_bytes)] {
            let labels = [labels[0], labels[1], ("way", way)];
            of.counter(Metric::ConnectionBytes, "Payload of TCP connections in bytes.", &labels, bytes as f64);
        }
    }
    for reason in ConnFailure::ALL {
        for (peer, count) in service.by_peer(|conn| conn.failures[reason.index()]) {
            let name = peer_name(&peer);
            let labels = [("peer", name.as_str()), ("reason", reason.as_str())];
            of.counter(Metric::ConnectionFailures, "TCP connections that failed, by reason.", &labels, count as f64);
        }
    }
    for (peer, count) in service.by_peer(|conn| conn.retransmits) {
        let name = peer_name(&peer);
        of.counter(Metric::Retransmits, "Retransmitted TCP segments.", &[("peer", name.as_str())], count as f64);
    }
    let put = |of: &mut Of<'_>, metric, help, direction: Direction, peer: Peer, histogram: &Histogram| {
        let name = peer_name(&peer);
        of.histogram(metric, help, &[("direction", direction.as_str()), ("peer", name.as_str())], histogram);
    };
    for (direction, peer, histogram) in service.conn_histograms(|conn| &conn.connect) {
        put(of, Metric::ConnectDuration, "Time from SYN to established.", direction, peer, histogram);
    }
    for (direction, peer, histogram) in service.conn_histograms(|conn| &conn.age) {
        put(of, Metric::ConnectionAge, "Age of TCP connections when they ended.", direction, peer, histogram);
    }
}

fn code_series(of: &mut Of<'_>) {
    let service = of.service;
    for (kind, metric, help, unit) in [
        (StackKind::Wait, Metric::CodeWait, "Seconds off the CPU by the code that waited, scaled to the exact total.", S),
        (StackKind::Cpu, Metric::CodeCpu, "Seconds on the CPU by code, scaled to the exact total.", S),
        (StackKind::Memory, Metric::CodeMemory, "Bytes of anonymous memory by the code that grew it.", 1.0),
        (StackKind::Syscall, Metric::CodeSyscalls, "System calls by the code that made them, scaled to the exact total.", 1.0),
        (StackKind::Conn, Metric::CodeConnections, "TCP connections by the code that opened them.", 1.0),
    ] {
        for code in service.code_series(kind) {
            let (function, file) =
                code.owner.as_ref().map_or(("(other)", ""), |owner| (&*owner.function, &*owner.file));
            let mut labels = match code.scope {
                CodeScope::Whole => Vec::new(),
                CodeScope::Cause(cause) => vec![("cause", cause.as_str())],
                CodeScope::Syscall(number) => vec![("syscall", names::syscall(number))],
            };
            labels.extend_from_slice(&[("function", function), ("file", file)]);
            of.counter(metric, help, &labels, code.value as f64 / unit);
        }
    }
}

fn own_series(families: &mut Families, published: &Published) {
    let telemetry = &published.telemetry;
    let build = [("version", telemetry.version.as_str())];
    families.gauge("tieback_build_info", "Version of the agent; always 1.", &build, 1.0);
    for status in &published.probes {
        for verdict in Verdict::ALL {
            if status.verdict == *verdict {
                let labels = [("probe", status.probe), ("verdict", verdict.as_str())];
                families.gauge("tieback_probe_status", "Verdict of each probe; always 1.", &labels, 1.0);
            }
        }
    }
    for (probe, numbers) in &telemetry.probes {
        let labels = [("probe", probe.as_str())];
        families.counter("tieback_probe_runs_total", "Runs of the probe's programs.", &labels, numbers.runs as f64);
        let help = "Runs times the cost calibrated at start, in seconds of CPU.";
        families.counter("tieback_probe_cost_seconds_total", help, &labels, numbers.cost_seconds);
        let help = "Share of the time or of the events that the probe looks at.";
        families.gauge("tieback_sampling_ratio", help, &labels, numbers.sampling_ratio);
    }
    for ((probe, reason), count) in &telemetry.lost {
        let labels = [("probe", probe.as_str()), ("reason", reason.as_str())];
        families.counter("tieback_lost_total", "Things lost, by probe and reason.", &labels, *count as f64);
    }
    for (name, help, results) in [
        ("tieback_unwind_total", "Stack walks by result.", &telemetry.unwind),
        ("tieback_symbolize_total", "Look-ups of addresses by result.", &telemetry.symbolize),
    ] {
        for (result, count) in results {
            families.counter(name, help, &[("result", result.as_str())], *count as f64);
        }
    }
    for (metric, count) in &published.snapshot.bounds.series_capped {
        let help = "Series left out by the series budget, summed over ticks.";
        families.counter("tieback_series_capped_total", help, &[("metric", metric.name())], *count as f64);
    }
    let none: Labels<'_> = &[];
    families.counter("tieback_agent_cpu_seconds_total", "CPU time of the agent.", none, telemetry.cpu_seconds);
    let resident = telemetry.resident_bytes as f64;
    families.gauge("tieback_agent_resident_bytes", "Resident memory of the agent.", none, resident);
    let maps = telemetry.bpf_map_bytes as f64;
    families.gauge("tieback_agent_bpf_map_bytes", "Memory of the agent's BPF maps.", none, maps);
    families.counter("tieback_ticks_total", "Finished ticks.", none, telemetry.ticks as f64);
    let help = "Seconds of work of all ticks, reading to publishing.";
    families.counter("tieback_agent_tick_seconds_total", help, none, telemetry.tick_seconds_total);
    let help = "Share of the time in which the system call hooks are attached.";
    families.gauge("tieback_governor_syscall_duty_ratio", help, none, telemetry.governor.syscall_duty);
    let help = "Present cost as a share of the host's CPUs: calibrated hooks plus the agent's own CPU.";
    families.gauge("tieback_governor_cost_ratio", help, none, telemetry.governor.cost_ratio);
    let end = published.snapshot.at_unix_ns as f64 / S;
    families.gauge("tieback_window_end_timestamp_seconds", "Unix time of the last finished tick.", none, end);
}

/// Renders everything.
pub fn render(published: &Published) -> Result<Vec<u8>> {
    let mut families = Families::default();
    own_series(&mut families, published);
    for service in &published.snapshot.services {
        service_series(&mut families, service);
    }
    let mut text = Vec::with_capacity(1 << 16);
    let families: Vec<MetricFamily> = families.0.into_values().collect();
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;

    #[test]
    fn histograms_are_cumulative_and_in_seconds() {
        let published = Published { snapshot: fixture::snapshot(), ..Published::default() };
        let text = String::from_utf8(render(&published).unwrap()).unwrap();
        assert!(text.contains("# TYPE tieback_wait_seconds_total counter"), "{text}");
        let mut last: Option<(String, f64)> = None;
        let mut buckets = 0;
        for line in text.lines().filter(|line| line.contains("_bucket{")) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let stem = series.split(",le=").next().unwrap().to_owned();
            let value: f64 = value.parse().unwrap();
            if let Some((before, count)) = &last
                && *before == stem
            {
                assert!(value >= *count, "{line}");
                buckets += 1;
            }
            last = Some((stem, value));
        }
        assert!(buckets > 0);
    }
}
