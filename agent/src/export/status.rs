//! `/status`: one verdict and reason a probe, what the governor does, what was lost.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Published;

/// For programs.
pub(super) fn as_json(published: &Published) -> Value {
    let telemetry = &published.telemetry;
    let lost: Vec<Value> = telemetry
        .lost
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|((probe, reason), count)| json!({"probe": probe, "reason": reason, "count": count}))
        .collect();
    json!({
        "version": telemetry.version,
        "kernel": telemetry.kernel,
        "ticks": telemetry.ticks,
        "probes": published.probes,
        "governor": {
            "killed": telemetry.governor.killed,
            "syscall_duty": telemetry.governor.syscall_duty,
            "cost_ratio": telemetry.governor.cost_ratio,
            "cost_limit_ratio": telemetry.governor.cost_limit_ratio,
            "reason": telemetry.governor.reason,
        },
        "lost": lost,
        "memory": {
            "resident_bytes": telemetry.resident_bytes,
            "bpf_map_bytes": telemetry.bpf_map_bytes,
            "limit_bytes": telemetry.memory_limit_bytes,
        },
    })
}

/// For people.
pub(super) fn as_text(published: &Published) -> String {
    let telemetry = &published.telemetry;
    let mut text = format!("tieback {} on Linux {}\n\n", telemetry.version, telemetry.kernel);
    for status in &published.probes {
        let _ = writeln!(text, "{:<10} {:<12} {}", status.probe, status.verdict.as_str(), status.reason);
    }
    let governor = &telemetry.governor;
    let _ = write!(
        text,
        "\nsystem call hooks: attached {:.1} % of the time{}{}\ncost: {:.2} % of the host's CPUs (limit {:.2} %)\n",
        governor.syscall_duty * 100.0,
        if governor.reason.is_empty() { "" } else { ": " },
        governor.reason,
        governor.cost_ratio * 100.0,
        governor.cost_limit_ratio * 100.0,
    );
    if governor.killed {
        text.push_str("the kill switch is on: everything is detached\n");
    }
    let _ = writeln!(
        text,
        "memory: {} KiB resident, {} KiB of BPF maps",
        telemetry.resident_bytes >> 10,
        telemetry.bpf_map_bytes >> 10
    );
    for ((probe, reason), count) in telemetry.lost.iter().filter(|(_, count)| **count > 0) {
        let _ = writeln!(text, "lost: {probe} {reason} {count}");
    }
    text
}
