//! What is recorded.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::oneshot;

use crate::aggregate::{Service, Snapshot};
use crate::attribute::{Only, RECORDED};
use crate::cli::RecordArgs;
use crate::export::Sources;
use crate::host::Host;

/// A service that was not seen by then is not there: two ticks, the second one of which knows all that was there in the first.
const ABSENT: Duration = Duration::from_millis(1900);
/// Services that are listed in place of one.
const LISTED: usize = 12;

/// A command, a process, or a service.
pub(super) struct Target {
    /// For people.
    pub(super) title: String,
    /// The same for the pipeline.
    pub(super) only: Only,
    /// Readable from its end on.
    end: Option<std::os::fd::OwnedFd>,
}

impl Target {
    /// `held` is the process that will be the command.
    pub(super) fn new(arguments: &RecordArgs, held: Option<u32>) -> Result<Self> {
        if let Some(service) = &arguments.service {
            let (namespace, name) = service.split_once('/').unwrap_or(("", service));
            return Ok(Self {
                title: service.clone(),
                only: Only {
                    pid: None,
                    to_come: false,
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                },
                end: None,
            });
        }
        let pid = held.or(arguments.pid).context("no process")?;
        let end = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .context("no process has this number")
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(|error| no_process(pid, error)))?;
        let name = match arguments.command.first() {
            Some(program) => base_name(Path::new(program)),
            None => Host::new("/")
                .program_path(pid)
                .map_or_else(|_| pid.to_string(), |path| base_name(&path)),
        };
        Ok(Self {
            title: format!("{name} (pid {pid})"),
            only: Only {
                pid: Some(pid),
                to_come: held.is_some(),
                namespace: RECORDED.to_owned(),
                name,
            },
            end: Some(end),
        })
    }

    /// As the settings name a service whose allocations are watched.
    pub(super) fn watched(&self) -> String {
        match self.only.namespace.as_str() {
            "" => self.only.name.clone(),
            namespace => format!("{namespace}/{}", self.only.name),
        }
    }

    /// Until it is clear that no process of the service is there; never where it is a process, or one is.
    pub(super) async fn absent(&self, sources: &Sources) {
        let mut snapshots = sources.snapshot.clone();
        let late = Instant::now() + ABSENT;
        while self.end.is_none() {
            // The sender ends when all ends, which somebody else waits for.
            if snapshots.changed().await.is_err() || self.found(&snapshots.borrow()) {
                break;
            }
            if Instant::now() >= late {
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    fn found(&self, snapshot: &Snapshot) -> bool {
        snapshot
            .find(&self.only.namespace, &self.only.name)
            .next()
            .is_some()
    }

    /// Says that nothing was seen of it, and what there is.
    pub(super) fn nothing(&self, snapshot: &Snapshot) -> String {
        if self.only.namespace == RECORDED {
            return format!("nothing was seen of {}; no file was written", self.title);
        }
        let full = |service: &Service| match service.namespace.as_str() {
            "" => service.name.clone(),
            namespace => format!("{namespace}/{}", service.name),
        };
        let mut names: Vec<String> = snapshot.services.iter().map(|one| full(&one.service)).collect();
        // No services but what is left.
        names.retain(|name| !name.starts_with('('));
        names.dedup();
        // The most alike first.
        let alike = |name: &String| strsim::jaro_winkler(&self.title, name);
        names.sort_by(|a, b| alike(b).total_cmp(&alike(a)).then_with(|| a.cmp(b)));
        let more = match names.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        names.truncate(LISTED);
        format!(
            "no process of a service {:?}; no file was written. There are {}{more}",
            self.title,
            names.join(", ")
        )
    }

    /// Until its process has ended; never for a service.
    pub(super) async fn ended(&self) -> Result<()> {
        let Some(end) = &self.end else {
            return std::future::pending().await;
        };
        let end = end.try_clone()?;
        let (tell, told) = oneshot::channel();
        // A thread of its own: one that still waits when this command ends must not hold it.
        std::thread::spawn(move || {
            let mut ends = [PollFd::new(&end, PollFlags::IN)];
            while poll(&mut ends, None).is_err_and(|error| error == Errno::INTR) {}
            // Who asked may have ended.
            let _ = tell.send(());
        });
        Ok(told.await?)
    }
}

fn no_process(pid: Pid, error: Errno) -> anyhow::Error {
    let pid = pid.as_raw_nonzero();
    match error {
        Errno::SRCH => anyhow!("there is no process {pid}"),
        // Newer kernels say the second one.
        Errno::INVAL | Errno::NOENT => {
            anyhow!("{pid} is a thread; give its process, which is Tgid in /proc/{pid}/status")
        }
        error => anyhow::Error::new(error).context(format!("process {pid}")),
    }
}

fn base_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}
