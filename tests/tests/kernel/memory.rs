//! Memory and storage.

use std::os::unix::process::ExitStatusExt as _;

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::Program;
use tieback_tests::{assert_within, nearest};

use super::stall::MemoryGroup;

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
        assert!(by("grow_one") > 0.0, "named by their function");
        assert_within!(
            by("grow_three"),
            3.0 * by("grow_one"),
            0.1,
            "3:1 with huge pages {huge}"
        );
    }
    Ok(())
}

/// How long a program was blocked by its own account, as near to `got` as the account allows: its wall time less its CPU
/// time and less its wait for a CPU, where the time that a hypervisor took away may have been either.
fn blocked(truth: &serde_json::Value, runqueue: f64, got: f64) -> Result<f64> {
    let number = |name: &str| truth[name].as_f64().with_context(|| format!("no {name}"));
    let most = number("blocked_seconds")? - runqueue;
    Ok(got.clamp(most - number("stolen_seconds")?, most))
}

#[test]
fn fsync_and_cold_reads_are_disk_time() -> Result<()> {
    let agent = Agent::start(&[])?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 64 << 20])?;
    let path = path.to_str().context("path")?;
    for args in [
        &["cold-read", path, "--chunk", "4096"][..],
        &["fsync", path, "--times", "4000"],
    ] {
        let (disk, want) = nearest(0.02, || {
            let (mut program, _) = Program::start(args)?;
            agent.wait_for_service(&program.service)?;
            let before = agent.settled()?;
            let truth = program.finish()?;
            let after = agent.settled()?;
            let more = |cause| {
                let labels = [("service_name", program.service.as_str()), ("cause", cause)];
                let value = |scrape: &Scrape| scrape.sum("tieback_wait_seconds_total", &labels);
                value(&after) - value(&before)
            };
            let disk = more("disk");
            Ok((disk, blocked(&truth, more("runqueue"), disk)?))
        })?;
        assert_within!(disk, want, 0.02, "{}", args[0]);
    }
    Ok(())
}

#[test]
fn major_faults_are_counted_and_wait_as_faults() -> Result<()> {
    let agent = Agent::start(&[])?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    std::fs::write(&path, vec![7; 64 << 20])?;
    let path = path.to_str().context("path")?;
    let (waited, want) = nearest(0.02, || {
        let (mut program, _) = Program::start(&["fault", path, "--stride", "4096"])?;
        let service = program.service.clone();
        agent.wait_for_service(&service)?;
        let before = agent.settled()?;
        let truth = program.finish()?;
        let after = agent.settled()?;
        let more = |name: &str, key: &str, value: &str| {
            let labels = [("service_name", service.as_str()), (key, value)];
            after.sum(name, &labels) - before.sum(name, &labels)
        };
        // The program's end may fault in a page of its own once more.
        let majors = more("tieback_page_faults_total", "kind", "major");
        let known = truth["major_faults"].as_f64().context("no major_faults")?;
        assert!(
            (known..known + 8.0).contains(&majors),
            "{majors} major faults, getrusage says {known}"
        );
        let waited = |cause| more("tieback_wait_seconds_total", "cause", cause);
        let fault = waited("fault");
        Ok((fault, blocked(&truth, waited("runqueue"), fault)?))
    })?;
    assert_within!(waited, want, 0.02, "waiting for pages");
    Ok(())
}

#[test]
fn direct_writes_are_charged_to_the_byte() -> Result<()> {
    let agent = Agent::start(&[])?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    // The blocks exist before: the writes themselves change no metadata.
    std::fs::write(&path, vec![7; 16 << 20])?;
    std::fs::File::open(&path)?.sync_all()?;
    let (mut program, _) = Program::start(&["direct-write", path.to_str().context("path")?])?;
    let service = program.service.clone();
    agent.wait_for_service(&service)?;
    let truth = program.finish()?;
    let scrape = agent.settled()?;
    let labels = [("service_name", service.as_str()), ("operation", "write")];
    let want = truth["written_bytes"].as_f64().context("no written_bytes")?;
    assert_eq!(scrape.sum("tieback_disk_io_bytes_total", &labels), want);
    Ok(())
}

/// Anonymous memory of a process that was killed for memory, by the kernel's log.
fn killed_with(pid: u32) -> Result<f64> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let log = rustix::fs::open("/dev/kmsg", flags, rustix::fs::Mode::empty()).context("/dev/kmsg")?;
    let mut record = vec![0; 8192];
    let mut found = None;
    loop {
        match rustix::io::read(&log, &mut record) {
            Ok(read) => {
                let text = String::from_utf8_lossy(&record[..read]);
                if let Some((_, rest)) = text.split_once(&format!("Killed process {pid} ("))
                    && let Some((_, anon)) = rest.split_once("anon-rss:")
                {
                    found = anon.split("kB").next().and_then(|kib| kib.parse::<f64>().ok());
                }
            }
            // Overwritten while it was read.
            Err(rustix::io::Errno::PIPE) => {}
            Err(_) => break,
        }
    }
    found.map(|kib| kib * 1024.0).context("the kernel did not log it")
}

#[test]
fn an_oom_kill_is_charged_to_its_victim() -> Result<()> {
    let agent = Agent::start(&[])?;
    let group = MemoryGroup::new(64 << 20)?;
    let (mut program, _) = Program::start(&["oom"])?;
    agent.wait_for_service(&program.service)?;
    group.add(program.pid())?;
    program.go()?;
    assert_eq!(program.wait()?.signal(), Some(9), "the kernel kills it");
    let scrape = agent.settled()?;
    let labels = [("service_name", program.service.as_str())];
    assert_eq!(scrape.sum("tieback_oom_kills_total", &labels), 1.0);
    assert_eq!(scrape.sum("tieback_processes", &labels), 0.0);
    let document: serde_json::Value = serde_json::from_str(&agent.get("/api/v1/oom_kills")?)?;
    let kill = document["oom_kills"].as_array().context("no list")?;
    let kill = kill
        .iter()
        .find(|kill| kill["pid"] == program.pid())
        .context("no such kill")?;
    assert_eq!(kill["service"], program.service.as_str());
    let bytes = |value: &serde_json::Value| value.as_f64().context("no number");
    let resident = bytes(&kill["memory_bytes"]["anon"])?;
    assert_within!(
        resident,
        killed_with(program.pid())?,
        0.02,
        "memory of the victim"
    );
    let grown = |at: usize, function: &str| {
        let code = &kill["growth"][at];
        assert!(
            code["function"]
                .as_str()
                .is_some_and(|name| name.contains(function)),
            "{code}"
        );
        bytes(&code["bytes"])
    };
    let (much, little) = (grown(0, "grow_much")?, grown(1, "grow_little")?);
    assert_within!(much, 3.0 * little, 0.15, "3:1");
    assert_within!(much + little, resident, 0.1, "grown until it was killed");
    assert!(agent.get("/status")?.contains(&program.service));
    Ok(())
}
