//! One process whose allocations are watched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_ebpf::wire::{ALLOC_RANGES, AllocCall, AllocClock, AllocCounts, AllocTarget, ResultSite};
use anyhow::{Context as _, Result};

use super::go::GoProcess;
use crate::attribute::SlotId;
use crate::config::AllocMode;
use crate::host::{Host, OpenFile};
use crate::load::{AllocProgram, AllocSide, Place, UprobeLink};
use crate::signals::alloc::{Allocator, Duty, Scale, Seen, Slowdown, Windows, windows_cost};

/// CPU seconds of a tick from which on its slowdown is told: user time is counted by ticks of a hundredth.
const TOLD: f64 = 0.2;
/// How long a program's loader may take.
const EARLY: Duration = Duration::from_millis(250);

/// What probes cost, in seconds a hit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Costs {
    pub(super) enter: f64,
    pub(super) leave: f64,
}

/// A mapped allocator with its probes.
pub(super) struct Target {
    pub(super) index: u32,
    pub(super) allocator: Arc<Allocator>,
    pub(super) path: String,
    file: OpenFile,
    bias: u64,
    links: Vec<UprobeLink>,
    epoch: u32,
    /// What was counted when it was looked at last: an index may have been another's before.
    seen: AllocCounts,
}

impl Target {
    pub(super) fn new(
        index: u32,
        allocator: Arc<Allocator>,
        path: String,
        file: OpenFile,
        bias: u64,
        seen: AllocCounts,
    ) -> Self {
        Self {
            index,
            allocator,
            path,
            file,
            bias,
            links: Vec::new(),
            epoch: 0,
            seen,
        }
    }

    /// Offsets of the program's places.
    fn places(&self, program: AllocProgram, live: bool) -> Vec<Place> {
        let mut places = BTreeMap::new();
        for function in &self.allocator.functions {
            let sites = &function.sites;
            let mut add = |address: u64, cookie: u64| {
                if let Some(offset) = self.allocator.offset(address) {
                    places.insert(offset, cookie);
                }
            };
            let frees = function.call == AllocCall::Free;
            let site = function.site(self.index, live);
            match program {
                AllocProgram::Enter if !frees => add(sites.entry, site.cookie()),
                AllocProgram::Free if frees => add(sites.entry, site.cookie()),
                AllocProgram::Return if !frees => {
                    let result = |word, pushed, last| ResultSite { word, pushed, last }.cookie();
                    for (address, known) in &sites.results.known {
                        add(*address, result(known.word, known.pushed, false));
                    }
                    for address in &sites.results.stepped {
                        add(*address, result(ResultSite::AX, 0, true));
                    }
                    for address in &sites.exits {
                        add(*address, result(ResultSite::DI, 0, true));
                    }
                }
                _ => {}
            }
        }
        places
            .into_iter()
            .map(|(offset, cookie)| Place { offset, cookie })
            .collect()
    }

    fn attach(&mut self, side: &AllocSide, pid: u32, live: bool) -> Result<()> {
        // The very file that was looked at, whatever has its path now.
        let path = Host::own_path(&self.file);
        let programs: &[AllocProgram] = if live {
            // Frees first: what is allocated from now on must not be missed when it goes.
            &[AllocProgram::Free, AllocProgram::Return, AllocProgram::Enter]
        } else {
            &[AllocProgram::Enter]
        };
        for program in programs {
            let places = self.places(*program, live);
            if !places.is_empty() {
                let link = side
                    .attach(*program, &path, &places, pid)
                    .with_context(|| format!("attach to {} of process {pid}", self.path))?;
                self.links.push(link);
            }
        }
        Ok(())
    }

