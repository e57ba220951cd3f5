//! `/`: services, where their time went in the last window, and links to their profiles.

use maud::{DOCTYPE, Markup, html};

use super::Published;
use crate::aggregate::{Cause, ServiceSnapshot};

const STYLE: &str = "body{font:15px system-ui;margin:2rem;color-scheme:light dark}table{border-collapse:collapse}\
th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #8884}th:first-child,td:first-child{text-align:left}\
.v{opacity:.6}.z{opacity:.3}a{margin-right:.5rem}";

/// Namespace as it stands in a path; an empty one is `-`.
pub(super) fn namespace(namespace: &str) -> &str {
    if namespace.is_empty() { "-" } else { namespace }
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut path, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
        path
    })
}

fn cell(ns: u64, seconds: f64) -> Markup {
    let rate = ns as f64 / 1e9 / seconds;
    html! { td class=(if rate < 0.0005 { "z" } else { "" }) { (format!("{rate:.3}")) } }
}

fn row(service: &ServiceSnapshot, seconds: f64) -> Markup {
    let identity = &service.service;
    let base =
        format!("/services/{}/{}/profile", encoded(namespace(&identity.namespace)), encoded(&identity.name));
    let last = &service.last;
    html! {
        tr {
            td {
                @if !identity.namespace.is_empty() { (identity.namespace) "/" }
                strong { (identity.name) } " " span.v { (identity.version) }
            }
            td { (service.totals.processes) }
            (cell(last.cpu_user_ns + last.cpu_system_ns, seconds))
            @for cause in Cause::ALL { (cell(last.wait_ns[cause.index()], seconds)) }
            td {
                @for kind in ["wait", "cpu", "syscall", "memory", "conn"] { a href=(format!("{base}/{kind}")) { (kind) } }
            }
        }
    }
}

/// The page.
pub(super) fn services(published: &Published) -> Markup {
    let snapshot = &published.snapshot;
    let seconds = snapshot.length_seconds();
    html! {
        (DOCTYPE)
        html lang="en" {
            head { meta charset="utf-8"; title { "Tieback" } style { (maud::PreEscaped(STYLE)) } }
            body {
                h1 { "Services" }
                p {
                    "Seconds per second of all threads together, over the last " (format!("{seconds:.0}")) " s. "
                    a href="/status" { "status" } a href="/metrics" { "metrics" } a href="/api/v1/services" { "JSON" }
                }
                table {
                    tr {
                        th { "service" } th { "processes" } th { "cpu" }
                        @for cause in Cause::ALL { th { (cause.as_str()) } }
                        th { "profiles" }
                    }
                    @for service in &snapshot.services { (row(service, seconds)) }
                }
            }
        }
    }
}
