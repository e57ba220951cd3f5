//! Which capabilities the agent needs, and what for. `deploy/` lists the same ones; a kernel test compares.

/// A capability that the agent needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, as people write it.
    pub name: &'static str,
    /// Bits of those that grant it (capability.h): its own, and others that include it.
    bits: &'static [u32],
    /// What fails without it.
    pub without: &'static str,
}

/// All of them.
pub const NEEDED: &[Capability] = &[
    Capability {
        name: "CAP_BPF",
        bits: &[39, 21],
        without: "no program can be loaded",
    },
    Capability {
        name: "CAP_PERFMON",
        bits: &[38, 21],
        without: "no program may read kernel memory or be attached",
    },
    Capability {
        name: "CAP_SYS_PTRACE",
        bits: &[19],
        without: "other processes' executables, maps and OpenTelemetry's variables cannot be read: services and \
                  functions stay unnamed",
    },
    Capability {
        name: "CAP_DAC_READ_SEARCH",
        bits: &[2, 1],
        without: "files of other users cannot be read: their services and functions stay unnamed",
    },
    Capability {
        name: "CAP_SYSLOG",
        bits: &[34],
        without: "kernel functions have no names",
    },
];

impl Capability {
    /// Whether a process with these effective capabilities has it.
    #[must_use]
    pub fn granted_by(&self, effective: u64) -> bool {
        self.bits.iter().any(|bit| effective >> bit & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_capabilities_include_smaller_ones() {
        let missing = |effective| -> Vec<&str> {
            let lacking = NEEDED.iter().filter(|needed| !needed.granted_by(effective));
            lacking.map(|needed| needed.name).collect()
        };
        assert_eq!(missing(u64::MAX), [""; 0]);
        assert_eq!(missing(0).len(), NEEDED.len());
        // CAP_SYS_ADMIN and CAP_DAC_OVERRIDE.
        assert_eq!(missing(1 << 21 | 1 << 1), ["CAP_SYS_PTRACE", "CAP_SYSLOG"]);
        assert_eq!(missing(1 << 39 | 1 << 38 | 1 << 19 | 1 << 2 | 1 << 34), [""; 0]);
    }
}