    fn describe(&mut self, side: &mut AllocSide, on: bool, mean: u32) -> Result<()> {
        self.epoch += u32::from(on);
        let mut target = AllocTarget {
            ranges: self.allocator.ranges.len().min(ALLOC_RANGES) as u32,
            mean,
            epoch: self.index << 16 | self.epoch & 0xffff,
            on: u32::from(on),
            ..AllocTarget::default()
        };
        let both = target.from.iter_mut().zip(&mut target.to);
        for ((from, to), range) in both.zip(&self.allocator.ranges) {
            (*from, *to) = (range.0.wrapping_add(self.bias), range.1.wrapping_add(self.bias));
        }
        side.set_target(self.index, target)
    }

    /// What was counted since the last time.
    fn counted(&mut self, side: &AllocSide) -> Result<AllocCounts> {
        let now = side.counts(self.index)?;
        let before = std::mem::replace(&mut self.seen, now);
        Ok(AllocCounts {
            hits: now.hits.wrapping_sub(before.hits),
            bytes: now.bytes.wrapping_sub(before.bytes),
            objects: now.objects.wrapping_sub(before.objects),
            missed: now.missed.wrapping_sub(before.missed),
        })
    }
}

/// Allocations since the last tick.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in super::super) struct Counted {
    pub(in super::super) bytes: f64,
    pub(in super::super) objects: f64,
}

pub(super) struct Process {
    pub(super) slot: SlotId,
    /// Since when it is watched.
    begun: Instant,
    pub(super) mode: AllocMode,
    pub(super) targets: Vec<Target>,
    /// Of a Go program, what its runtime says.
    pub(super) go: Option<GoProcess>,
    /// Files that were looked at, by inode.
    pub(super) looked: BTreeMap<u64, String>,
    pub(super) duty: Duty,
    /// When its window opens or closes next.
    pub(super) next: Instant,
    pub(super) open: bool,
    /// CPU time and time when the window opened.
    opened: (f64, Instant),
    /// Mean distance of samples in the window.
    mean: u32,
    /// CPU time and time up to which windows were paid for.
    paid: (f64, Instant),
    scale: Scale,
    /// When the last tick ended.
    ticked: Instant,
    /// What windows saw since the last tick.
    windows: Seen,
    counted: Counted,
    /// CPU time at the last tick.
    pub(super) cpu: f64,
    /// How many times slower the process runs than it would, as far as is known, and at least.
    pub(super) slowdown: f64,
    pub(super) slowdown_least: f64,
    clocked: Slowdown,
    /// What the clock had counted at the last tick.
    clock: AllocClock,
    /// Why it is watched no more.
    pub(super) stopped: Option<String>,
}

impl Process {
    pub(super) fn new(slot: SlotId, mode: AllocMode, duty: Duty, cpu: f64, now: Instant) -> Self {
        Self {
            slot,
            begun: now,
            mode,
            targets: Vec::new(),
            go: None,
            looked: BTreeMap::new(),
            duty,
            next: now,
            open: false,
            opened: (0.0, now),
            mean: 1,
            paid: (cpu, now),
            scale: Scale::default(),
            ticked: now,
            windows: Seen::default(),
            counted: Counted::default(),
            cpu,
            slowdown: 1.0,
            slowdown_least: 1.0,
            clocked: Slowdown::default(),
            clock: AllocClock::default(),
            stopped: None,
        }
    }

    /// Its loader may still map its libraries.
    pub(super) fn early(&self) -> bool {
        self.begun.elapsed() < EARLY
    }

    /// Probes of one target for good.
    pub(super) fn watch(&mut self, side: &mut AllocSide, pid: u32, period: u32, at: usize) -> Result<()> {
        if let Some(target) = self.targets.get_mut(at) {
            target.describe(side, true, period)?;
            target.attach(side, pid, true)?;
            if at == 0 {
                side.clock(pid)?;
            }
        }
        Ok(())
    }

