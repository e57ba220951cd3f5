//! Net growth of memory: what is left of it, by code.

use std::time::Instant;

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::program::Program;

const MIB: f64 = (1u64 << 20) as f64;

/// Weight of the stacks with a function.
fn weight(folded: &str, function: &str) -> f64 {
    let stacks = folded.lines().filter(|line| line.contains(function));
    let values = stacks.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

#[test]
fn net_growth_by_code_is_what_smaps_says() -> Result<()> {
    let agent = Agent::start(&[])?;
    for huge in ["off", "on"] {
        let (mut program, _) = Program::start(&["net", "--huge", huge])?;
        let service = program.service.clone();
        let labels = [("service_name", service.as_str())];
        agent.wait_for_service(&service)?;
        let total = |scrape: &tieback_tests::metrics::Scrape, what: &str| {
            scrape.sum(&format!("tieback_memory_{what}_bytes_total"), &labels)
        };
        let before = agent.settled()?;
        program.go()?;
        let truth = program.expect("grown")?;
        let number = |name: &str| truth[name].as_f64().with_context(|| format!("no {name}"));
        let scrape = agent.settled()?;
        let more = |what: &str| total(&scrape, what) - total(&before, what);
        assert_eq!(number("huge")? > 0.0, huge == "on", "huge pages");
        assert_within!(
            more("growth"),
            number("growth")?,
            0.01,
            "growth with huge pages {huge}"
        );
        assert_within!(
            more("growth") - more("returned"),
            number("anonymous")?,
            0.01,
            "net growth with huge pages {huge}"
        );
        // One sample stands for 1 MiB, or for a huge page.
        let code = |function| scrape.code("tieback_code_memory_net_bytes", &labels, function);
        for function in [
            "net_kept",
            "net_churned",
            "net_heap",
            "net_halved",
            "net_moved",
            "net_read",
        ] {
            let (is, want) = (code(function), number(function)?);
            eprintln!(
                "huge pages {huge}: {function} {} MiB of {} MiB",
                is / MIB,
                want / MIB
            );
            assert!(
                (is - want).abs() <= 4.0 * MIB + want * 0.03,
                "{function}: {} MiB of {} MiB",
                is / MIB,
                want / MIB
            );
        }
        let path = format!("/services/-/{service}/profile/memory?format=folded&net=true");
        let weighed = weight(&agent.get(&path)?, "net_moved");
        assert_within!(weighed, code("net_moved"), 0.001, "the profile");

        // A child has the same pages: nothing grows, not even where it writes to them.
        program.go()?;
        program.expect("shared")?;
        let shared = agent.settled()?;
        let grown = total(&shared, "growth") - total(&scrape, "growth");
        assert!(grown < 2.0 * MIB, "{grown} bytes by sharing");

        program.go()?;
        let left = program.expect("released")?["anonymous"]
            .as_f64()
            .context("no anonymous")?;
        let after = agent.settled()?;
        let net = |what: &str| total(&after, what) - total(&before, what);
        assert_within!(net("growth") - net("returned"), left, 0.02, "what is left");
        assert_eq!(
            after.code("tieback_code_memory_net_bytes", &labels, "net_kept"),
            0.0
        );
        assert!(after.code("tieback_code_memory_net_bytes", &labels, "net_moved") > 48.0 * MIB);

        // What came before is no part of what came since.
        let settled = Instant::now();
        agent.settled()?;
        program.go()?;
        let late = program.expect("late")?["net_late"]
            .as_f64()
            .context("no net_late")?;
        agent.settled()?;
        let recent = agent.get(&format!("{path}&since={}ms", settled.elapsed().as_millis()))?;
        let weighed = weight(&recent, "net_late");
        assert!((weighed - late).abs() <= 4.0 * MIB, "{} MiB", weighed / MIB);
        assert_eq!(weight(&recent, "net_moved"), 0.0);
        assert!(weight(&agent.get(&path)?, "net_moved") > 48.0 * MIB);
    }
    Ok(())
}
