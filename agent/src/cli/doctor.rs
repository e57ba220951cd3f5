//! `tieback doctor`.

use std::process::ExitCode;

use anyhow::Result;

use super::DoctorArgs;
use crate::config::{Config, Flags};
use crate::host::{Host, Privileges};
use crate::kernel::capabilities::{Capability, NEEDED};
use crate::load::status::{ProbeStatus, Verdict};
use crate::pipeline;

/// Loads everything once, says what came of it and how to mend it, and lets it go.
pub(super) fn run(arguments: &DoctorArgs) -> Result<ExitCode> {
    let host = Host::new(&arguments.host_root);
    let kernel = host.kernel_release().unwrap_or_else(|_| "(unknown)".to_owned());
    println!("{:<20} {kernel}", "kernel");
    let privileges = host.own_privileges()?;
    for capability in NEEDED {
        if lacks(&privileges, capability) {
            println!("{:<20} {:<12} {}", capability.name, "missing", capability.without);
        } else {
            println!("{:<20} ok", capability.name);
        }
    }
    // Everything is tried, also what is switched on by name.
    let mut flags = Flags::default();
    flags.settings.alloc = Some("any".parse().map_err(anyhow::Error::msg)?);
    let loaded = pipeline::load(&host, &Config::load(flags, &[])?);
    let (statuses, failure) = match &loaded {
        Ok(loaded) => (loaded.statuses(), None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    for status in &statuses {
        let verdict = status.verdict.as_str();
        println!("{:<20} {verdict:<12} {}", status.probe, status.reason);
    }
    if let Some(failure) = &failure {
        println!("{:<20} {:<12} {failure}", "all probes", "broken");
    }
    let mend = mend(&kernel, &privileges, &statuses, failure.as_deref());
    for advice in &mend {
        println!("\nto mend: {advice}");
    }
    // What is on by request only may be missing on an older kernel.
    let fine = |status: &ProbeStatus| {
        status.verdict == Verdict::Ok || (status.probe == "alloc" && status.verdict == Verdict::Unsupported)
    };
    let good = failure.is_none() && mend.is_empty() && statuses.iter().all(fine);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `CAP_SYSLOG` is needed only where the names are hidden (kernel.kptr_restrict, kernel.perf_event_paranoid).
fn lacks(privileges: &Privileges, capability: &Capability) -> bool {
    !capability.granted_by(privileges.capabilities)
        && (capability.name != "CAP_SYSLOG" || privileges.symbols_hidden)
}

/// What to do about what is missing, the most likely cause first.
fn mend(
    kernel: &str,
    privileges: &Privileges,
    statuses: &[ProbeStatus],
    failure: Option<&str>,
) -> Vec<String> {
    let mut advice = Vec::new();
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|capability| lacks(privileges, capability))
        .map(|capability| capability.name)
        .collect();
    if !missing.is_empty() {
        let bare: Vec<&str> = missing
            .iter()
            .map(|name| name.trim_start_matches("CAP_"))
            .collect();
        advice.push(format!(
            "run as root (sudo tieback doctor), or grant {}\n  systemd:     AmbientCapabilities={1} and \
             CapabilityBoundingSet={1}\n  Kubernetes:  securityContext.capabilities.add: [{2}], with runAsUser: 0\n  \
             Docker:      --cap-add={3}",
            missing.join(", "),
            missing.join(" "),
            bare.join(", "),
            bare.join(" --cap-add="),
        ));
    }
    let reasons = || {
        let of_probes = statuses.iter().map(|status| status.reason.as_str());
        of_probes.chain(failure)
    };
    let denied = reasons().any(|reason| reason.contains("os error 1)") || reason.contains("os error 13)"));
    if denied && missing.is_empty() {
        if privileges.lockdown == "confidentiality" {
            advice
                .push("the kernel's lockdown is `confidentiality`; boot with lockdown=integrity".to_owned());
        }
        if privileges.seccomp {
            advice.push(
                "a seccomp filter refuses bpf(2) or perf_event_open(2); let them through, in Kubernetes by \
                 seccompProfile.type: Unconfined"
                    .to_owned(),
            );
        }
    }
    if reasons().any(|reason| reason.contains("btf/vmlinux")) {
        advice.push(
            "boot a kernel of 5.18 or newer with CONFIG_DEBUG_INFO_BTF (every current distribution's has it); in a \
             container, /sys must be the host's"
                .to_owned(),
        );
    } else if older_than(kernel, (5, 18)) {
        advice.push(format!("this kernel is {kernel}; Tieback needs 5.18 or newer"));
    }
    advice
}

fn older_than(release: &str, least: (u32, u32)) -> bool {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < least,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(reason: &str) -> Vec<ProbeStatus> {
        vec![ProbeStatus {
            probe: "wait".into(),
            program: "wait_switch".into(),
            verdict: Verdict::Broken,
            reason: reason.into(),
            attached: false,
        }]
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let mut privileges = Privileges {
            capabilities: u64::MAX,
            ..Privileges::default()
        };
        assert_eq!(mend("6.1.0-13-amd64", &privileges, &[], None), [""; 0]);
        let denied = broken("the kernel refused it: Operation not permitted (os error 1)");
        privileges.seccomp = true;
        privileges.lockdown = "confidentiality".into();
        let advice = mend("6.1.0", &privileges, &denied, None);
        assert!(
            advice[0].contains("lockdown=integrity") && advice[1].contains("seccompProfile"),
            "{advice:?}"
        );
        assert_eq!(
            mend("6.1.0", &privileges, &broken("no such tracepoint"), None),
            [""; 0]
        );
        let advice = mend(
            "5.4.0",
            &privileges,
            &[],
            Some("cannot read /sys/kernel/btf/vmlinux"),
        );
        assert!(
            advice.len() == 1 && advice[0].contains("CONFIG_DEBUG_INFO_BTF"),
            "{advice:?}"
        );
        assert!(mend("5.4.0", &privileges, &[], None)[0].contains("5.18"));
        privileges.capabilities = 1 << 39 | 1 << 19 | 1 << 2;
        let advice = mend("6.1.0", &privileges, &denied, None);
        assert!(
            advice.len() == 1 && advice[0].contains("--cap-add=PERFMON"),
            "{advice:?}"
        );
        assert!(
            !advice[0].contains("SYSLOG"),
            "not needed where the names are visible"
        );
        privileges.symbols_hidden = true;
        let advice = mend("6.1.0", &privileges, &denied, None);
        assert!(advice[0].contains("add: [PERFMON, SYSLOG]"), "{advice:?}");
    }
}
