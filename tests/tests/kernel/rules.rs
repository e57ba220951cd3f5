//! `[[service]]` of the configuration file.

use std::process::Command;

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::program::{Program, built, unique_service};

#[test]
fn rules_name_services_before_anything_else() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("tieback.toml");
    let name = unique_service("ruled");
    let rules = format!(
        "[[service]]\nexe = '*/no-such-program'\nname = 'no'\n\n\
         [[service]]\nexe = '*/tieback-workload'\narg = '424?42'\nname = '{name}'\nnamespace = 'shop'\nversion = '7'\n"
    );
    std::fs::write(&path, rules)?;
    let config = path.to_str().context("path")?;
    let agent = Agent::start(&["--syscall-mode", "exact", "--config", config])?;
    let (mut program, _) = Program::start(&["syscalls", "--getppid", "424242"])?;
    let labels = [
        ("service_name", name.as_str()),
        ("service_namespace", "shop"),
        ("service_version", "7"),
    ];
    let scrape = agent.wait_for_service(&name)?;
    let info = [&labels[..], &[("source", "rule")]].concat();
    assert_eq!(scrape.sum("tieback_service_info", &info), 1.0);
    program.finish()?;
    let scrape = agent.settled()?;
    let calls = [&labels[..], &[("syscall", "getppid")]].concat();
    assert_eq!(scrape.sum("tieback_syscalls_total", &calls), 424_242.0);
    let otel = [("service_name", program.service.as_str())];
    assert_eq!(scrape.sum("tieback_syscalls_total", &otel), 0.0);
    Ok(())
}

#[test]
fn mistakes_in_rules_stop_the_agent_with_their_place() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("tieback.toml");
    for (text, says) in [
        (
            "top = 5\n[[service]]\nname = 'x'\nexec = '/x'\n",
            "2: unknown key \"exec\"; did you mean \"exe\"?",
        ),
        (
            "[[service]]\nname = 'x'\n",
            "matches nothing: give at least one of exe,",
        ),
    ] {
        std::fs::write(&path, text)?;
        let output = Command::new(built("TIEBACK_BIN", "tieback")?)
            .args(["agent", "--listen", "127.0.0.1:0", "--config"])
            .arg(&path)
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{said}");
        assert!(said.contains("tieback.toml:"), "{said}");
    }
    Ok(())
}
