//! What the programs of `chain.c` call, by their shapes and kinds of work.

/// From the entry point to `main`.
pub(super) const ENTRY: [&str; 3] = ["_start", "*", "*"];
/// From the start of a thread.
const THREAD: [&str; 2] = ["*", "*"];

/// Functions from the entry point to the one that calls the leaf.
pub(super) fn shape(shape: &str) -> Vec<&'static str> {
    let mut chain = Vec::new();
    if shape == "thread" {
        chain.extend(THREAD);
        chain.push("thread");
    } else {
        chain.extend(ENTRY);
        chain.push("main");
    }
    match shape {
        "plain" | "exec" => chain.push("plain"),
        "deepest" => {
            chain.push("deepest");
            chain.extend([const { "dive" }; 120]);
            return chain;
        }
        "deep" => {
            chain.push("deep");
            chain.extend([const { "recurse" }; 100]);
        }
        // As many as there is room for: fewer where the leaf has called something.
        "bottomless" => return vec!["[truncated]", "dive.."],
        "alloca" => chain.push("with_alloca"),
        "setjmp" => chain.push("with_setjmp"),
        "signal" | "altstack" => {
            chain.push(if shape == "signal" {
                "in_handler"
            } else {
                "on_other_stack"
            });
            // raise, pthread_kill and what it calls; then the frame that the kernel makes.
            chain.extend(["raised", "+", "on_signal"]);
        }
        "qsort" => chain.extend(["sorted", "+", "compare"]),
        "trap" => chain.extend(["with_trap", "trapped", "*", "on_trap"]),
        "dlopen" => chain.extend(["loaded", "through", "inner"]),
        "dlclose" => chain.extend(["loaded_again", "through", "inner"]),
        _ => {}
    }
    chain.extend(["first", "second", "third"]);
    chain
}

/// The leaf by kind of work, its profile, and the frame below it.
pub(super) fn leaf(work: &str) -> (&'static str, &'static str, Option<&'static str>) {
    match work {
        "cpu" => ("leaf_cpu", "cpu", None),
        "libc" => ("leaf_libc", "cpu", Some("*")),
        "vdso" => ("leaf_vdso", "cpu", Some("*")),
        "plt" => ("leaf_plt", "cpu", Some("*")),
        "sleep" => ("leaf_sleep", "wait", Some("usleep")),
        "pipe" => ("leaf_pipe", "wait", Some("read")),
        "lock" => ("leaf_lock", "wait", Some("pthread_mutex_lock")),
        "connect" => ("leaf_connect", "conn", Some("connect")),
        "fault" => ("leaf_fault", "memory", None),
        _ => ("leaf_syscall", "syscall", Some("getppid")),
    }
}

/// Functions of the programs: where the C library is expected, these are not.
pub(super) const OWN: &[&str] = &[
    "main",
    "plain",
    "deep",
    "recurse",
    "deepest",
    "dive",
    "bottomless",
    "with_alloca",
    "with_setjmp",
    "in_handler",
    "on_other_stack",
    "raised",
    "on_signal",
    "with_trap",
    "trapped",
    "before_trapped",
    "on_trap",
    "sorted",
    "compare",
    "thread",
    "loaded",
    "loaded_again",
    "through",
    "inner",
    "first",
    "second",
    "third",
    "leaf_cpu",
    "leaf_libc",
    "leaf_vdso",
    "leaf_plt",
    "leaf_sleep",
    "leaf_lock",
    "leaf_syscall",
    "leaf_connect",
    "chain::main",
    "[truncated]",
];

/// Functions below which nothing is measured.
pub(super) const BESIDE: &[&str] = &[
    // Where a compiler did not make it part of `warm_up`: the first stacks of a process end at once.
    "spin",
    "warm_up",
    "warm_again",
    "warm_other",
    "warm_before_exec",
    "gate",
    "holder",
    "prepare",
    // The main thread waits for the other.
    "threaded",
    "chain::warm_up",
    "chain::gate",
    "main.warmUp",
    "main.gate",
    // Go's own threads and scheduler.
    "runtime.mstart",
    "runtime.mcall",
    "runtime.rt0_go",
    "runtime.systemstack",
    // Before `main` and after it.
    "[ld-linux-x86-64.so.2]",
    "exit",
    "_Exit",
];
