//! Descriptors: counted whatever brings or takes them, and charged to the code that leaks them.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::chains::Chains;
use tieback_tests::leak::Leak;
use tieback_tests::program::Program;

/// Descriptors of the processes that a step names, as `/proc` lists them.
fn listed(facts: &Value) -> Result<f64> {
    let pids = facts["pids"].as_array().context("no pids")?;
    let each = pids
        .iter()
        .map(|pid| std::fs::read_dir(format!("/proc/{pid}/fd")));
    let mut all = 0;
    for dir in each {
        all += dir.context("a process is gone")?.count();
    }
    Ok(all as f64)
}

#[test]
fn descriptors_are_what_proc_lists_whatever_brings_or_takes_them() -> Result<()> {
    let agent = Agent::start(&["--min-age", "0s"])?;
    let (mut program, mut facts) = Program::start(&["fd-steps"])?;
    let service = program.service.clone();
    agent.wait_for_service(&service)?;
    let mut seen = Vec::new();
    for next in ["dup", "fork", "close_range", "exec", "passed", "closed", ""] {
        let open = agent
            .settled()?
            .sum("tieback_open_fds", &[("service_name", &service)]);
        assert_eq!(open, listed(&facts)?, "before {next}");
        seen.push(open);
        if !next.is_empty() {
            program.go()?;
            facts = program.expect(next)?;
        }
    }
    let more: Vec<f64> = seen.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The file and four copies; all of the parent's once more; two of the parent's; the standard ones and one copy; three.
    let parent = seen[1];
    assert_eq!(more[0], 5.0);
    assert_eq!(more[1], parent);
    assert_eq!(more[2], -2.0);
    assert_eq!(more[3], 4.0);
    assert_eq!(more[4], 3.0);
    assert_eq!(seen[6], parent - 2.0);
    Ok(())
}

#[test]
fn a_leak_is_found_with_its_function_and_line() -> Result<()> {
    let programs = Chains::build()?;
    let agent = Agent::start(&[])?;
    let mut leak = Leak::found(&agent, "leak", Command::new(programs.path("leak")))?;
    let line = 1 + include_str!("../../programs/leak.c")
        .lines()
        .position(|line| line.contains("// the leak"))
        .context("no such line")?;
    let code = format!(" descriptors (device) a second, from `leak_one` (leak.c:{line}), limit ");
    let said = leak.findings();
    assert!(said.len() == 1 && said[0].contains(&code), "{said:?}");
    assert_eq!(leak.functions(), ["leak_one"], "nothing that is closed is blamed");

    let (leaked, scrape) = leak.stop(&agent)?;
    let labels = [("service_name", leak.service.as_str())];
    let [grown, open] = ["tieback_code_fd_growth_total", "tieback_code_open_fds"]
        .map(|name| scrape.code(name, &labels, "leak_one"));
    let all = scrape.sum("tieback_fd_growth_total", &labels);
    assert!(grown > 20.0 && grown <= all, "{grown} of {all}");
    assert!(open > 20.0 && open <= leaked, "{open} of {leaked}");
    let stacks = leak.stacks(&agent)?;
    assert!(
        stacks.lines().any(|stack| stack.contains("main;leak_one;")),
        "{stacks}"
    );
    assert!(
        !stacks.contains("borrow_one") && !stacks.contains("open_and_close"),
        "{stacks}"
    );
    Ok(())
}
