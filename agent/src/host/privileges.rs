//! What the agent's own process may do.

use std::io;

use super::Host;

/// Rights of the agent's own process, and what the host takes from everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges {
    /// Effective capabilities, a bit each.
    pub capabilities: u64,
    /// System calls are filtered.
    pub seccomp: bool,
    /// Kernel lockdown: `none`, `integrity` or `confidentiality`; empty where the kernel has none.
    pub lockdown: String,
    /// The addresses of kernel symbols are hidden.
    pub symbols_hidden: bool,
}

impl Host {
    /// Reads the agent's own rights.
    pub fn own_privileges(&self) -> io::Result<Privileges> {
        let status = self.text("proc/self/status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let capabilities =
            field("CapEff").ok_or_else(|| io::Error::other("no CapEff in /proc/self/status"))?;
        // `none [integrity] confidentiality`
        let lockdown = self.text("sys/kernel/security/lockdown").unwrap_or_default();
        let chosen = lockdown.split(['[', ']']).nth(1).unwrap_or_default();
        Ok(Privileges {
            capabilities: u64::from_str_radix(capabilities, 16).map_err(io::Error::other)?,
            seccomp: field("Seccomp").is_some_and(|mode| mode != "0"),
            lockdown: chosen.to_owned(),
            symbols_hidden: self.kernel_symbol("_stext").is_ok_and(|address| address == 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            (
                "proc/self/status",
                "Name:\tx\nCapPrm:\tff\nCapEff:\t000000c000080004\nSeccomp:\t2\n",
            ),
            ("proc/kallsyms", "0000000000000000 T _stext\n"),
            (
                "sys/kernel/security/lockdown",
                "none [integrity] confidentiality\n",
            ),
        ] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let privileges = Host::new(root.path()).own_privileges().unwrap();
        let wanted = Privileges {
            capabilities: 0xc0_0008_0004,
            seccomp: true,
            lockdown: "integrity".into(),
            symbols_hidden: true,
        };
        assert_eq!(privileges, wanted);
        assert!(Host::new("/").own_privileges().is_ok());
    }
}
