//! The rights that `deploy/` gives are enough, and none is too many.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::program::{Program, built};

const UNIT: &str = include_str!("../../../deploy/systemd/tieback.service");
const DAEMON_SET: &str = include_str!("../../../deploy/kubernetes/daemonset.yaml");
const DOCKERFILE: &str = include_str!("../../../deploy/Dockerfile");

/// Users: systemd's DynamicUser is some unprivileged one, Kubernetes runs the agent as root.
const USERS: [&str; 2] = ["61184", "0"];

fn setting(key: &str) -> BTreeSet<String> {
    let values = UNIT
        .lines()
        .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values
        .flat_map(str::split_whitespace)
        .map(str::to_owned)
        .collect()
}

/// What the unit grants; the other files must say the same.
fn capabilities() -> BTreeSet<String> {
    let unit = setting("AmbientCapabilities");
    assert_eq!(unit, setting("CapabilityBoundingSet"));
    let added = DAEMON_SET
        .lines()
        .skip_while(|line| line.trim() != "add:")
        .skip(1);
    let names = added
        .map(str::trim)
        .take_while(|line| line.starts_with(['-', '#']));
    let pod: BTreeSet<String> = names
        .filter_map(|line| line.strip_prefix("- "))
        .map(|name| format!("CAP_{name}"))
        .collect();
    assert_eq!(unit, pod);
    let options = DOCKERFILE
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("--cap-add="));
    let docker: BTreeSet<String> = options.map(|name| format!("CAP_{name}")).collect();
    assert_eq!(unit, docker);
    unit
}

/// A command that becomes `tieback` as that user with these capabilities.
fn confined<'a>(user: &str, capabilities: impl IntoIterator<Item = &'a String>) -> Result<Command> {
    let names: Vec<&str> = capabilities.into_iter().map(String::as_str).collect();
    let mut command = Command::new(built("TIEBACK_WORKLOAD", "tieback-workload")?);
    command
        .args([
            "confined",
            "--user",
            user,
            "--capabilities",
            &names.join(" "),
            "--",
        ])
        .arg(built("TIEBACK_BIN", "tieback")?);
    Ok(command)
}

#[test]
fn deploy_capabilities_suffice() -> Result<()> {
    let capabilities = capabilities();
    for user in USERS {
        // All probes, also the one that is switched on by name.
        let options = ["--alloc", "no-such-service"];
        let agent = Agent::start_by(confined(user, &capabilities)?, &options, &[])?;
        let (program, _) = Program::start(&["syscalls"])?;
        agent.wait_for_service(&program.service)?;
        let scrape = agent.settled()?;
        let verdicts: Vec<_> = scrape.select("tieback_probe_status", &[]).collect();
        assert!(!verdicts.is_empty());
        for verdict in verdicts {
            assert!(
                verdict.value == 0.0 || verdict.labels["verdict"] == "ok",
                "as {user}: {verdict:?}"
            );
        }
        let labels = [("service_name", program.service.as_str())];
        let mut infos = scrape.select("tieback_service_info", &labels);
        let version = infos.next().and_then(|info| info.labels.get("service_version"));
        assert!(
            version.is_some_and(|version| !version.is_empty()),
            "as {user}: the executable was not read"
        );
        assert!(scrape.sum("tieback_agent_bpf_map_bytes", &[]) > 0.0, "as {user}");
        let doctor = confined(user, &capabilities)?.arg("doctor").output()?;
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(doctor.status.success(), "as {user}: {said}");
    }
    Ok(())
}

/// Without any single one, `tieback doctor` names it and says how to grant it.
#[test]
fn doctor_names_each_missing_capability() -> Result<()> {
    let capabilities = capabilities();
    for missing in &capabilities {
        let rest = capabilities.iter().filter(|name| *name != missing);
        let doctor = confined(USERS[0], rest)?.arg("doctor").output()?;
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        // Kernel symbols may be open to everybody on this host; then nothing is missing without CAP_SYSLOG.
        if missing == "CAP_SYSLOG" && doctor.status.success() {
            assert!(!said.contains("missing"), "{said}");
            continue;
        }
        assert!(!doctor.status.success(), "without {missing}: {said}");
        let line = said.lines().find(|line| line.starts_with(missing.as_str()));
        assert!(line.context("not named")?.contains("missing"), "{said}");
        assert!(said.contains(&format!("AmbientCapabilities={missing}")), "{said}");
        let loses_probes = matches!(missing.as_str(), "CAP_BPF" | "CAP_PERFMON");
        assert_eq!(said.contains("broken"), loses_probes, "without {missing}: {said}");
    }
    Ok(())
}

/// Those that no probe needs name the services: without one of them an unprivileged agent cannot.
#[test]
fn services_need_the_right_to_look() -> Result<()> {
    let capabilities = capabilities();
    let (program, _) = Program::start(&["syscalls"])?;
    for missing in ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"] {
        let rest = capabilities.iter().filter(|name| *name != missing);
        let agent = Agent::start_by(confined(USERS[0], rest)?, &[], &[])?;
        let scrape = agent.settled()?;
        let labels = [("service_name", program.service.as_str())];
        assert_eq!(scrape.sum("tieback_processes", &labels), 0.0, "without {missing}");
    }
    Ok(())
}
