//! Pages for people: rendered here, no script, nothing loaded from elsewhere.

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::request::encode;
use crate::aggregate::{Cause, ServiceSnapshot, Snapshot, StackKind};
use crate::load::status::{ProbeStatus, Verdict, by_probe};
use crate::telemetry::Telemetry;

const STYLE: &str = include_str!("style.css");

/// Where a thread's time can go, in the order of the columns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spent {
    Cpu,
    /// A hypervisor had the CPU.
    Steal,
    Wait(Cause),
}

const COLUMNS: &[Spent] = &[
    Spent::Cpu,
    Spent::Steal,
    Spent::Wait(Cause::Runqueue),
    Spent::Wait(Cause::Disk),
    Spent::Wait(Cause::Fault),
    Spent::Wait(Cause::Network),
    Spent::Wait(Cause::Ipc),
    Spent::Wait(Cause::Lock),
    Spent::Wait(Cause::Other),
    Spent::Wait(Cause::Sleep),
    Spent::Wait(Cause::Idle),
];

impl Spent {
    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Steal => "steal",
            Self::Wait(cause) => cause.as_str(),
        }
    }

    /// Waiting that nobody wants to get rid of; listed, but not part of the bar.
    const fn by_choice(self) -> bool {
        matches!(self, Self::Wait(Cause::Sleep | Cause::Idle))
    }

    /// Nanoseconds of the last window.
    fn of(self, service: &ServiceSnapshot) -> u64 {
        match self {
            Self::Cpu => service
                .last
                .cpu_user_ns
                .saturating_add(service.last.cpu_system_ns),
            Self::Steal => service.last.cpu_steal_ns,
            Self::Wait(cause) => service.last.wait_ns[cause.index()],
        }
    }
}

fn busy_ns(service: &ServiceSnapshot) -> u64 {
    COLUMNS
        .iter()
        .filter(|spent| !spent.by_choice())
        .map(|spent| spent.of(service))
        .sum()
}

/// Three digits are enough to compare.
fn rate(ns: u64, length: f64) -> String {
    let rate = ns as f64 / 1e9 / length;
    match rate {
        _ if ns == 0 => String::new(),
        rate if rate >= 100.0 => format!("{rate:.0}"),
        rate if rate >= 10.0 => format!("{rate:.1}"),
        rate if rate >= 0.001 => format!("{rate:.3}"),
        _ => "<0.001".into(),
    }
}

/// `/`: every service, the busiest first, with where its time went.
pub(super) fn services(snapshot: &Snapshot, telemetry: &Telemetry, programs: &[ProbeStatus]) -> Markup {
    let mut services: Vec<&ServiceSnapshot> = snapshot.services.iter().collect();
    services.sort_by(|a, b| {
        busy_ns(b)
            .cmp(&busy_ns(a))
            .then_with(|| a.service.cmp(&b.service))
    });
    let body = html! {
        (trouble(telemetry, programs))
        @if snapshot.ticks == 0 {
            p { "The first window is not finished yet; reload in a few seconds." }
        } @else {
            p.note {
                (services.len()) " services; the last window ended at " (time(snapshot.at_unix_ns)) " and lasted "
                (format!("{:.1}", snapshot.length_seconds())) " s. The numbers are seconds per second, summed over "
                "threads: 1 is one thread all the time."
            }
            div.wide {
                table {
                    thead {
                        tr {
                            th { "service" }
                            th.bar-head { "where time went" }
                            @for spent in COLUMNS { th.number { (spent.name()) } }
                            th.number { "procs" }
                            th { "profiles" }
                        }
                    }
                    tbody {
                        @for service in &services { (row(service, snapshot.length_seconds())) }
                    }
                }
            }
            (legend())
        }
    };
    layout("services", telemetry, &body)
}

fn row(service: &ServiceSnapshot, length: f64) -> Markup {
    let identity = &service.service;
    html! {
        tr {
            th scope="row" {
                @if !identity.namespace.is_empty() { span.namespace { (identity.namespace) "/" } }
                (identity.name)
                @if !identity.version.is_empty() { " " span.version { (identity.version) } }
            }
            td { (bar(service, length)) }
            @for spent in COLUMNS {
                td.number { (rate(spent.of(service), length)) }
            }
            td.number { (service.totals.processes) }
            td.links {
                @for kind in StackKind::ALL.iter().filter(|kind| shown(service, **kind)) {
                    a href=(profile_url(service, *kind, "svg")) { (kind.as_str()) } " "
                }
                a href=(profile_url(service, StackKind::Cpu, "pprof")) { "pprof" }
            }
        }
    }
}

/// Whether a service has such a profile: allocations are watched of chosen services only.
fn shown(service: &ServiceSnapshot, kind: StackKind) -> bool {
    match kind {
        StackKind::Alloc | StackKind::AllocObjects => service.totals.alloc_objects > 0,
        StackKind::AllocLive => service.totals.alloc_live_bytes > 0,
        _ => true,
    }
}

fn bar(service: &ServiceSnapshot, length: f64) -> Markup {
    let busy = busy_ns(service);
    html! {
        div.bar {
            @for spent in COLUMNS.iter().filter(|spent| !spent.by_choice()) {
                @let ns = spent.of(service);
                @if ns > 0 {
                    span class=(format!("fill {}", spent.name()))
                        style=(format!("width:{:.2}%", ns as f64 * 100.0 / busy as f64))
                        title=(format!("{} {}", spent.name(), rate(ns, length))) {}
                }
            }
        }
    }
}

fn legend() -> Markup {
    html! {
        p.legend {
            @for spent in COLUMNS.iter().filter(|spent| !spent.by_choice()) {
                span class=(format!("key {}", spent.name())) {} (spent.name()) " "
            }
        }
        p.note { "The bar leaves out what threads chose to wait for (sleep, idle)." }
    }
}

/// What keeps the numbers from being complete.
fn trouble(telemetry: &Telemetry, programs: &[ProbeStatus]) -> Markup {
    let probes = by_probe(programs);
    html! {
        @if telemetry.governor.killed {
            p.trouble { "The kill switch is on: everything is detached." }
        }
        @for probe in probes.iter().filter(|probe| matches!(probe.verdict, Verdict::Broken | Verdict::Unsupported)) {
            p.trouble { "Probe " b { (probe.probe) } " is " (probe.verdict.as_str()) ": " (probe.reason) }
        }
    }
}

fn profile_url(service: &ServiceSnapshot, kind: StackKind, format: &str) -> String {
    let identity = &service.service;
    let namespace = if identity.namespace.is_empty() {
        "-".into()
    } else {
        encode(&identity.namespace)
    };
    let version = if identity.version.is_empty() {
        String::new()
    } else {
        format!("&version={}", encode(&identity.version))
    };
    format!(
        "/services/{namespace}/{}/profile/{}?format={format}&since=5m{version}",
        encode(&identity.name),
        kind.as_str()
    )
}

fn time(unix_ns: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(unix_ns)).to_string()
}

fn layout(title: &str, telemetry: &Telemetry, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Tieback: " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Tieback" }
                    nav {
                        a href="/" { "services" } " "
                        a href="/status" { "status" } " "
                        a href="/metrics" { "metrics" } " "
                        a href="/api/v1/services" { "API" }
                    }
                }
                main { (body) }
                footer { "tieback " (telemetry.version) }
            }
        }
    }
}
