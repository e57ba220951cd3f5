//! What a recording says to a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Recorded;
use crate::aggregate::{Cause, Owner, ServiceSnapshot, StackDetail, StackKind};
use crate::export::allocations::bytes;
use crate::load::status::{Verdict, by_probe};

/// Lines of code for each signal.
const TOP: usize = 6;

/// A number of a service.
type Pick<'a> = &'a dyn Fn(&ServiceSnapshot) -> u64;

impl Recorded<'_> {
    /// Where it waited, used CPUs and allocated, by code.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut out = String::new();
        let found = self.found();
        let sum = |pick: Pick<'_>| found.iter().map(|one| pick(one)).sum::<u64>();
        let (user, system) = (
            sum(&|one| one.totals.cpu_user_ns),
            sum(&|one| one.totals.cpu_system_ns),
        );
        line(
            &mut out,
            "cpu",
            &format!(
                "{} ({} user, {} system)",
                seconds(user + system),
                seconds(user),
                seconds(system)
            ),
        );
        self.code(&mut out, StackKind::Cpu, seconds);
        let causes: Vec<String> = Cause::ALL
            .iter()
            .map(|cause| (cause, sum(&|one| one.totals.wait_ns[cause.index()])))
            .filter(|(_, ns)| *ns > 0)
            .map(|(cause, ns)| format!("{} {}", cause.as_str(), seconds(ns)))
            .collect();
        line(&mut out, "waits", &or_none(&causes.join(", ")));
        self.code(&mut out, StackKind::Wait, seconds);
        let growth = sum(&|one| one.totals.memory_growth_bytes);
        let returned = sum(&|one| one.totals.memory_returned_bytes);
        line(
            &mut out,
            "memory",
            &format!("{} touched first, {} given back", of(growth), of(returned)),
        );
        self.code(&mut out, StackKind::Memory, of);
        if let Some(mode) = self.alloc {
            self.allocations(&mut out, mode, &sum);
        }
        self.losses(&mut out);
        out
    }

    fn allocations(&self, out: &mut String, mode: &str, sum: &dyn Fn(Pick<'_>) -> u64) {
        let (size, objects) = (
            sum(&|one| one.totals.alloc_bytes),
            sum(&|one| one.totals.alloc_objects),
        );
        let watched = self.watched();
        let estimate = match (mode, self.by_runtime()) {
            ("duty", false) => ", rough estimates",
            (_, true) => ", estimates of a runtime's own profile",
            _ => "",
        };
        line(
            out,
            "allocations",
            &format!("{} in {objects} allocations (mode {mode}{estimate})", of(size)),
        );
        self.code(out, StackKind::Alloc, of);
        for allocator in watched.iter().flat_map(|watched| &watched.allocators) {
            line(out, "", &format!("by {allocator}"));
        }
        if mode == "full" || self.by_runtime() {
            let live = self.windows(StackKind::AllocLive);
            let (size, objects) = live.map_or((0, 0), |live| live.sums());
            let lives = format!("about {} in {objects} objects", of(size));
            line(out, "not freed", &lives);
            self.code(out, StackKind::AllocLive, of);
        }
        match watched {
            None => line(
                out,
                "",
                "no process lived long enough for its allocations to be watched",
            ),
            Some(watched) => {
                if watched.slowdown >= 1.05 {
                    let more = format!(
                        "it ran some {:.1} times slower for being watched",
                        watched.slowdown
                    );
                    line(out, "", &more);
                }
                for why in &watched.refused {
                    line(
                        out,
                        "",
                        &format!("of a process, no allocations were watched: {why}"),
                    );
                }
            }
        }
    }

    /// The code with the largest values.
    fn code(&self, out: &mut String, kind: StackKind, show: fn(u64) -> String) {
        let mut by_code: BTreeMap<(&str, &Owner), (u64, u64)> = BTreeMap::new();
        let windows = self.windows(kind);
        for sample in windows.iter().flat_map(|windows| &windows.samples) {
            let cause = sample.detail.cause().map_or("", Cause::as_str);
            let (value, for_memory) = by_code.entry((cause, &sample.stack.owner)).or_default();
            *value += sample.value;
            if let StackDetail::Wait { memory: true, .. } = sample.detail {
                *for_memory += sample.value;
            }
        }
        let least = by_code.values().map(|(value, _)| value).sum::<u64>() / 1000;
        let mut by_code: Vec<_> = by_code
            .into_iter()
            .filter(|(_, (value, _))| *value > least)
            .collect();
        by_code.sort_by_key(|(_, (value, _))| std::cmp::Reverse(*value));
        for ((cause, owner), (value, for_memory)) in by_code.into_iter().take(TOP) {
            let file = match &*owner.file {
                "" => String::new(),
                file => format!(" ({file})"),
            };
            let space = if cause.is_empty() { "" } else { " " };
            let mut text = format!("{cause}{space}{}{file}", owner.function);
            if for_memory > 0 {
                text += &format!(", {} of it for want of memory", show(for_memory));
            }
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{:>16}  {text}", show(value));
        }
    }

    /// What is missing from the numbers.
    fn losses(&self, out: &mut String) {
        let mut say = |what: &str, text: String| line(out, what, &text);
        for probe in by_probe(self.probes) {
            if matches!(probe.verdict, Verdict::Broken | Verdict::Unsupported) {
                let verdict = probe.verdict.as_str();
                say(
                    "missing",
                    format!("{} ({verdict}): {}", probe.probe, probe.reason),
                );
            }
        }
        let dropped = self.snapshot.bounds.window_entries_dropped;
        if dropped > 0 {
            say(
                "lost",
                format!("{dropped} stacks of the beginning, for which there was no memory"),
            );
        }
        for ((probe, why), count) in self.telemetry.lost.iter().filter(|(_, count)| **count > 0) {
            say(
                "lost",
                format!("{probe} {why}: {count} (of all programs of this host)"),
            );
        }
    }
}

fn line(out: &mut String, what: &str, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{what:<12}  {text}");
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none" } else { text }.to_owned()
}

fn of(amount: u64) -> String {
    bytes(amount as f64)
}

fn seconds(ns: u64) -> String {
    format!("{:.3} s", ns as f64 / 1e9)
}
