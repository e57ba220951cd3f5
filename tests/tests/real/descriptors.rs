//! Descriptors that programs in interpreters leak.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::leak::Leak;
use tieback_tests::runtime::{PerfMap, Runtime};

/// Whether this CPython lists its functions in a perf map when it is asked to: since 3.12, and where it was built so.
fn has_perf_map(exe: &Path) -> Result<bool> {
    let code = "import sys; sys.exit(not sys.is_stack_trampoline_active())";
    let output = Command::new(exe).args(["-X", "perf", "-c", code]).output()?;
    Ok(output.status.success())
}

#[test]
fn a_leak_in_python_is_found_by_function_with_a_perf_map_and_by_native_frames_without() -> Result<()> {
    let agent = Agent::start(&[])?;
    for exe in Runtime::pythons()? {
        let named = has_perf_map(&exe)?;
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/leak.py");
        let mut command = Command::new(&exe);
        command.args(["-B", "-X", "perf"]).arg(program);
        let mut leak = Leak::found(&agent, "leak-python", command)?;
        let _map = PerfMap::of(leak.pid());
        let (said, functions) = (leak.findings().join("\n"), leak.functions().join("\n"));
        eprintln!("{}: {said}", exe.display());
        if named {
            assert_eq!(functions, "leak_one", "nothing that is closed is blamed");
            ensure!(
                said.contains(" descriptors (device) a second, from `leak_one` (leak.py), limit "),
                "{said}"
            );
        }
        let (leaked, scrape) = leak.stop(&agent)?;
        let open = scrape.sum("tieback_code_open_fds", &[("service_name", &leak.service)]);
        assert!(open > 20.0 && open <= leaked, "{open} of {leaked}");
        let stacks = leak.stacks(&agent)?;
        ensure!(!stacks.is_empty(), "no stacks");
        // Between two of Python's functions are the interpreter's own.
        let calls = |stack: &str| {
            let frames = stack.split(';');
            let own = frames.filter(|frame| ["<module>", "serve", "leak_one"].contains(frame));
            own.map(str::to_owned).collect::<Vec<_>>()
        };
        for stack in stacks.lines().filter(|_| named) {
            assert_eq!(calls(stack), ["<module>", "serve", "leak_one"], "{stack}");
            assert!(!stack.starts_with("[truncated]"), "{stack}");
        }
    }
    Ok(())
}
