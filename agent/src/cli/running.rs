//! A running pipeline, for the commands that have one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::export::Sources;
use crate::host::Host;
use crate::pipeline::{self, Publish, Recording};

/// Threads that read, name and sum.
pub(super) struct Running {
    /// What they publish.
    pub(super) sources: Sources,
    stop: Arc<AtomicBool>,
    watch: JoinHandle<Result<()>>,
}

impl Running {
    /// Starts them. Also returns what is told when they have ended, which they do by themselves only where they fail.
    pub(super) fn start(
        config: Config,
        recording: Option<Recording>,
    ) -> Result<(Self, oneshot::Receiver<()>)> {
        let (snapshot, snapshots) = watch::channel(Arc::default());
        let (telemetry, telemetries) = watch::channel(Arc::default());
        let (probes, statuses) = watch::channel(Arc::default());
        let sources = Sources {
            snapshot: snapshots,
            telemetry: telemetries,
            probes: statuses,
        };
        let publish = Publish {
            snapshot,
            telemetry,
            probes,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let host = Host::new(&config.host_root);
        let threads = pipeline::start(host, config, publish, recording, Arc::clone(&stop))?;
        // A thread that fails ends the command: old numbers served as if they were new would be a lie.
        let (ended, end) = oneshot::channel();
        let watch = std::thread::spawn(move || {
            let mut result = Ok(());
            for thread in threads {
                if let Err(error) = thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread of the agent panicked")))
                {
                    result = Err(error);
                }
            }
            // Nobody listens any more when the command was stopped by a signal.
            let _ = ended.send(());
            result
        });
        let running = Self { sources, stop, watch };
        Ok((running, end))
    }

    /// Ends the threads and says how that went.
    pub(super) fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.watch
            .join()
            .map_err(|_| anyhow!("the watching thread panicked"))?
    }
}
