//! The agent under measurement: started, attached and detached by its kill switch, and read.

use super::process::{self, Process, cpu_ns, get, wait_for};
use crate::command;
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    os::fd::{FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

/// A running agent.
pub(crate) struct Agent {
    process: Process,
    port: u16,
    switch: PathBuf,
    /// Names of its programs by id.
    programs: BTreeMap<u64, String>,
}

/// Memory of the agent in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) resident: f64,
    /// BPF maps.
    pub(crate) maps: f64,
}

/// Runs of a program and the time they took, as the kernel accounts it while asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Runs {
    /// Nanoseconds.
    pub(crate) ns: u64,
    /// How often.
    pub(crate) count: u64,
}

/// While it lives, the kernel times every BPF program of the host.
pub(crate) struct Timing {
    _held: OwnedFd,
}

impl Agent {
    /// Starts the agent with its programs attached, and checks by its own word that the kill switch works.
    pub(crate) fn start(program: &Path, args: &[String], dir: &Path) -> Result<Self> {
        let port = process::free_port()?;
        let switch = dir.join("disable");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM"])
            .arg(program)
            .args(["agent", "--listen", &format!("127.0.0.1:{port}"), "--kill-switch"])
            .arg(&switch)
            .args(args);
        let process = Process::start(&mut command, &dir.join("agent.log"))?;
        let mut agent = Self {
            process,
            port,
            switch,
            programs: BTreeMap::new(),
        };
        wait_for("the agent to be ready", || {
            agent
                .process
                .alive()
                .with_context(|| fs::read_to_string(dir.join("agent.log")).unwrap_or_default())?;
            Ok(get(port, "/readyz").ok())
        })?;
        for on in [false, true] {
            agent.switch(on)?;
            wait_for("the agent to confirm its kill switch", || {
                let killed = agent.metric("tieback_kill_switch")?;
                Ok((killed == f64::from(u8::from(!on))).then_some(()))
            })?;
        }
        agent.programs = programs().unwrap_or_default();
        Ok(agent)
    }

    /// Attaches or detaches everything and returns when that has happened. The agent looks at its kill switch ten times
    /// a second.
    pub(crate) fn switch(&mut self, on: bool) -> Result<()> {
        let there = self.switch.exists();
        if on && there {
            fs::remove_file(&self.switch)?;
        } else if !on && !there {
            fs::write(&self.switch, "")?;
        }
        self.process.alive()?;
        wait_for(
            if on {
                "programs to attach"
            } else {
                "programs to detach"
            },
            || Ok((self.attached()? == on).then_some(())),
        )
    }

