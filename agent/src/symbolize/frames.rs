//! Small facts about frames.

use std::sync::Arc;

use super::process::Process;
use super::{Frame, Outcome, SymbolizerConfig};

/// A return address points behind its call, which may be another function, let alone another line.
pub(super) fn call_site(stopped_at: bool, address: u64) -> u64 {
    address.saturating_sub(u64::from(!stopped_at))
}

/// How many of the innermost frames are those of the program that took the sample, and of how the kernel called it.
pub(super) fn own(kernel: &[Frame]) -> usize {
    const OWN: [&str; 4] = ["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_"];
    let of_bpf = |frame: &Frame| {
        let name = frame.function.as_deref().unwrap_or_default();
        OWN.iter().any(|own| name.starts_with(own))
    };
    kernel.iter().take_while(|frame| of_bpf(frame)).count()
}

pub(super) fn bare(module: &Arc<str>, address: u64) -> Frame {
    Frame {
        function: None,
        file: None,
        line: 0,
        module: Arc::clone(module),
        build_id: None,
        address,
        inlined: false,
        kernel: false,
    }
}

/// Code that no file backs: the runtime's own list may name it.
pub(super) fn generated(
    config: &SymbolizerConfig,
    process: &mut Process,
    pid: u32,
    address: u64,
    path: &Arc<str>,
    frames: &mut Vec<Frame>,
) -> (Outcome, bool) {
    if process.alive && process.perf_map.find(address).is_none() {
        process.perf_map.refresh(config, pid);
    }
    let found = process.perf_map.find(address).cloned();
    let module: Arc<str> = if path.is_empty() {
        "[jit]".into()
    } else {
        Arc::clone(path)
    };
    let outcome = if found.is_some() {
        Outcome::Ok
    } else {
        Outcome::Generated
    };
    let (function, file) = found.map_or((None, None), |found| (Some(found.name), found.file));
    frames.push(Frame {
        function,
        file,
        ..bare(&module, address)
    });
    (outcome, false)
}
