//! System calls, memory, disk, processes, descriptors, verdicts and a clean end.

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::program::Program;

#[test]
fn exact_mode_counts_every_call_and_errno() -> Result<()> {
    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    let (mut program, _) = Program::start(&["syscalls"])?;
    let before = agent.wait_for_service(&program.service)?;
    program.finish()?;
    let scrape = agent.settled()?;
    let service = ("service_name", program.service.as_str());
    assert_eq!(
        scrape.sum("tieback_syscalls_total", &[service, ("syscall", "getppid")]),
        1e6
    );
    for errno in ["ENOENT", "ENOTDIR"] {
        let labels = [service, ("syscall", "openat"), ("errno", errno)];
        let [old, new] = [&before, &scrape].map(|at| at.sum("tieback_syscall_errors_total", &labels));
        assert_eq!(new - old, 1000.0, "{errno}");
    }
    for probe in ["syscall", "ring"] {
        assert_eq!(
            scrape.sum("tieback_lost_total", &[("probe", probe)]),
            0.0,
            "lost by {probe}"
        );
    }
    Ok(())
}

#[test]
fn growth_is_exact_and_split_by_function() -> Result<()> {
    let agent = Agent::start(&[])?;
    for huge in ["on", "off"] {
        let (mut program, _) = Program::start(&["grow", "--huge", huge])?;
        let labels = [("service_name", program.service.clone())];
        let labels = labels.each_ref().map(|(key, value)| (*key, value.as_str()));
        agent.wait_for_service(&program.service)?;
        let before = agent.settled()?.sum("tieback_memory_growth_bytes_total", &labels);
        program.go()?;
        let grown = program.expect("grown")?["grown_bytes"]
            .as_f64()
            .context("no grown_bytes")?;
        let scrape = agent.settled()?;
        assert_within!(
            scrape.sum("tieback_memory_growth_bytes_total", &labels) - before,
            grown,
            0.01,
            "growth"
        );
        let by = |name| scrape.code("tieback_code_memory_growth_bytes_total", &labels, name);
        assert_within!(
            by("grow_three"),
            3.0 * by("grow_one"),
            0.1,
            "3:1 with huge pages {huge}"
        );
    }
    Ok(())
}

#[test]
fn fsync_and_cold_reads_are_disk_time() -> Result<()> {
    let agent = Agent::start(&[])?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 64 << 20])?;
    let path = path.to_str().context("path")?;
    for args in [["cold-read", path], ["fsync", path]] {
        let (mut program, _) = Program::start(&args)?;
        agent.wait_for_service(&program.service)?;
        let service = program.service.clone();
        let waited = |scrape: &tieback_tests::metrics::Scrape, cause| {
            scrape.sum(
                "tieback_wait_seconds_total",
                &[("service_name", service.as_str()), ("cause", cause)],
            )
        };
        let before = agent.settled()?;
        let truth = program.finish()?;
        let after = agent.settled()?;
        let seconds = |name: &str| truth[name].as_f64().with_context(|| format!("no {name}"));
        let (timed, cpu) = (seconds("disk_seconds")?, seconds("cpu_seconds")?);
        let disk = waited(&after, "disk") - waited(&before, "disk");
        let runqueue = waited(&after, "runqueue") - waited(&before, "runqueue");
        // The loop's own timing also holds its copying, and the queue for a CPU after the disk was done.
        assert_within!(
            disk,
            timed - cpu - runqueue,
            0.02,
            "{}: of {timed:.4} s, cpu {cpu:.4}, runqueue {runqueue:.4}",
            args[0]
        );
    }
    Ok(())
}

#[test]
fn short_lived_children_are_all_charged() -> Result<()> {
    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    let (mut program, _) = Program::start(&["storm"])?;
    let service = program.service.clone();
    agent.wait_for_service(&service)?;
    program.go()?;
    program.expect("done")?;
    let scrape = agent.settled()?;
    let labels = [("service_name", service.as_str())];
    let calls = scrape.sum("tieback_syscalls_total", &[labels[0], ("syscall", "getppid")]);
    assert_eq!(calls, 100_000.0, "calls of the children");
    assert_eq!(scrape.sum("tieback_processes", &labels), 1.0, "processes left");
    Ok(())
}

#[test]
fn descriptors_are_counted_by_kind() -> Result<()> {
    let agent = Agent::start(&[])?;
    let (mut program, _) = Program::start(&["fds"])?;
    let service = program.service.clone();
    agent.wait_for_service(&service)?;
    let before = agent.settled()?;
    program.go()?;
    program.expect("open")?;
    let open = agent.settled()?;
    for (kind, more) in [("file", 30.0), ("pipe", 40.0), ("socket", 10.0)] {
        let labels = [("service_name", service.as_str()), ("kind", kind)];
        assert_eq!(
            open.sum("tieback_open_fds", &labels) - before.sum("tieback_open_fds", &labels),
            more,
            "{kind}"
        );
    }
    Ok(())
}

#[test]
fn a_bogus_field_stops_one_probe_only() -> Result<()> {
    let agent = Agent::start_with(&[], &[("TIEBACK_TEST_BOGUS_FIELD", "disk")])?;
    let scrape = agent.settled()?;
    let verdict =
        |probe, verdict| scrape.sum("tieback_probe_status", &[("probe", probe), ("verdict", verdict)]);
    assert_eq!(verdict("disk", "unsupported"), 1.0);
    assert_eq!(verdict("wait", "ok"), 1.0);
    assert!(agent.get("/status")?.contains("unsupported"));
    Ok(())
}

#[test]
fn sigterm_ends_the_agent_cleanly() -> Result<()> {
    let status = Agent::start(&[])?.stop()?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}
