//! What became of each probe.

use serde::Serialize;

/// How a program ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Loaded, attached as configured.
    Ok,
    /// This kernel lacks something that it needs.
    Unsupported,
    /// It should work here and does not.
    Broken,
    /// Switched off by configuration or by the kill switch.
    Disabled,
}

impl Verdict {
    /// The label value that users see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unsupported => "unsupported",
            Self::Broken => "broken",
            Self::Disabled => "disabled",
        }
    }
}

/// The state of one program of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// Name of the probe.
    pub probe: String,
    /// Name of its program.
    pub program: String,
    /// How it ended up.
    pub verdict: Verdict,
    /// Why, in words for a person; empty when `Ok`.
    pub reason: String,
    /// Attached at this moment (a duty-cycled program is `Ok` and not attached for parts of the time).
    pub attached: bool,
}

/// One verdict for a whole probe: the first that applies of broken, unsupported, disabled, ok among its programs,
/// with the reason of the program that decided it.
#[must_use]
pub fn by_probe(programs: &[ProbeStatus]) -> Vec<ProbeStatus> {
    let severity = |verdict: Verdict| match verdict {
        Verdict::Ok => 0,
        Verdict::Disabled => 1,
        Verdict::Unsupported => 2,
        Verdict::Broken => 3,
    };
    let mut probes: Vec<ProbeStatus> = Vec::new();
    for program in programs {
        match probes.iter_mut().find(|known| known.probe == program.probe) {
            None => probes.push(program.clone()),
            Some(known) => {
                let attached = known.attached || program.attached;
                if severity(program.verdict) > severity(known.verdict) {
                    known.clone_from(program);
                }
                known.attached = attached;
            }
        }
    }
    probes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(probe: &str, program: &str, verdict: Verdict, reason: &str, attached: bool) -> ProbeStatus {
        ProbeStatus {
            probe: probe.into(),
            program: program.into(),
            verdict,
            reason: reason.into(),
            attached,
        }
    }

    #[test]
    fn the_worst_program_decides_for_its_probe() {
        let probes = by_probe(&[
            program("wait", "wait_switch", Verdict::Ok, "", true),
            program("cpu", "cpu_clock", Verdict::Ok, "", true),
            program(
                "wait",
                "wait_wakeup",
                Verdict::Unsupported,
                "needs task_struct.x",
                false,
            ),
            program("wait", "wait_extra", Verdict::Disabled, "by configuration", false),
        ]);
        assert_eq!(probes.len(), 2);
        assert_eq!(
            probes[0],
            program(
                "wait",
                "wait_wakeup",
                Verdict::Unsupported,
                "needs task_struct.x",
                true
            )
        );
        assert_eq!(probes[1].verdict, Verdict::Ok);
    }
}
