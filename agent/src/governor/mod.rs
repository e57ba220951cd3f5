//! Keeps the agent's cost inside its budget: calibration at start, duty-cycled windows of the system call hooks, and
//! less detail, step by step, where that is not enough.

mod calibrate;
mod level;

use std::time::{Duration, Instant};

use agent_ebpf::wire::Program;
use anyhow::Result;

use crate::config::SyscallMode;
use crate::decode::harvest::{Windows, counter_by_cpu};
use crate::load::Loaded;
use crate::telemetry::GovernorTelemetry;

pub use self::calibrate::{Costs, calibrate};
use self::level::Levels;

/// A window of which less is left than this when a tick has been read is not opened again.
const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
/// Seconds that a tick must have for its cost to mean anything.
const SHORTEST_TICK: f64 = 0.5;
/// One window a period.
const PERIOD: Duration = Duration::from_secs(1);
/// Least share of the time, so that there is always something to see.
const LEAST: f64 = 0.02;
/// Share of the budget that system calls may take, on any CPU.
const SHARE: f64 = 0.5;

/// A duty this far below all of the time is left only when there is this much room in the budget.
const HYSTERESIS: f64 = 1.3;

/// Decides when the system call hooks are attached.
pub struct Governor {
    mode: SyscallMode,
    costs: Costs,
    cpus: usize,
    limit: f64,
    /// Share of the time that system calls are to be counted.
    duty: f64,
    period_began: Instant,
    /// When to look again.
    next: Instant,
    /// Calls are rated since then.
    rated: Instant,
    /// Since when calls are counted.
    open: Option<Instant>,
    /// Time of this tick in which calls were counted, up to the last closing or tick.
    counted: Duration,
    /// Whether the window is held while a tick is read.
    held: bool,
    tick_began: Instant,
    last_runs: Vec<u64>,
    last_spent: f64,
    cost_ratio: f64,
    levels: Levels,
    seed: u64,
}

/// System calls seen so far, by CPU.
fn seen(loaded: &mut Loaded) -> Result<Vec<u64>> {
    counter_by_cpu(loaded, "RUNS", Program::SyscallExit as u32)
}

/// Calls since `before`: on the busiest CPU, and on all.
fn calls_since(before: &[u64], now: &[u64]) -> (u64, u64) {
    let by_cpu = now
        .iter()
        .zip(before.iter().chain(std::iter::repeat(&0)))
        .map(|(now, before)| now.saturating_sub(*before));
    by_cpu.fold((0, 0), |(most, all), calls| (most.max(calls), all + calls))
}

impl Governor {
    /// Starts with no call counted; the first turn decides.
    #[must_use]
    pub fn new(mode: SyscallMode, costs: Costs, cpus: usize, limit: f64) -> Self {
        let now = Instant::now();
        Self {
            mode,
            costs,
            cpus: cpus.max(1),
            limit,
            duty: if mode == SyscallMode::Exact { 1.0 } else { 0.05 },
            period_began: now,
            next: now,
            rated: now,
            open: None,
            counted: Duration::ZERO,
            held: false,
            tick_began: now,
            last_runs: Vec::new(),
            last_spent: 0.0,
            cost_ratio: 0.0,
            levels: Levels::default(),
            seed: 0x9E37_79B9_7F4A_7C15 ^ u64::from(std::process::id()),
        }
    }

