//! `/api/v1/descriptors`: open descriptors of services, the code that opens those which stay, and what a person would say.
//!
//! The shape only ever grows: fields may be added, none changes its meaning.

use std::collections::BTreeMap;

use serde::Serialize;

use super::pools::{digits, duration};
use crate::aggregate::{FdForecast, FdKind, Opener, Owner, ServiceSnapshot, Snapshot};

/// Code that opened less than this share of the descriptors that stay is not named as what leaks.
const WORTH_NAMING: f64 = 0.1;
/// A limit that is reached later than this is not worth a word.
const FAR: f64 = 365.0 * 86_400.0;

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Descriptors<'a> {
    services: Vec<OfService<'a>>,
}

#[derive(Debug, Serialize)]
struct OfService<'a> {
    service: &'a str,
    namespace: &'a str,
    version: &'a str,
    /// Open now by kind, all processes together.
    open: BTreeMap<&'static str, u64>,
    /// Lowest soft limit of a process.
    limit: Option<u64>,
    /// Of the process that reaches its limit first, where the number grows.
    growing: Option<Growing>,
    /// The code that opened those which stay open, sampled while the number grew.
    openers: Vec<OfCode<'a>>,
    findings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Growing {
    pid: u32,
    open: u64,
    limit: u64,
    per_second: f64,
    limit_reached_in_seconds: f64,
}

#[derive(Debug, Serialize)]
struct OfCode<'a> {
    function: &'a str,
    file: &'a str,
    /// 0 when unknown.
    line: u32,
    open: u64,
    kinds: BTreeMap<&'static str, u64>,
    oldest_seconds: f64,
}

fn kinds(counts: &[u64; FdKind::COUNT]) -> BTreeMap<&'static str, u64> {
    let each = FdKind::ALL
        .iter()
        .map(|kind| (kind.as_str(), counts[kind.index()]));
    each.filter(|(_, count)| *count > 0).collect()
}

/// The document for a snapshot: services without a process have no descriptors.
pub(super) fn descriptors(snapshot: &Snapshot) -> Descriptors<'_> {
    let alive = snapshot.services.iter().filter(|s| s.totals.processes > 0);
    Descriptors {
        services: alive.map(one).collect(),
    }
}

fn one(service: &ServiceSnapshot) -> OfService<'_> {
    let totals = &service.totals;
    OfService {
        service: &service.service.name,
        namespace: &service.service.namespace,
        version: &service.service.version,
        open: kinds(&totals.fds),
        limit: (totals.fd_limit > 0).then_some(totals.fd_limit),
        growing: totals.fd_forecast.map(|forecast| Growing {
            pid: forecast.pid,
            open: forecast.open,
            limit: forecast.limit,
            per_second: 1e9 / forecast.each_ns.max(1) as f64,
            limit_reached_in_seconds: forecast.left_ns as f64 / 1e9,
        }),
        openers: service
            .openers
            .iter()
            .map(|opener| {
                let owner = opener.owner.as_ref();
                OfCode {
                    function: owner.map_or("(other)", |owner| &owner.function),
                    file: owner.map_or("", |owner| &owner.file),
                    line: opener.line,
                    open: opener.open,
                    kinds: kinds(&opener.kinds),
                    oldest_seconds: opener.age_ns as f64 / 1e9,
                }
            })
            .collect(),
        findings: totals
            .fd_forecast
            .map_or_else(Vec::new, |forecast| findings(forecast, &service.openers)),
    }
}

/// What a person would say of a number that grows: each code that takes part, and when the limit is reached.
fn findings(forecast: FdForecast, openers: &[Opener]) -> Vec<String> {
    let FdForecast {
        each_ns,
        left_ns,
        limit,
        ..
    } = forecast;
    let (each, left) = (each_ns.max(1) as f64 / 1e9, left_ns as f64 / 1e9);
    let end = if left < FAR {
        format!("limit {limit} is reached in {}", long(left))
    } else {
        format!("limit {limit} is far")
    };
    let all: u64 = openers.iter().map(|opener| opener.open).sum();
    let named = openers.iter().filter(|opener| opener.owner.is_some());
    let said: Vec<String> = named
        .map(|opener| (opener, opener.open as f64 / all.max(1) as f64))
        .filter(|(_, share)| *share >= WORTH_NAMING)
        .map(|(opener, share)| {
            format!(
                "leaks {}, from {}, {end}",
                rate(each / share, kind(opener)),
                code(opener)
            )
        })
        .collect();
    if said.is_empty() {
        let growth = rate(each, None);
        return vec![format!(
            "has ever more descriptors, {growth}, {end}; the code is not known yet"
        )];
    }
    said
}

fn rate(each: f64, kind: Option<&str>) -> String {
    let kind = kind.map_or_else(String::new, |kind| format!(" ({kind})"));
    if each <= 1.0 {
        format!("{} descriptors{kind} a second", digits(1.0 / each))
    } else {
        format!("1 descriptor{kind} every {}", duration(each))
    }
}

/// The kind of nearly all of them.
fn kind(opener: &Opener) -> Option<&'static str> {
    let kinds = FdKind::ALL.iter();
    kinds
        .map(|kind| (kind.as_str(), opener.kinds[kind.index()]))
        .find(|(_, count)| count * 10 >= opener.open * 9)
        .map(|(name, _)| name)
}

fn code(opener: &Opener) -> String {
    let Some(owner) = &opener.owner else {
        return "(other)".into();
    };
    place(owner, opener.line)
}

/// Code for people: the function, and its file without the folders.
pub(super) fn place(owner: &Owner, line: u32) -> String {
    let file = owner.file.rsplit('/').next().unwrap_or_default();
    match (file, line) {
        ("", _) => format!("`{}`", owner.function),
        (file, 0) => format!("`{}` ({file})", owner.function),
        (file, line) => format!("`{}` ({file}:{line})", owner.function),
    }
}

fn long(seconds: f64) -> String {
    match seconds {
        s if s >= 2.0 * 86_400.0 => format!("{:.0} d", s / 86_400.0),
        s if s >= 2.0 * 3600.0 => format!("{:.0} h", s / 3600.0),
        s => duration(s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;

    #[test]
    fn findings_name_what_leaks_and_when_the_limit_is_reached() {
        let snapshot = fixture::snapshot();
        let document = descriptors(&snapshot);
        let said: Vec<&str> = document
            .services
            .iter()
            .flat_map(|service| &service.findings)
            .map(String::as_str)
            .collect();
        assert_eq!(
            said,
            [
                "leaks 1 descriptor (file) every 8 s, from `shop::open_it` (shop.rs:12), limit 1024 is reached in 2 h"
            ]
        );
    }

    #[test]
    fn growth_without_known_code_is_said_too() {
        let forecast = FdForecast {
            left_ns: 90_000_000_000,
            each_ns: 250_000_000,
            open: 664,
            limit: 1024,
            pid: 1,
        };
        assert_eq!(
            findings(forecast, &[]),
            [
                "has ever more descriptors, 4.00 descriptors a second, limit 1024 is reached in 90 s; the code is not known yet"
            ]
        );
    }
}
