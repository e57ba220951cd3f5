//! `/status`: how the agent is doing, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::aggregate::Snapshot;
use crate::load::status::{ProbeStatus, by_probe};
use crate::telemetry::Telemetry;

/// Kills for memory that are shown.
const OOM_KILLS: usize = 5;

/// The document; its text form says the same.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: String,
    revision: String,
    kernel: String,
    uptime_seconds: f64,
    /// One line a probe.
    probes: Vec<ProbeLine>,
    /// One entry a program.
    programs: Vec<ProbeStatus>,
    governor: Governor,
    window: Window,
    memory: Memory,
    cpu_seconds: f64,
    /// The kernel hides its symbols (`kernel.kptr_restrict`).
    kernel_symbols_hidden: bool,
    /// Services whose allocations are watched.
    allocations: Vec<Watched>,
    losses: Vec<Loss>,
    limits: Limits,
    /// Processes that the kernel killed for memory, the newest first; `/api/v1/oom_kills` has more of them.
    oom_kills: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Watched {
    service: String,
    namespace: String,
    mode: String,
    processes: usize,
    allocators: Vec<String>,
    duty: f64,
    slowdown: f64,
    refused: Vec<String>,
    not_understood: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ProbeLine {
    #[serde(flatten)]
    status: ProbeStatus,
    /// Its numbers, `None` where it does not run.
    runs: Option<u64>,
    cost_seconds: Option<f64>,
    sampling_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Governor {
    level: u32,
    name: String,
    reason: String,
    syscall_duty: f64,
    cost_ratio: f64,
    cost_limit_ratio: f64,
    kill_switch: bool,
}

#[derive(Debug, Serialize)]
struct Window {
    finished: u64,
    length_seconds: f64,
    /// `None` before the first is finished.
    age_seconds: Option<f64>,
    tick_seconds: f64,
}

#[derive(Debug, Serialize)]
struct Memory {
    resident_bytes: u64,
    bpf_map_bytes: u64,
    limit_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Loss {
    probe: String,
    reason: String,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Limits {
    services: usize,
    series: usize,
    series_limit: usize,
    series_capped: BTreeMap<&'static str, u64>,
    services_expired: u64,
    services_merged: u64,
    window_stacks_dropped: u64,
    samples_unmatched: u64,
}

impl Status {
    pub(super) fn new(
        snapshot: &Snapshot,
        telemetry: &Telemetry,
        programs: &[ProbeStatus],
        now_unix_ns: u64,
    ) -> Self {
        let probes = by_probe(programs).into_iter().map(|status| {
            let numbers = telemetry.probes.get(&status.probe);
            ProbeLine {
                status,
                runs: numbers.map(|numbers| numbers.runs),
                cost_seconds: numbers.map(|numbers| numbers.cost_seconds),
                sampling_ratio: numbers.map(|numbers| numbers.sampling_ratio),
            }
        });
        let governor = &telemetry.governor;
        let bounds = &snapshot.bounds;
        Self {
            version: telemetry.version.clone(),
            revision: telemetry.revision.clone(),
            kernel: telemetry.kernel.clone(),
            uptime_seconds: (now_unix_ns as f64 / 1e9 - telemetry.start_unix_seconds).max(0.0),
            probes: probes.collect(),
            programs: programs.to_vec(),
            governor: Governor {
                level: governor.level,
                name: governor.level_name.clone(),
                reason: governor.reason.clone(),
                syscall_duty: governor.syscall_duty,
                cost_ratio: governor.cost_ratio,
                cost_limit_ratio: governor.cost_limit_ratio,
                kill_switch: governor.killed,
            },
            window: Window {
                finished: snapshot.ticks,
                length_seconds: snapshot.length_ns as f64 / 1e9,
                age_seconds: (snapshot.ticks > 0)
                    .then(|| now_unix_ns.saturating_sub(snapshot.at_unix_ns) as f64 / 1e9),
                tick_seconds: telemetry.tick_seconds,
            },
            memory: Memory {
                resident_bytes: telemetry.resident_bytes,
                bpf_map_bytes: telemetry.bpf_map_bytes,
                limit_bytes: telemetry.memory_limit_bytes,
            },
            cpu_seconds: telemetry.cpu_seconds,
            kernel_symbols_hidden: telemetry.kernel_symbols_hidden,
            allocations: telemetry
                .alloc
                .iter()
                .map(|service| Watched {
                    service: service.service.clone(),
                    namespace: service.namespace.clone(),
                    mode: service.mode.clone(),
                    processes: service.processes,
                    allocators: service.allocators.clone(),
                    duty: service.duty,
                    slowdown: service.slowdown,
                    refused: service.refused.clone(),
                    not_understood: service.not_understood.clone(),
                })
                .collect(),
            losses: telemetry
                .lost
                .iter()
                .map(|((probe, reason), &count)| Loss {
                    probe: probe.clone(),
                    reason: reason.clone(),
                    count,
                })
                .collect(),
            limits: Limits {
                services: snapshot.services.len(),
                series: snapshot.series,
                series_limit: snapshot.series_limit,
                series_capped: bounds
                    .series_capped
                    .iter()
                    .map(|(m, &count)| (m.name(), count))
                    .collect(),
                services_expired: bounds.services_expired,
                services_merged: bounds.services_merged,
                window_stacks_dropped: bounds.window_entries_dropped,
                samples_unmatched: bounds.samples_unmatched,
            },
            oom_kills: super::oom::lines(snapshot).take(OOM_KILLS).collect(),
        }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "tieback {}", self.version)?;
        if !self.revision.is_empty() {
            write!(out, " ({})", self.revision)?;
        }
        writeln!(out, ", kernel {}, up {:.0} s\n", self.kernel, self.uptime_seconds)?;
        if self.governor.kill_switch {
            writeln!(out, "KILL SWITCH ON: everything is detached\n")?;
        }

        writeln!(
            out,
            "{:<12} {:<12} {:>14} {:>12} {:>9}  reason",
            "probe", "verdict", "runs", "cost s", "sampling"
        )?;
        let none = || "-".to_owned();
        for line in &self.probes {
            let status = &line.status;
            let pause = if status.reason.is_empty() && !status.attached {
                "not attached now"
            } else {
                ""
            };
            let row = format!(
                "{:<12} {:<12} {:>14} {:>12} {:>9}  {}{pause}",
                status.probe,
                status.verdict.as_str(),
                line.runs.map_or_else(none, |runs| runs.to_string()),
                line.cost_seconds
                    .map_or_else(none, |seconds| format!("{seconds:.3}")),
                line.sampling_ratio
                    .map_or_else(none, |ratio| format!("{ratio:.3}")),
                status.reason
            );
            writeln!(out, "{}", row.trim_end())?;
        }

        let governor = &self.governor;
        write!(out, "\ngovernor     level {} {}", governor.level, governor.name)?;
        if !governor.reason.is_empty() {
            write!(out, " ({})", governor.reason)?;
        }
        writeln!(
            out,
            "\n             cost {:.3} % of {:.3} %, system call hooks attached {:.1} % of the time",
            governor.cost_ratio * 100.0,
            governor.cost_limit_ratio * 100.0,
            governor.syscall_duty * 100.0
        )?;
        match self.window.age_seconds {
            None => writeln!(out, "window       the first is not finished")?,
            Some(age) => writeln!(
                out,
                "window       {} finished, {:.1} s long, {age:.1} s old, {:.1} ms of work",
                self.window.finished,
                self.window.length_seconds,
                self.window.tick_seconds * 1e3
            )?,
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            out,
            "memory       {:.1} MiB resident + {:.1} MiB BPF maps of {:.1} MiB",
            mib(self.memory.resident_bytes),
            mib(self.memory.bpf_map_bytes),
            mib(self.memory.limit_bytes)
        )?;
        writeln!(out, "cpu          {:.2} s", self.cpu_seconds)?;
        if self.kernel_symbols_hidden {
            writeln!(
                out,
                "symbols      the kernel hides its own from the agent: CAP_SYSLOG shows them"
            )?;
        }

        for (at, watched) in self.allocations.iter().enumerate() {
            let title = if at == 0 { "allocations" } else { "" };
            writeln!(
                out,
                "{title:<12} {}: {}, {} processes, {:.1} % of the time, {:.2} times slower; {}",
                watched.service,
                watched.mode,
                watched.processes,
                watched.duty * 100.0,
                watched.slowdown,
                watched.allocators.join(", ")
            )?;
            for reason in &watched.refused {
                writeln!(out, "             not watched: {reason}")?;
            }
            for function in &watched.not_understood {
                writeln!(out, "             nothing is seen of {function}")?;
            }
        }

        let limits = &self.limits;
        writeln!(
            out,
            "series       {} of {} ({} services)",
            limits.series, limits.series_limit, limits.services
        )?;
        for (metric, count) in &limits.series_capped {
            writeln!(
                out,
                "             left out, summed over windows: {count} of {metric}"
            )?;
        }
        for (count, what) in [
            (
                limits.services_expired,
                "services forgotten after their idle time",
            ),
            (
                limits.services_merged,
                "times that a service was counted as (other)",
            ),
            (
                limits.window_stacks_dropped,
                "stacks of windows given up for memory",
            ),
            (limits.samples_unmatched, "samples that found no exact total"),
        ] {
            if count > 0 {
                writeln!(out, "             {count} {what}")?;
            }
        }

        for (at, kill) in self.oom_kills.iter().enumerate() {
            let title = if at == 0 { "oom kills" } else { "" };
            writeln!(out, "{title:<12} {kill}")?;
        }
        if self.losses.iter().all(|loss| loss.count == 0) {
            return writeln!(out, "losses       none");
        }
        for (at, loss) in self.losses.iter().filter(|loss| loss.count > 0).enumerate() {
            let title = if at == 0 { "losses" } else { "" };
            writeln!(out, "{title:<12} {} {}: {}", loss.probe, loss.reason, loss.count)?;
        }
        Ok(())
    }
}