    /// Whether any of its programs is attached: by its open links, which needs no word from the agent.
    pub(crate) fn attached(&self) -> Result<bool> {
        let fds =
            fs::read_dir(format!("/proc/{}/fd", self.process.pid())).context("read the agent's files")?;
        Ok(fds
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| target.as_os_str() == "anon_inode:bpf_link"))
    }

    /// CPU time of its process.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        cpu_ns(self.process.pid())
    }

    /// What it says about its memory.
    pub(crate) fn memory(&self) -> Result<Memory> {
        Ok(Memory {
            resident: self.metric("tieback_agent_resident_memory_bytes")?,
            maps: self.metric("tieback_agent_bpf_map_bytes")?,
        })
    }

    /// Its resident memory, which needs no word from it.
    pub(crate) fn resident(&self) -> Result<f64> {
        let path = format!("/proc/{}/statm", self.process.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let pages = text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok());
        let pages: u32 = pages.with_context(|| format!("{path} has no resident pages"))?;
        Ok(f64::from(pages) * rustix::param::page_size() as f64)
    }

    /// Bytes of its resident memory that are BPF maps.
    pub(crate) fn mapped_maps(&self) -> Result<f64> {
        let path = format!("/proc/{}/smaps", self.process.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let (mut of_map, mut kib) = (false, 0.0);
        for line in text.lines() {
            match line.strip_prefix("Rss:") {
                Some(rss) if of_map => kib += rss.trim().trim_end_matches(" kB").parse::<f64>()?,
                Some(_) => {}
                // Its first line names what is mapped, and begins with the addresses in lower case.
                None if line.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_lowercase()) => {
                    of_map = line.ends_with("anon_inode:bpf-map");
                }
                None => {}
            }
        }
        Ok(kib * 1024.0)
    }

    /// A metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Result<f64> {
        let text = get(self.port, "/metrics")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .with_context(|| format!("the agent has no metric {name}"))?;
        line.trim().parse().with_context(|| format!("read {name}"))
    }

    /// The sum of a metric with labels.
    pub(crate) fn sum(&self, name: &str) -> Result<f64> {
        let text = get(self.port, "/metrics")?;
        let head = format!("{name}{{");
        let values = text.lines().filter(|line| line.starts_with(&head)).map(|line| {
            let value = line
                .rsplit(' ')
                .next()
                .and_then(|value| value.parse::<f64>().ok());
            value.with_context(|| format!("read {line}"))
        });
        values.sum()
    }

    /// The buckets of a histogram without labels: bounds and how many observations are not above them.
    pub(crate) fn buckets(&self, name: &str) -> Result<Vec<(f64, f64)>> {
        let text = get(self.port, "/metrics")?;
        let head = format!("{name}_bucket{{le=\"");
        let lines = text.lines().filter_map(|line| line.strip_prefix(&*head));
        lines
            .map(|line| {
                let (bound, count) = line.split_once("\"} ").context("a bucket without a count")?;
                Ok((bound.parse()?, count.trim().parse()?))
            })
            .collect()
    }

    /// Runs and time of its programs, by name.
    pub(crate) fn runs(&self) -> Result<BTreeMap<String, Runs>> {
        let mut runs = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.process.pid()))?.flatten() {
            // A descriptor may have been closed since.
            let info = fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some((id, of)) = runs_of(&info) {
                let name = self.programs.get(&id).cloned();
                runs.insert(name.unwrap_or_else(|| format!("program {id}")), of);
            }
        }
        Ok(runs)
    }
}

/// Asks the kernel to time programs. It ends with the process, other than `sysctl kernel.bpf_stats_enabled`.
pub(crate) fn timing() -> Result<Timing> {
    const BPF_ENABLE_STATS: libc::c_int = 32;
    // The only field of this command: BPF_STATS_RUN_TIME, which is 0.
    let attributes = 0u32;
    // SAFETY: the pointer and the size belong together; the kernel only reads.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_ENABLE_STATS,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    ensure!(
        fd >= 0,
        "switch on bpf_stats: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: a descriptor that the kernel has just opened for us.
    let held = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
    Ok(Timing { _held: held })
}

/// Id and runs of a program by the `fdinfo` of its descriptor; that of a link has no runs.
fn runs_of(fdinfo: &str) -> Option<(u64, Runs)> {
    let field = |name: &str| {
        fdinfo
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    };
    let runs = Runs {
        ns: field("run_time_ns:")?,
        count: field("run_cnt:")?,
    };
    Some((field("prog_id:")?, runs))
}

/// Names of all programs of the host; a descriptor tells only the id.
fn programs() -> Result<BTreeMap<u64, String>> {
    #[derive(Deserialize)]
    struct Program {
        id: u64,
        #[serde(default)]
        name: String,
    }
    let bpftool = command::find("bpftool").context("no bpftool")?;
    let text = command::stdout(Command::new(bpftool).args(["--json", "prog", "show"]))?;
    let programs: Vec<Program> = serde_json::from_str(&text).context("read what bpftool prints")?;
    Ok(programs.into_iter().map(|p| (p.id, p.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::{Runs, runs_of};

    #[test]
    fn a_program_has_runs_and_a_link_has_none() {
        let program = "pos:\t0\nprog_type:\t26\nprog_id:\t2625\nrun_time_ns:\t1300\nrun_cnt:\t10\n";
        assert_eq!(runs_of(program), Some((2625, Runs { ns: 1300, count: 10 })));
        assert_eq!(runs_of("pos:\t0\nlink_type:\tperf\nprog_id:\t2618\n"), None);
    }
}
