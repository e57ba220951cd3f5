//! What a recording leaves: a file in a format of other tools, and a summary for a person.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::allocations::bytes;
use super::profile::{self, Profile};
use crate::aggregate::{
    Cause, Owner, ProfileQuery, Service, ServiceSnapshot, Snapshot, StackKind, WindowProfile,
};
use crate::load::status::{ProbeStatus, Verdict, by_probe};
use crate::telemetry::{AllocSource, AllocTelemetry, Telemetry};

/// Lines of code for each signal.
const TOP: usize = 6;

/// A number of a service.
type Pick<'a> = &'a dyn Fn(&ServiceSnapshot) -> u64;

/// Formats of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// All signals, as values of the same stacks.
    Pprof,
    /// One signal.
    Folded,
    /// One signal.
    Svg,
}

impl FileFormat {
    /// What a file's name asks for; the error lists what would have been valid.
    pub fn of(path: &Path) -> Result<Self, String> {
        let name = path.to_string_lossy();
        let known = [
            (".pb.gz", Self::Pprof),
            (".pprof", Self::Pprof),
            (".folded", Self::Folded),
            (".svg", Self::Svg),
        ];
        known
            .into_iter()
            .find(|(end, _)| name.ends_with(end))
            .map(|(_, format)| format)
            .ok_or_else(|| {
                format!(
                    "{name:?} must end in .pb.gz or .pprof (pprof), .folded (folded stacks) or .svg (flame graph)"
                )
            })
    }
}

/// What was recorded.
pub struct Recorded<'a> {
    /// What to call it.
    pub title: &'a str,
    /// `service_namespace` that it was counted under.
    pub namespace: &'a str,
    /// `service_name`.
    pub name: &'a str,
    /// `duty` or `full` where allocations were watched.
    pub alloc: Option<&'a str>,
    /// After the last tick.
    pub snapshot: &'a Snapshot,
    /// The same.
    pub telemetry: &'a Telemetry,
    /// The same.
    pub probes: &'a [ProbeStatus],
}

