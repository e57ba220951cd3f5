//! The metrics of the agent itself.

use std::collections::BTreeMap;

use super::writer::{Family, Type, Value, Writer};
use super::{Scrapes, unwind};
use crate::aggregate::Snapshot;
use crate::load::status::{ProbeStatus, by_probe};
use crate::telemetry::{AllocTelemetry, ProbeTelemetry, Telemetry};

pub(super) struct Own<'a> {
    pub(super) out: &'a mut Writer,
}

impl Own<'_> {
    fn one(&mut self, name: &'static str, kind: Type, help: &'static str, value: Value) {
        self.out.family(Family { name, kind, help });
        self.out.sample(name, "", "", &[], value);
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str, value: Value) {
        self.one(name, Type::Counter, help, value);
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str, value: Value) {
        self.one(name, Type::Gauge, help, value);
    }

    pub(super) fn by<'l, K: IntoIterator<Item = (Vec<(&'static str, &'l str)>, Value)>>(
        &mut self,
        name: &'static str,
        kind: Type,
        help: &'static str,
        samples: K,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.out.family(Family { name, kind, help });
        }
        for (labels, value) in samples {
            self.out.sample(name, "", "", &labels, value);
        }
    }
}

pub(super) fn by_result(
    results: &BTreeMap<String, u64>,
) -> impl Iterator<Item = (Vec<(&'static str, &str)>, Value)> {
    results
        .iter()
        .map(|(result, &count)| (vec![("result", result.as_str())], Value::Int(count)))
}

pub(super) fn write(
    out: &mut Writer,
    snapshot: &Snapshot,
    telemetry: &Telemetry,
    programs: &[ProbeStatus],
    scrapes: Scrapes,
    now_unix_ns: u64,
) {
    let mut own = Own { out };
    own.by(
        "tieback_build_info",
        Type::Gauge,
        "Always 1; what the agent was built from.",
        [(
            vec![
                ("version", telemetry.version.as_str()),
                ("revision", &telemetry.revision),
            ],
            Value::Int(1),
        )],
    );
    probes(&mut own, telemetry, programs);
    unwind::write(&mut own, telemetry);
    own.by(
        "tieback_symbolize_total",
        Type::Counter,
        "Addresses looked up, by result.",
        by_result(&telemetry.symbolize),
    );
    own.by(
        "tieback_owner_total",
        Type::Counter,
        "Stacks by how the owning frame was found (own, executable), or why it is (unknown): all else.",
        by_result(&telemetry.owners),
    );
    own.by(
        "tieback_debug_files_total",
        Type::Counter,
        "Searches for what a stripped file lacks (symbols, lines), by how it was found or why not; a file is searched for anew \
         when it is needed again after a while. `refused`: debug sections are over the limits, so only symbols are used.",
        by_result(&telemetry.debug_files),
    );
    own.by(
        "tieback_debuginfod_requests_total",
        Type::Counter,
        "Debug files asked for at debuginfod servers, by result.",
        by_result(&telemetry.debug_file_requests),
    );
    own.by(
        "tieback_series_capped_total",
        Type::Counter,
        "Series that the budget of series left out, summed over windows.",
        snapshot
            .bounds
            .series_capped
            .iter()
            .map(|(m, &count)| (vec![("metric", m.name())], Value::Int(count))),
    );
    own.gauge(
        "tieback_symbol_bytes",
        "Bytes of symbol tables and debug sections that the agent keeps in memory.",
        Value::Int(telemetry.symbol_bytes),
    );
    own.counter(
        "tieback_wait_samples_total",
        "Waits of which a stack was taken.",
        Value::Int(telemetry.wait_samples),
    );
    own.gauge(
        "tieback_wait_sample_budget",
        "Waits a second of which the agent steers to take a stack, on the whole host.",
        Value::Float(telemetry.wait_sample_budget),
    );
    bounds(&mut own, snapshot);
    governor(&mut own, telemetry);
    agent(&mut own, snapshot, telemetry, scrapes, now_unix_ns);
}

fn probes(own: &mut Own<'_>, telemetry: &Telemetry, programs: &[ProbeStatus]) {
    let probes = by_probe(programs);
    own.by(
        "tieback_probe_status",
        Type::Gauge,
        "Always 1; the verdict on each probe (the reason is on /status).",
        probes.iter().map(|p| {
            (
                vec![("probe", p.probe.as_str()), ("verdict", p.verdict.as_str())],
                Value::Int(1),
            )
        }),
    );
    let by = |pick: fn(&ProbeTelemetry) -> Value| {
        telemetry
            .probes
            .iter()
            .map(move |(name, probe)| (vec![("probe", name.as_str())], pick(probe)))
    };
    own.by(
        "tieback_probe_runs_total",
        Type::Counter,
        "Times that the programs of a probe ran.",
        by(|probe| Value::Int(probe.runs)),
    );
    own.by(
        "tieback_probe_cost_seconds_total",
        Type::Counter,
        "CPU seconds that a probe cost the host: its runs times the cost of a run calibrated at start.",
        by(|probe| Value::Float(probe.cost_seconds)),
    );
    own.by(
        "tieback_sampling_ratio",
        Type::Gauge,
        "Share of the time or of the events that a probe looks at; counts are scaled by its inverse.",
        by(|probe| Value::Float(probe.sampling_ratio)),
    );
    let of = |value: fn(&AllocTelemetry) -> f64| {
        telemetry.alloc.iter().map(move |service| {
            let labels = vec![
                ("service", service.service.as_str()),
                ("namespace", service.namespace.as_str()),
                ("mode", service.mode.as_str()),
            ];
            (labels, Value::Float(value(service)))
        })
    };
    own.by(
        "tieback_alloc_duty_ratio",
        Type::Gauge,
        "Share of the time in which the allocations of a service are watched.",
        of(|service| service.duty),
    );
    own.by(
        "tieback_alloc_slowdown_ratio",
        Type::Gauge,
        "How many times slower a service runs because its allocations are watched; a lower estimate.",
        of(|service| service.slowdown),
    );
    own.by(
        "tieback_lost_total",
        Type::Counter,
        "Events that a probe could not count or deliver, by reason.",
        telemetry.lost.iter().map(|((probe, reason), &count)| {
            (
                vec![("probe", probe.as_str()), ("reason", reason.as_str())],
                Value::Int(count),
            )
        }),
    );
}

fn bounds(own: &mut Own<'_>, snapshot: &Snapshot) {
    let bounds = &snapshot.bounds;
    own.gauge(
        "tieback_services",
        "Services with metrics.",
        Value::Int(snapshot.services.len() as u64),
    );
    own.gauge(
        "tieback_service_series",
        "Series of services.",
        Value::Int(snapshot.series as u64),
    );
    own.gauge(
        "tieback_service_series_limit",
        "Budget of series of services.",
        Value::Int(snapshot.series_limit as u64),
    );
    own.counter(
        "tieback_services_expired_total",
        "Services forgotten because they had no process and no news for their idle time.",
        Value::Int(bounds.services_expired),
    );
    own.counter(
        "tieback_services_merged_total",
        "Times that a service was counted as (other) in a window because there were too many services.",
        Value::Int(bounds.services_merged),
    );
    own.counter(
        "tieback_window_stacks_dropped_total",
        "Stacks of windows given up early for memory; profiles lack them.",
        Value::Int(bounds.window_entries_dropped),
    );
    own.counter(
        "tieback_samples_unmatched_total",
        "Samples that found no exact total to be part of.",
        Value::Int(bounds.samples_unmatched),
    );
}

fn governor(own: &mut Own<'_>, telemetry: &Telemetry) {
    let governor = &telemetry.governor;
    own.gauge(
        "tieback_governor_level",
        "Steps of detail that the agent has given up for its budget; 0 is none.",
        Value::Int(governor.level.into()),
    );
    own.gauge(
        "tieback_syscall_duty_ratio",
        "Share of time in which the system call hooks are attached.",
        Value::Float(governor.syscall_duty),
    );
    own.gauge(
        "tieback_cost_ratio",
        "Cost of hooks and agent as a share of the CPUs of the host.",
        Value::Float(governor.cost_ratio),
    );
    own.gauge(
        "tieback_cost_limit_ratio",
        "Ceiling of tieback_cost_ratio.",
        Value::Float(governor.cost_limit_ratio),
    );
    own.gauge(
        "tieback_kill_switch",
        "1 while the kill switch is on and everything is detached.",
        Value::Int(governor.killed.into()),
    );
}

fn agent(own: &mut Own<'_>, snapshot: &Snapshot, telemetry: &Telemetry, scrapes: Scrapes, now_unix_ns: u64) {
    own.gauge(
        "tieback_agent_start_time_seconds",
        "Start of the agent in seconds since the Unix epoch.",
        Value::Float(telemetry.start_unix_seconds),
    );
    own.counter(
        "tieback_agent_cpu_seconds_total",
        "CPU seconds of the agent.",
        Value::Float(telemetry.cpu_seconds),
    );
    own.gauge(
        "tieback_agent_resident_memory_bytes",
        "Resident memory of the agent in bytes.",
        Value::Int(telemetry.resident_bytes),
    );
    own.gauge(
        "tieback_agent_bpf_map_bytes",
        "Memory of its BPF maps in bytes.",
        Value::Int(telemetry.bpf_map_bytes),
    );
    own.gauge(
        "tieback_agent_memory_limit_bytes",
        "Ceiling of resident memory and BPF maps together in bytes.",
        Value::Int(telemetry.memory_limit_bytes),
    );
    own.counter(
        "tieback_agent_memory_sheds_total",
        "Times that cached symbols were let go because the agent was over its memory limit.",
        Value::Int(telemetry.memory_sheds),
    );
    own.counter(
        "tieback_ticks_total",
        "Finished windows.",
        Value::Int(telemetry.ticks),
    );
    own.gauge(
        "tieback_tick_duration_seconds",
        "Seconds of work for the last window, from reading maps to publishing.",
        Value::Float(telemetry.tick_seconds),
    );
    own.counter(
        "tieback_tick_seconds_total",
        "Seconds of work for all windows.",
        Value::Float(telemetry.tick_seconds_total),
    );
    own.gauge(
        "tieback_window_length_seconds",
        "Length of the last window.",
        Value::Nanos(snapshot.length_ns),
    );
    if snapshot.ticks > 0 {
        own.gauge(
            "tieback_window_age_seconds",
            "Seconds since the end of the last window.",
            Value::Nanos(now_unix_ns.saturating_sub(snapshot.at_unix_ns)),
        );
    }
    own.counter(
        "tieback_scrapes_total",
        "Scrapes answered before this one.",
        Value::Int(scrapes.count),
    );
    own.gauge(
        "tieback_scrape_duration_seconds",
        "Seconds that rendering the scrape before this one took.",
        Value::Nanos(scrapes.last_ns),
    );
}
