//! What a recording leaves: a file in a format of other tools, and a summary for a person.

mod summary;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::profile::{self, Profile};
use crate::aggregate::{ProfileQuery, Service, ServiceSnapshot, Snapshot, StackKind, WindowProfile};
use crate::load::status::ProbeStatus;
use crate::telemetry::{AllocSource, AllocTelemetry, Telemetry};

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
            "4.000 s  disk shop::save (shop.rs), 4.000 s of it for want of memory",
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
