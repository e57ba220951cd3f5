//! What the agent says of itself where pages are tested, and the golden files.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::super::Sources;
use crate::aggregate::Snapshot;
use crate::load::status::{ProbeStatus, Verdict};
use crate::telemetry::{
    AllocSource, AllocTelemetry, FirstStacks, GovernorTelemetry, ProbeTelemetry, Telemetry, UnwindTelemetry,
};

/// Compares with a file in `fixtures/golden`; `UPDATE_GOLDEN=1` writes it instead.
pub(in crate::export) fn assert_golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/golden")
        .join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("make the directory");
        std::fs::write(&path, text).expect("write the golden file");
        return;
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file; make it with UPDATE_GOLDEN=1");
    for (number, (is, should)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(is, should, "{name}:{}", number + 1);
    }
    assert_eq!(text.len(), golden.len(), "{name}: one is longer");
}

pub(in crate::export) fn probes() -> Vec<ProbeStatus> {
    let probe = |probe: &str, program: &str, verdict, reason: &str| ProbeStatus {
        probe: probe.into(),
        program: program.into(),
        verdict,
        reason: reason.into(),
        attached: verdict == Verdict::Ok,
    };
    vec![
        probe("wait", "wait_switch", Verdict::Ok, ""),
        probe("wait", "wait_wakeup", Verdict::Ok, ""),
        probe(
            "disk",
            "disk_done",
            Verdict::Unsupported,
            "needs BTF field request.rq_disk <gone>",
        ),
        probe("syscall", "syscall_exit", Verdict::Disabled, "by configuration"),
    ]
}

fn alloc() -> AllocTelemetry {
    AllocTelemetry {
        service: "shop".to_owned(),
        namespace: "prod".to_owned(),
        mode: "full".to_owned(),
        processes: 2,
        allocators: vec!["glibc (/usr/lib/libc.so.6)".to_owned()],
        from: [AllocSource::Probes].into(),
        refused: Vec::new(),
        not_understood: vec!["pvalloc: it jumps to an address that only its run tells".to_owned()],
        duty: 1.0,
        slowdown: 1.25,
        memory_limit_bytes: Some(1 << 30),
    }
}

pub(in crate::export) fn telemetry() -> Telemetry {
    let probe = ProbeTelemetry {
        runs: 1_000_000,
        cost_seconds: 0.25,
        sampling_ratio: 1.0,
    };
    let name = |name: &str| name.to_owned();
    Telemetry {
        version: name("0.1.0"),
        revision: name("abcdef0"),
        start_unix_seconds: 1_700_000_000.0,
        kernel: name("6.18.0"),
        kernel_symbols_hidden: false,
        probes: [(name("wait"), probe)].into(),
        lost: [((name("wait"), name("ring_full")), 5)].into(),
        unwind: [(name("complete"), 90), (name("no_mapping"), 10)].into(),
        first_stacks: first_stacks(),
        unwind_tables: UnwindTelemetry {
            built: 12,
            refused: [(name("no_information"), 1)].into(),
            broken_functions: 2,
            unsupported_rows: [(name("frame_expression"), 18), (name("frame_register"), 1)].into(),
            build_seconds: 0.5,
            row_bytes: 2 << 20,
            interpreters: [(name("walked"), 3), (name("old"), 1)].into(),
        },
        symbolize: [(name("elf"), 700)].into(),
        owners: [(name("own"), 90), (name("no_symbol"), 10)].into(),
        debug_file_requests: [(name("fetched"), 2), (name("not_found"), 9)].into(),
        debug_files: [(name("build_id"), 3), (name("none"), 12)].into(),
        wait_samples: 120,
        wait_sample_budget: 100.0,
        symbol_bytes: 1 << 20,
        cpu_seconds: 1.5,
        resident_bytes: 40 << 20,
        bpf_map_bytes: 60 << 20,
        memory_limit_bytes: 256 << 20,
        memory_sheds: 0,
        ticks: 2,
        tick_seconds: 0.004,
        tick_seconds_total: 0.009,
        alloc: vec![alloc()],
        governor: GovernorTelemetry {
            level: 1,
            level_name: name("fewer stacks"),
            reason: name("cost above target"),
            syscall_duty: 0.125,
            cost_ratio: 0.004,
            cost_limit_ratio: 0.01,
            killed: false,
        },
    }
}

pub(super) fn sources(snapshot: Arc<Snapshot>) -> Sources {
    Sources {
        snapshot: watch::channel(snapshot).1,
        telemetry: watch::channel(Arc::new(telemetry())).1,
        probes: watch::channel(Arc::new(probes())).1,
    }
}

fn first_stacks() -> FirstStacks {
    let mut first = FirstStacks::default();
    for seconds in [0.25, 0.5, 1.5, 90.0] {
        first.add(seconds);
    }
    first
}
