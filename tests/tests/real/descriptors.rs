//! Descriptors that programs in interpreters leak.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tieback_tests::agent::Agent;
use tieback_tests::leak::Leak;
use tieback_tests::runtime::{PerfMap, Runtime};

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

/// The line of a program that has this text.
fn line(program: &str, text: &str) -> Result<usize> {
    let at = program.lines().position(|line| line.contains(text));
    Ok(1 + at.with_context(|| format!("no line with {text}"))?)
}

#[test]
fn a_leak_in_python_is_found_with_its_function_and_line() -> Result<()> {
    let agent = Agent::start(&[])?;
    let line = line(include_str!("../../programs/leak.py"), "KEPT.append(")?;
    for exe in Runtime::pythons()? {
        let mut command = Command::new(&exe);
        // Since 3.12, each function then has code of its own, which is no frame of its own.
        command.args(["-B", "-X", "perf"]).arg(program("leak.py"));
        let mut leak = Leak::found(&agent, "leak-python", command)?;
        let _map = PerfMap::of(leak.pid());
        let said = leak.findings().join("\n");
        eprintln!("{}: {said}", exe.display());
        assert_eq!(leak.functions(), ["leak_one"], "nothing that is closed is blamed");
        let code = format!(" descriptors (device) a second, from `leak_one` (leak.py:{line}), limit ");
        ensure!(said.contains(&code), "{said}");
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
        for stack in stacks.lines() {
            assert_eq!(calls(stack), ["<module>", "serve", "leak_one"], "{stack}");
            assert!(!stack.starts_with("[truncated]"), "{stack}");
        }
    }
    Ok(())
}

/// The leak is in a thread, and in a function that C code calls, among code that opens and closes in both threads.
#[test]
fn a_leak_in_a_thread_of_python_is_found_with_all_its_callers() -> Result<()> {
    let text = include_str!("../../programs/leak_threads.py");
    let [leaks, calls, serves] = ["# the leak", "# the call", "# the thread"].map(|mark| line(text, mark));
    let (leaks, calls, serves) = (leaks?, calls?, serves?);
    let agent = Agent::start(&[])?;
    for exe in Runtime::pythons()? {
        let mut command = Command::new(&exe);
        command.arg("-B").arg(program("leak_threads.py"));
        let mut leak = Leak::found(&agent, "leak-threads", command)?;
        let said = leak.findings().join("\n");
        eprintln!("{}: {said}", exe.display());
        assert_eq!(
            leak.functions(),
            ["Store.load"],
            "nothing that is closed is blamed"
        );
        let code =
            format!(" descriptors (device) a second, from `Store.load` (leak_threads.py:{leaks}), limit ");
        ensure!(said.contains(&code), "{said}");
        let opener = &leak.report["openers"][0];
        assert_eq!(
            (&opener["file"], &opener["line"]),
            (&json!("leak_threads.py"), &json!(leaks))
        );

        let (leaked, scrape) = leak.stop(&agent)?;
        let labels = [
            ("service_name", leak.service.as_str()),
            ("file", "leak_threads.py"),
        ];
        let [grown, open] = ["tieback_code_fd_growth_total", "tieback_code_open_fds"]
            .map(|name| scrape.code(name, &labels, "Store.load"));
        let all = scrape.sum("tieback_fd_growth_total", &labels[..1]);
        assert!(grown > 20.0 && grown <= all, "{grown} of {all}");
        assert!(open > 20.0 && open <= leaked, "{open} of {leaked}");

        let stacks = leak.places(&agent)?;
        ensure!(!stacks.is_empty(), "no stacks");
        for stack in stacks {
            let python = stack.iter().filter(|(_, file, _)| file.ends_with(".py"));
            let found: Vec<_> = python
                .map(|(function, file, line)| {
                    let name = file.rsplit('/').next().unwrap_or_default();
                    // The standard library's lines are those of its version.
                    let line = if name == "threading.py" { 0 } else { *line as usize };
                    (function.as_str(), name, line)
                })
                .collect();
            let expected = [
                ("Store.load", "leak_threads.py", leaks),
                ("handle", "leak_threads.py", calls),
                ("worker", "leak_threads.py", serves),
                ("Thread.run", "threading.py", 0),
                ("Thread._bootstrap_inner", "threading.py", 0),
                ("Thread._bootstrap", "threading.py", 0),
            ];
            assert_eq!(found, expected, "{stack:?}");
            let functions = || stack.iter().map(|(function, ..)| function.as_str());
            ensure!(
                functions().all(|name| name != "_PyEval_EvalFrameDefault"),
                "{stack:?}"
            );
            assert_eq!(functions().next_back(), Some("clone3"), "{stack:?}");
        }
    }
    Ok(())
}
