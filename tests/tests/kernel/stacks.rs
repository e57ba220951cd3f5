//! Truth of stacks: programs whose chains of calls are known, frame by frame, compiled in the ways that compilers have.

use anyhow::Result;

use super::chains::{ENTRY, Programs, run};

#[test]
fn stacks_without_frame_pointers_are_exact() -> Result<()> {
    let programs = Programs::build()?;
    let mut cases = Vec::new();
    for work in [
        "cpu", "libc", "vdso", "plt", "sleep", "pipe", "lock", "fault", "syscall", "connect",
    ] {
        cases.push(programs.case("chain", "plain", work));
    }
    for shape in [
        "deep", "alloca", "setjmp", "signal", "altstack", "qsort", "thread", "dlopen", "trap",
    ] {
        cases.push(programs.case("chain", shape, "sleep"));
    }
    run(&cases)
}

#[test]
fn stacks_are_exact_however_a_program_was_built() -> Result<()> {
    let programs = Programs::build()?;
    let mut cases = Vec::new();
    for program in [
        "chain-debug",
        "chain-debug-frame",
        "chain-unoptimized",
        "chain-static",
        "chain-static-pie",
        "chain-no-pie",
        "chain-frame-pointers",
        "chain-cxx",
    ] {
        cases.push(programs.case(program, "deep", "cpu"));
        cases.push(programs.case(program, "signal", "sleep"));
    }
    // No call frame information at all, where the compiler for it is there.
    if programs.0.path("chain-musl").exists() {
        for shape in ["deep", "signal", "qsort"] {
            cases.push(programs.case("chain-musl", shape, "cpu"));
        }
        cases.push(programs.case("chain-musl", "plain", "sleep"));
    }
    run(&cases)
}

#[test]
fn stacks_of_rust_and_go_are_exact() -> Result<()> {
    let programs = Programs::build()?;
    let mut cases = Vec::new();
    // Without unwinding, the compiler's own `main` has no call frame information: its instructions tell.
    for program in ["chain-rust", "chain-rust-abort"] {
        for (work, leaf, callee) in [
            ("cpu", "chain::leaf_cpu", None),
            ("sleep", "chain::leaf_sleep", Some("sleep")),
        ] {
            let mut chain = ENTRY.to_vec();
            chain.extend([
                "main",
                "+",
                "chain::main",
                "chain::first",
                "chain::second",
                "<chain::Shape as chain::Through>::through",
                "chain::second::{{closure}}",
                "chain::third",
                leaf,
            ]);
            cases.push(programs.other(program, work, &chain, callee));
        }
    }
    // Without symbols and call frame information, Go's own table has both.
    for program in ["chain-go", "chain-go-stripped"] {
        for (work, leaf, callee) in [
            ("cpu", "main.leafCPU", None),
            ("sleep", "main.leafSleep", Some("syscall.")),
        ] {
            let chain = [
                "*",
                "runtime.main",
                "main.main",
                "main.first",
                "main.second",
                "main.first.func1",
                "main.third",
                leaf,
            ];
            cases.push(programs.other(program, work, &chain, callee));
        }
    }
    run(&cases)
}
