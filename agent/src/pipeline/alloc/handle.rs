//! The handle by which the rest of the pipeline speaks with the thread.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use agent_ebpf::wire::{LiveKey, LiveValue, MAX_ALLOC_TARGETS};
use anyhow::Result;

use super::super::clock::monotonic_ns;
use super::Watcher;
use super::ended::Ended;
use super::go::{GoFiles, GoNews};
use super::process::{Costs, Counted};
use crate::attribute::SlotId;
use crate::config::{AllocMode, Config};
use crate::host::Host;
use crate::load::AllocSide;
use crate::telemetry::AllocSource;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the thread is told.
pub(super) enum Order {
    /// A process of a service that is watched.
    Follow(SlotId, u32, AllocMode),
    /// A process ended, or became another program.
    Gone(u32),
    /// What ended processes have not freed is kept; the next program has the libraries of this process.
    Record(Option<u32>, Sender<()>),
    /// Whoever is watched from now on was not watched before.
    Forget,
    /// A tick ended.
    Take(Sender<Taken>),
}

/// What happened since the last tick.
#[derive(Default)]
pub(in super::super) struct Taken {
    /// Allocations by slot.
    pub(in super::super) counted: HashMap<SlotId, Counted>,
    /// What Go programs say of themselves.
    pub(in super::super) go: GoNews,
    /// Sampled allocations that live.
    pub(in super::super) live: Vec<(LiveKey, LiveValue)>,
    /// Each watched process.
    pub(in super::super) watched: Vec<WatchedProcess>,
}

/// How a process is watched.
#[derive(Clone, Debug)]
pub(in super::super) struct WatchedProcess {
    pub(in super::super) slot: SlotId,
    pub(in super::super) mode: AllocMode,
    /// Allocators with the paths of their files, and runtimes that say it themselves.
    pub(in super::super) allocators: Vec<String>,
    /// Where its figures are from.
    pub(in super::super) from: Vec<AllocSource>,
    /// Share of time with probes.
    pub(in super::super) duty: f64,
    /// How many times slower it ran.
    pub(in super::super) slowdown: f64,
    /// Why it is not watched, or not any more.
    pub(in super::super) refused: Option<String>,
    /// Functions of its allocators of which nothing is seen, and why.
    pub(in super::super) not_understood: Vec<String>,
    /// Its memory limit.
    pub(in super::super) memory_limit_bytes: Option<u64>,
}

/// A handle to the thread. Everything is detached when it is dropped.
pub(in super::super) struct Allocations {
    send: Sender<Order>,
    followed: HashMap<u32, SlotId>,
}

impl Allocations {
    pub(in super::super) fn start(side: AllocSide, host: Host, config: &Config) -> Result<Self> {
        let (send, receive) = mpsc::channel();
        let watcher = Watcher {
            side,
            host,
            period: config.alloc_period,
            limit: config.alloc_limit_ratio,
            slowest: config.alloc_slowdown,
            costs: Costs::default(),
            files: HashMap::new(),
            processes: BTreeMap::new(),
            go_files: GoFiles::default(),
            begun_ns: monotonic_ns(),
            free: (0..MAX_ALLOC_TARGETS).rev().collect(),
            looked: Instant::now(),
            ended: Ended::default(),
        };
        thread::Builder::new()
            .name("alloc".to_owned())
            .spawn(move || watcher.run(&receive))?;
        Ok(Self {
            send,
            followed: HashMap::new(),
        })
    }

    /// A process is to be watched; saying so again changes nothing. Returns whether it is new.
    pub(in super::super) fn follow(&mut self, slot: SlotId, pid: u32, mode: AllocMode) -> bool {
        let new = self.followed.insert(pid, slot) != Some(slot);
        if new {
            // The thread ends with this handle only.
            let _ = self.send.send(Order::Gone(pid));
            let _ = self.send.send(Order::Follow(slot, pid, mode));
        }
        new
    }

    /// A child of a watched process that runs the same program; one that is known by a slot of its own is left alone.
    pub(in super::super) fn follow_child(&mut self, slot: SlotId, pid: u32, mode: AllocMode) {
        if !self.followed.contains_key(&pid) {
            self.follow(slot, pid, mode);
        }
    }

    /// What processes that end have not freed counts as live from then on. Returns when the thread is ready to watch.
    pub(in super::super) fn record(&self, pid: Option<u32>) {
        let (reply, answer) = mpsc::channel();
        let _ = self.send.send(Order::Record(pid, reply));
        // Without an answer it begins to watch later.
        let _ = answer.recv_timeout(PATIENCE);
    }

    /// A process ended.
    pub(in super::super) fn gone(&mut self, pid: u32) {
        if self.followed.remove(&pid).is_some() {
            let _ = self.send.send(Order::Gone(pid));
        }
    }

    /// Nobody is watched any more; what was allocated until now is not counted later.
    pub(in super::super) fn forget(&mut self) {
        for (pid, _) in self.followed.drain() {
            let _ = self.send.send(Order::Gone(pid));
        }
        let _ = self.send.send(Order::Forget);
    }

    /// Processes that are watched, with their slots.
    pub(in super::super) fn followed(&self) -> Vec<(u32, SlotId)> {
        self.followed.iter().map(|(pid, slot)| (*pid, *slot)).collect()
    }

    /// What happened since the last time; nothing where the thread is busy for too long.
    pub(in super::super) fn take(&self) -> Taken {
        let (reply, answer) = mpsc::channel();
        let _ = self.send.send(Order::Take(reply));
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            tracing::warn!("no answer from the thread that watches allocations");
            Taken::default()
        })
    }
}
