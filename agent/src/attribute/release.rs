//! The release of a service, from the executable where nobody told it.
//!
//! DESIGN.md section 5 asks `service.version` and the rules first ([`super::identify`]); a Kubernetes label and the
//! image's tag belong before this file, too, once something reads them.

use std::collections::{HashMap, VecDeque};

use super::elf::{self, Build};
use super::runtime::{Role, runtime_of};
use crate::host::{FileId, Host};

/// Executables that are remembered.
const KEPT: usize = 4096;

/// What an executable tells of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// Language runtime.
    pub(super) runtime: &'static str,
    /// The release of the service's own code; empty where it has none or nothing tells it. `None` where the program
    /// only starts the service, so that what it starts has a say.
    pub(super) release: Option<String>,
}

/// Reads each executable once.
#[derive(Debug, Default)]
pub(super) struct Releases {
    known: HashMap<FileId, Build>,
    order: VecDeque<FileId>,
    malformed: u64,
}

impl Releases {
    /// What the executable of a process tells; `path` is the executable's.
    pub(super) fn origin(&mut self, host: &Host, pid: u32, path: &str) -> Origin {
        match runtime_of(path) {
            Some((runtime, Role::Starter)) => Origin {
                runtime,
                release: None,
            },
            Some((runtime, _)) => Origin {
                runtime,
                release: Some(String::new()),
            },
            None => {
                let build = self.build(host, pid);
                Origin {
                    runtime: if build.go { "go" } else { "native" },
                    release: Some(build.release.unwrap_or_default()),
                }
            }
        }
    }

    /// Executables that contradict themselves.
    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    fn build(&mut self, host: &Host, pid: u32) -> Build {
        // A process that has ended has no release to tell.
        let Ok(executable) = host.executable(pid) else {
            return Build::default();
        };
        let id = executable.id();
        if let Some(build) = self.known.get(&id) {
            return build.clone();
        }
        let build = elf::read(executable);
        self.malformed += u64::from(build.malformed);
        self.known.insert(id, build.clone());
        self.order.push_back(id);
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        build
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_read_once_and_again_when_they_change() {
        let root = tempfile::tempdir().unwrap();
        let (process, program) = (root.path().join("proc/7"), root.path().join("program"));
        std::fs::create_dir_all(&process).unwrap();
        std::os::unix::fs::symlink(&program, process.join("exe")).unwrap();
        let host = Host::new(root.path());
        let mut releases = Releases::default();
        let mut ask = |path: &str| releases.origin(&host, 7, path);
        let nothing = Origin {
            runtime: "native",
            release: Some(String::new()),
        };
        assert_eq!(ask("/program"), nothing);
        std::fs::write(&program, "no ELF").unwrap();
        assert_eq!(ask("/program"), nothing);
        assert_eq!(ask("/program"), nothing);
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let Origin { runtime, release } = ask("/program");
        assert_eq!(runtime, "native");
        assert_ne!(release.as_deref(), Some(""));
        // An interpreter's build says nothing about what it runs.
        assert_eq!(ask("/usr/bin/python3").release.as_deref(), Some(""));
        assert_eq!(ask("/bin/sh").release, None);
        assert_eq!(releases.malformed(), 1);
        assert_eq!(releases.known.len(), 2);
    }
}