    /// Opens a window.
    pub(super) fn open(
        &mut self,
        side: &mut AllocSide,
        pid: u32,
        period: u32,
        cpu: impl Fn() -> f64,
    ) -> Result<()> {
        for target in &mut self.targets {
            target.attach(side, pid, false)?;
        }
        let mean = self.duty.mean(period);
        for target in &mut self.targets {
            target.describe(side, true, mean)?;
        }
        self.opened = (cpu(), Instant::now());
        self.mean = mean;
        self.open = true;
        Ok(())
    }

    /// Whether all windows until now are paid for, where the program is one of so many that are watched in them.
    pub(super) fn paid(&mut self, cpu: f64, watched: usize) -> bool {
        let (before, since) = std::mem::replace(&mut self.paid, (cpu, Instant::now()));
        self.duty
            .pay((cpu - before).max(0.0), since.elapsed().as_secs_f64(), watched)
    }

    /// Closes it.
    pub(super) fn close(&mut self, side: &mut AllocSide, cpu: impl Fn() -> f64) -> Result<()> {
        self.open = false;
        let mut window = Windows {
            cpu: cpu() - self.opened.0,
            wall: self.opened.1.elapsed().as_secs_f64(),
            ..Windows::default()
        };
        for target in &mut self.targets {
            target.describe(side, false, 1)?;
            target.links.clear();
            let counted = target.counted(side)?;
            window.hits += counted.hits as f64;
            window.missed += counted.missed as f64;
            window.bytes += counted.bytes as f64;
            window.samples += counted.bytes as f64 / f64::from(self.mean.max(1));
            self.counted.bytes += counted.bytes as f64;
            self.counted.objects += counted.objects as f64;
        }
        self.duty.learn(window);
        tracing::debug!(?window, mean = self.mean, share = self.duty.share(), "window");
        self.windows.add(window);
        Ok(())
    }

    /// Removes all probes.
    pub(super) fn detach(&mut self) {
        self.open = false;
        for target in &mut self.targets {
            target.links.clear();
        }
    }

    /// What it allocated since the last time this was asked; `cpu` is its CPU time now.
    pub(super) fn take(&mut self, side: &AllocSide, pid: u32, costs: Costs, cpu: f64) -> Result<Counted> {
        let used = (cpu - self.cpu).max(0.0);
        self.cpu = cpu;
        let mut counted = std::mem::take(&mut self.counted);
        if self.mode == AllocMode::Full {
            let mut cost = 0.0;
            for target in &mut self.targets {
                let now = target.counted(side)?;
                counted.bytes += now.bytes as f64;
                counted.objects += now.objects as f64;
                // What is allocated is freed, sooner or later.
                cost += now.hits as f64 * (2.0 * costs.enter + costs.leave);
            }
            let clock = side.clocked(pid);
            let before = std::mem::replace(&mut self.clock, clock);
            let samples = clock.samples.saturating_sub(before.samples);
            self.clocked
                .add(samples, clock.probes.saturating_sub(before.probes), used);
            if used >= TOLD {
                let calibrated = used / (used - cost).max(used * 1e-3);
                tracing::debug!(pid, used, calibrated, clocked = ?self.clocked, "tick of mode full");
                self.slowdown = self.clocked.told(calibrated);
                self.slowdown_least = self.clocked.at_least(calibrated);
            }
            return Ok(counted);
        }
        let windows = std::mem::take(&mut self.windows);
        if windows.all().cpu <= 0.0 {
            // No window saw it run: what it did is part of the next tick, and so are they.
            self.cpu -= used;
            self.windows = windows;
            self.counted = counted;
            return Ok(Counted::default());
        }
        let wall = std::mem::replace(&mut self.ticked, Instant::now())
            .elapsed()
            .as_secs_f64();
        let scale = self.scale.tick(windows, used, wall, costs.enter);
        tracing::debug!(?windows, used, wall, scale, bytes = counted.bytes * scale, "tick");
        counted.bytes *= scale;
        counted.objects *= scale;
        let cost = windows_cost(windows.all(), costs.enter);
        self.slowdown = used / (used - cost).max(used * 1e-3).max(1e-9);
        Ok(counted)
    }
}
