//! What is different where one thing is profiled from a beginning to an end.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::oneshot;

use super::naming::News;
use super::{DRAIN, Reader};
use crate::aggregate::Limits;
use crate::attribute::Only;

/// A short program is gone, and its memory map with it, before the usual time has passed.
const DRAIN_OFTEN: Duration = Duration::from_millis(10);
/// How long a program's loader may take to map its libraries.
const EARLY: Duration = Duration::from_millis(300);

/// Windows, of a second each, in which a wait may last and still get its stack: ten minutes.
const LONG_WAIT: usize = 600;

/// For how many windows the time of waits is held for their stacks.
pub(super) fn wait_hold(recording: bool) -> usize {
    if recording {
        LONG_WAIT
    } else {
        Limits::default().wait_hold
    }
}

/// A profile from a beginning to an end.
pub struct Recording {
    /// What is recorded.
    pub only: Only,
    /// Told when everything from then on is counted.
    pub ready: oneshot::Sender<()>,
}

/// Says that everything from now on is counted, and how often the ring buffer is to be drained.
pub(super) fn begin(ready: oneshot::Sender<()>) -> Duration {
    // Who waits for it may have been told to end.
    let _ = ready.send(());
    DRAIN_OFTEN
}

impl Reader {
    /// Before anything is found: what is recorded.
    pub(super) fn record(&mut self, recording: Option<Recording>) -> Option<oneshot::Sender<()>> {
        let Recording { only, ready } = recording?;
        let pid = only.pid;
        if let Some(pid) = pid {
            self.unwinding.warm(pid);
        }
        self.attributor.record(only);
        self.watching.record(pid);
        Some(ready)
    }

    /// Goes after programs that began: allocators that are to be watched, and unwind tables of recorded programs before a
    /// sample lacks them.
    pub(super) fn follow(&mut self, now: Instant) {
        let new = self.watching.follow(&self.attributor, &self.host, &self.config);
        for (slot, pid) in new {
            if self.noted.insert((slot, pid)) {
                let _ = self.send.try_send(News::Sampled(slot, pid));
            }
        }
        for (slot, pid) in self.attributor.young(now, EARLY) {
            self.unwinding.look(slot, pid);
        }
    }

    /// Publishes what happened since the last tick of a recording.
    pub(super) fn end(&mut self, pause: Duration) -> Result<()> {
        if pause == DRAIN || self.killed {
            return Ok(());
        }
        // Twice: what ended while the first one was read is in the second one.
        for _ in 0..2 {
            let batch = self.tick(Instant::now())?;
            // Fails only where the other thread has ended, which says so itself.
            let _ = self.send.send(News::Batch(Box::new(batch)));
        }
        Ok(())
    }
}