    fn uniform(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Stops counting: everything is about to be detached.
    pub fn pause(&mut self, loaded: &mut Loaded) -> Result<()> {
        self.close(loaded)
    }

    /// Everything is attached again: the next window comes at a random place of a new period, as any other. Were it to come
    /// at once, a switch that is turned often would make a duty of its own.
    pub fn resume(&mut self, now: Instant) {
        self.begin_period(now);
    }

    /// A window at a random place of each period: no periodic program can hide from it.
    fn begin_period(&mut self, at: Instant) {
        self.period_began = at;
        self.next = at + PERIOD.mul_f64((1.0 - self.duty).max(0.0) * self.uniform());
    }

    /// When to call [`Self::turn`] next at the latest.
    #[must_use]
    pub fn next_turn(&self) -> Instant {
        self.next
    }

    /// Attaches or detaches as the time has come.
    pub fn turn(&mut self, loaded: &mut Loaded, now: Instant) -> Result<()> {
        if now < self.next {
            return Ok(());
        }
        let given_up = self.mode == SyscallMode::Auto && !self.levels.syscalls();
        if self.mode == SyscallMode::Off || given_up || !loaded.works("syscall") {
            self.next = now + PERIOD;
            return self.close(loaded);
        }
        if self.open.is_none() {
            self.open(loaded)?;
            self.next = now + PERIOD.mul_f64(self.duty.min(1.0));
            return Ok(());
        }
        self.steer(loaded, now)?;
        if self.duty >= 1.0 {
            self.next = now + PERIOD;
            return Ok(());
        }
        self.close(loaded)?;
        self.begin_period((self.period_began + PERIOD).max(now));
        Ok(())
    }

    /// Sets the duty by the rate of calls on the busiest CPU since the last look.
    fn steer(&mut self, loaded: &mut Loaded, now: Instant) -> Result<()> {
        let length = now.duration_since(self.rated);
        self.rated = now;
        let seen = seen(loaded)?;
        let (most, all) = calls_since(&self.last_runs, &seen);
        self.last_runs = seen;
        if self.mode == SyscallMode::Exact {
            return Ok(());
        }
        // The busiest CPU counts, not the host: else a single busy service would bear what a host of 64 CPUs may cost.
        let share = most as f64 / length.as_secs_f64().max(1e-6) * self.call_ns() / 1e9;
        let wanted = self.limit * SHARE / share.max(1e-12);
        let room = if self.duty >= 1.0 { 1.0 } else { HYSTERESIS };
        let duty = if wanted >= room {
            1.0
        } else {
            wanted.clamp(LEAST, 0.9)
        };
        if (duty >= 1.0) != (self.duty >= 1.0) {
            tracing::info!(
                duty,
                calls_per_second = (all as f64 / length.as_secs_f64().max(1e-6)).round(),
                "system calls are counted {}",
                if duty >= 1.0 { "exactly" } else { "in windows" }
            );
        }
        self.duty = duty;
        Ok(())
    }

    fn open(&mut self, loaded: &mut Loaded) -> Result<()> {
        // Not what the last look saw: its window may have been cut short.
        self.last_runs = seen(loaded)?;
        loaded.count_syscalls(true)?;
        self.rated = Instant::now();
        self.open = Some(self.rated);
        Ok(())
    }

    fn close(&mut self, loaded: &mut Loaded) -> Result<()> {
        if let Some(since) = self.open.take() {
            let until = loaded.count_syscalls(false)?;
            self.counted += until.duration_since(since);
        }
        Ok(())
    }

    /// Ends a tick: how calls were counted in it. A window that is open is held until [`Self::go_on`], because what is counted
    /// while the tick is read would belong to no time: of a window that opened just before, that was most of its calls.
    pub fn finish_tick(&mut self, loaded: &mut Loaded) -> Result<Windows> {
        let mut now = Instant::now();
        // What opening takes is not a tenth of a percent: a tick that was counted to the end was counted whole.
        let whole = self.mode == SyscallMode::Exact || self.share_counted(now) > 0.999;
        if !whole && self.open.is_some() {
            now = loaded.hold_syscalls(true)?;
            self.held = true;
        }
        let ratio = if whole { 1.0 } else { self.share_counted(now) };
        self.open = self.open.map(|_| now);
        self.counted = Duration::ZERO;
        self.tick_began = now;
        Ok(Windows {
            ratio,
            ns_per_call: self.call_ns(),
        })
    }

    /// Share of this tick, up to now, in which calls were counted.
    fn share_counted(&self, now: Instant) -> f64 {
        let open = self
            .open
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let length = now.saturating_duration_since(self.tick_began).as_secs_f64();
        ((self.counted + open).as_secs_f64() / length.max(1e-9)).clamp(0.0, 1.0)
    }

    /// The tick has been read: goes on with the window that was held.
    pub fn go_on(&mut self, loaded: &mut Loaded) -> Result<()> {
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        let now = loaded.hold_syscalls(false)?;
        self.open = Some(now);
        if self.duty >= 1.0 {
            // From here on ticks are whole, and this one's reading is the first's loss.
            self.tick_began = now;
        } else if self.next < now + SHORTEST_WINDOW {
            self.close(loaded)?;
            self.begin_period((self.period_began + PERIOD).max(now));
            return Ok(());
        }
        self.last_runs = seen(loaded)?;
        self.rated = now;
        Ok(())
    }

    /// Calibrated nanoseconds that counting adds to a call.
    fn call_ns(&self) -> f64 {
        self.costs.of(Program::SyscallEnter) + self.costs.of(Program::SyscallExit)
    }

    /// Calibrated cost of so many runs in seconds.
    #[must_use]
    pub fn cost_seconds(&self, program: Program, runs: u64) -> f64 {
        self.costs.of(program) * runs as f64 / 1e9
    }

    /// Takes the total spent so far at the end of a tick, and gives up detail or takes it back.
    pub fn account(&mut self, loaded: &mut Loaded, spent_seconds: f64, length_ns: u64) -> Result<()> {
        let seconds = length_ns.max(1) as f64 / 1e9;
        // The last ticks of a recording are as short as they happen to be: part of the next one, which may never come.
        if seconds < SHORTEST_TICK {
            return Ok(());
        }
        self.cost_ratio = (spent_seconds - self.last_spent).max(0.0) / seconds / self.cpus as f64;
        self.last_spent = spent_seconds;
        if self.levels.tick(self.cost_ratio, self.limit, seconds) {
            self.levels.tune(loaded)?;
        }
        Ok(())
    }

    /// Whether the hook on the end of system calls may be there for a while, to see who opens descriptors.
    #[must_use]
    pub fn allows_openings(&self) -> bool {
        match self.mode {
            SyscallMode::Off => false,
            SyscallMode::Exact => true,
            SyscallMode::Auto => self.levels.syscalls(),
        }
    }

    /// Wait samples a second that the host may take.
    #[must_use]
    pub fn wait_budget(&self) -> f64 {
        self.levels.wait_budget()
    }

    /// What it decided.
    #[must_use]
    pub fn telemetry(&self) -> GovernorTelemetry {
        let windows = self.mode == SyscallMode::Auto && self.duty < 1.0;
        let off = self.mode == SyscallMode::Off || self.mode == SyscallMode::Auto && !self.levels.syscalls();
        let mut reasons = self.levels.reasons();
        if windows && !off {
            reasons.push("system calls are counted in windows and scaled");
        }
        GovernorTelemetry {
            level: self.levels.level(),
            level_name: self.levels.name().to_owned(),
            syscall_duty: if off { 0.0 } else { self.duty },
            reason: reasons.join(", "),
            cost_ratio: self.cost_ratio,
            cost_limit_ratio: self.limit,
            ..GovernorTelemetry::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_that_are_over_and_the_open_one_are_a_share_of_the_tick() {
        let mut governor = Governor::new(SyscallMode::Auto, Costs::default(), 2, 0.01);
        let began = governor.tick_began;
        let after = |ms| began + Duration::from_millis(ms);
        let is = |governor: &Governor, ms, share: f64| {
            assert!((governor.share_counted(after(ms)) - share).abs() < 1e-9);
        };
        is(&governor, 1000, 0.0);
        governor.counted = Duration::from_millis(100);
        is(&governor, 1000, 0.1);
        governor.open = Some(after(900));
        is(&governor, 1000, 0.2);
        governor.open = Some(after(1001));
        is(&governor, 1000, 0.1);
    }

    #[test]
    fn the_busiest_cpu_is_told_from_all() {
        assert_eq!(calls_since(&[], &[3, 5]), (5, 8), "nothing was seen before");
        assert_eq!(calls_since(&[1000, 10], &[1001, 40]), (30, 31));
    }
}