impl Recorded<'_> {
    fn found(&self) -> Vec<&ServiceSnapshot> {
        self.snapshot.find(self.namespace, self.name).collect()
    }

    /// Whether anything of it was seen.
    #[must_use]
    pub fn seen(&self) -> bool {
        !self.found().is_empty()
    }

    fn windows(&self, kind: StackKind) -> Option<WindowProfile> {
        self.snapshot.profile(&ProfileQuery {
            namespace: self.namespace,
            name: self.name,
            version: None,
            kind,
            since: Duration::MAX,
            idle: false,
        })
    }

    fn watched(&self) -> Option<&AllocTelemetry> {
        let mut all = self.telemetry.alloc.iter();
        all.find(|watched| watched.namespace == self.namespace && watched.service == self.name)
    }

    /// Some process said itself what it allocates.
    fn by_runtime(&self) -> bool {
        self.watched()
            .is_some_and(|watched| watched.from.contains(&AllocSource::Runtime))
    }

    fn kinds(&self) -> impl Iterator<Item = StackKind> {
        let (watched, full) = (
            self.alloc.is_some(),
            self.alloc == Some("full") || self.by_runtime(),
        );
        StackKind::ALL.iter().copied().filter(move |kind| match kind {
            StackKind::Alloc | StackKind::AllocObjects => watched,
            StackKind::AllocLive => full,
            _ => true,
        })
    }

    fn profiles(&self, kind: StackKind) -> Vec<Profile> {
        let of_version = self.found();
        let version = match of_version.as_slice() {
            [one] => one.service.version.clone(),
            _ => String::new(),
        };
        let service = Service {
            name: self.title.to_owned(),
            namespace: String::new(),
            version,
        };
        let windows = self.windows(kind).into_iter();
        windows.flat_map(|one| Profile::all(&service, &one)).collect()
    }

    /// The file's content; `signal` is what a format shows that shows one only.
    pub fn file(&self, format: FileFormat, signal: StackKind) -> Result<Vec<u8>> {
        let one = || self.profiles(signal).into_iter().take(1);
        match format {
            FileFormat::Pprof => {
                let all: Vec<Profile> = self.kinds().flat_map(|kind| self.profiles(kind)).collect();
                profile::pprof(&all)
            }
            FileFormat::Folded => Ok(one()
                .map(|one| profile::folded(&one))
                .collect::<String>()
                .into_bytes()),
            FileFormat::Svg => one()
                .next()
                .map_or_else(|| Ok(Vec::new()), |one| profile::svg(&one)),
        }
    }

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
        let mut by_code: BTreeMap<(String, &Owner), u64> = BTreeMap::new();
        let windows = self.windows(kind);
        for sample in windows.iter().flat_map(|windows| &windows.samples) {
            let key = (sample.detail.waited_for(), &sample.stack.owner);
            *by_code.entry(key).or_default() += sample.value;
        }
        let least = by_code.values().sum::<u64>() / 1000;
        let mut by_code: Vec<_> = by_code.into_iter().filter(|(_, value)| *value > least).collect();
        by_code.sort_by_key(|(_, value)| std::cmp::Reverse(*value));
        for ((cause, owner), value) in by_code.into_iter().take(TOP) {
            let file = match &*owner.file {
                "" => String::new(),
                file => format!(" ({file})"),
            };
            let space = if cause.is_empty() { "" } else { " " };
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{:>16}  {cause}{space}{}{file}", show(value), owner.function);
        }
    }

    /// What is missing from the numbers.
    fn losses(&self, out: &mut String) {
        for probe in by_probe(self.probes) {
            if matches!(probe.verdict, Verdict::Broken | Verdict::Unsupported) {
                line(
                    out,
                    "missing",
                    &format!("{} ({}): {}", probe.probe, probe.verdict.as_str(), probe.reason),
                );
            }
        }
        let dropped = self.snapshot.bounds.window_entries_dropped;
        if dropped > 0 {
            line(
                out,
                "lost",
                &format!("{dropped} stacks of the beginning, for which there was no memory"),
            );
        }
        for ((probe, why), count) in self.telemetry.lost.iter().filter(|(_, count)| **count > 0) {
            line(
                out,
                "lost",
                &format!("{probe} {why}: {count} (of all programs of this host)"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;
    use crate::export::http::tests::facts::{probes, telemetry};

    fn recorded<'a>(
        snapshot: &'a Snapshot,
        telemetry: &'a Telemetry,
        probes: &'a [ProbeStatus],
    ) -> Recorded<'a> {
        Recorded {
            title: "shop",
            namespace: "prod",
            name: "shop",
            alloc: Some("full"),
            snapshot,
            telemetry,
            probes,
        }
    }

    #[test]
    fn the_name_tells_the_format() {
        for (name, format) in [
            ("a/b.pb.gz", FileFormat::Pprof),
            ("b.pprof", FileFormat::Pprof),
            ("b.folded", FileFormat::Folded),
            ("b.c.svg", FileFormat::Svg),
        ] {
            assert_eq!(FileFormat::of(Path::new(name)), Ok(format));
        }
        let error = FileFormat::of(Path::new("b.png")).unwrap_err();
        assert!(error.contains(".pb.gz") && error.contains(".svg"), "{error}");
    }

    #[test]
    fn the_summary_tells_the_code_and_what_is_missing() {
        let (snapshot, telemetry, probes) = (fixture::snapshot(), telemetry(), probes());
        let recorded = recorded(&snapshot, &telemetry, &probes);
        assert!(recorded.seen());
        let summary = recorded.summary();
        for wanted in [
            "cpu ",
            "waits ",
            "disk ",
            "shop::",
            "(shop.rs)",
            "allocations ",
            "mode full",
            "lost ",
        ] {
            assert!(summary.contains(wanted), "no {wanted:?} in\n{summary}");
        }
        let none = Recorded {
            name: "none",
            ..recorded
        };
        assert!(!none.seen());
    }

    #[test]
    fn one_file_holds_all_signals() {
        let (snapshot, telemetry, probes) = (fixture::snapshot(), telemetry(), probes());
        let recorded = recorded(&snapshot, &telemetry, &probes);
        let kinds: Vec<StackKind> = recorded.kinds().collect();
        assert_eq!(kinds, StackKind::ALL);
        let without = Recorded {
            alloc: None,
            ..recorded
        };
        assert!(without.kinds().all(|kind| kind != StackKind::Alloc));
        let folded = without.file(FileFormat::Folded, StackKind::Cpu).unwrap();
        let want = profile::folded(&without.profiles(StackKind::Cpu)[0]);
        assert_eq!(String::from_utf8(folded).unwrap(), want);
        assert!(!want.is_empty());
    }
}
