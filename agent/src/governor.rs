//! Keeps the cost of the system call hooks inside the budget: calibration at start, then duty-cycled windows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent_ebpf::wire::Program;
use anyhow::Result;

use crate::config::SyscallMode;
use crate::decode::harvest::counters;
use crate::load::Loaded;
use crate::telemetry::GovernorTelemetry;

/// Nanoseconds that one run of a program costs, hook included, where it was calibrated.
pub type Costs = BTreeMap<Program, f64>;

/// One window a period.
const PERIOD: Duration = Duration::from_secs(1);
/// Least share of the time, so that there is always something to see.
const LEAST: f64 = 0.02;
/// Share of the budget that system calls may take.
const SHARE: f64 = 0.5;

/// Decides when the system call hooks are attached.
pub struct Governor {
    mode: SyscallMode,
    costs: Costs,
    cpus: usize,
    limit: f64,
    duty: f64,
    period_began: Instant,
    on_at: Instant,
    off_at: Instant,
    on: bool,
    changed: Instant,
    on_time: Duration,
    tick_began: Instant,
    last_runs: u64,
    last_spent: f64,
    cost_ratio: f64,
    seed: u64,
}

/// Times a loop of the cheapest system call, best of several.
fn getppid_ns() -> f64 {
    const CALLS: u32 = 20_000;
    (0..5)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..CALLS {
                // SAFETY: getppid takes nothing and cannot fail.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
            began.elapsed().as_nanos() as f64 / f64::from(CALLS)
        })
        .fold(f64::INFINITY, f64::min)
}

/// Measures what the hooks cost on this host, by a loop with and without them. Only hooks that can be driven from here
/// without disturbing the host are calibrated: those of system calls, which are also the ones that can cost much.
pub fn calibrate(loaded: &mut Loaded) -> Result<Costs> {
    let mut costs = Costs::new();
    if loaded.works("syscall") {
        let with = getppid_ns();
        loaded.switch("syscall", false)?;
        let without = getppid_ns();
        let each = (with - without).max(0.0) / 2.0;
        costs.insert(Program::SyscallEnter, each);
        costs.insert(Program::SyscallExit, each);
        tracing::info!(ns_per_call = with - without, "calibrated the system call hooks");
    }
    Ok(costs)
}

impl Governor {
    /// Starts with the hooks detached; the first turn decides.
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
            on_at: now,
            off_at: now,
            on: false,
            changed: now,
            on_time: Duration::ZERO,
            tick_began: now,
            last_runs: 0,
            last_spent: 0.0,
            cost_ratio: 0.0,
            seed: 0x9E37_79B9_7F4A_7C15 ^ u64::from(std::process::id()),
        }
    }

    fn uniform(&mut self) -> f64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Everything was detached or attached by somebody else.
    pub fn reset(&mut self, now: Instant) {
        self.on = false;
        self.changed = now;
        self.period_began = now.checked_sub(PERIOD).unwrap_or(now);
    }

    /// When to call [`Self::turn`] next at the latest.
    #[must_use]
    pub fn next_turn(&self) -> Instant {
        if self.duty >= 1.0 {
            return self.period_began + PERIOD;
        }
        if self.on {
            self.off_at
        } else {
            self.on_at.max(self.period_began)
        }
    }

    /// Attaches or detaches as the time has come.
    pub fn turn(&mut self, loaded: &mut Loaded, now: Instant) -> Result<()> {
        if self.mode == SyscallMode::Off || !loaded.works("syscall") {
            self.on_at = now + PERIOD;
            return Ok(());
        }
        if self.duty >= 1.0 {
            self.period_began = now;
            return self.switch(loaded, true, now);
        }
        if self.on && now >= self.off_at {
            self.switch(loaded, false, now)?;
            self.steer(loaded)?;
            self.period_began += PERIOD;
            if self.period_began < now {
                self.period_began = now;
            }
            // A window at a random place of each period: no periodic program can hide from it.
            let length = PERIOD.mul_f64(self.duty.min(1.0));
            self.on_at = self.period_began + (PERIOD - length).mul_f64(self.uniform());
        } else if !self.on && now >= self.on_at {
            self.switch(loaded, true, now)?;
            self.off_at = now + PERIOD.mul_f64(self.duty);
        }
        Ok(())
    }

    /// Sets the duty by the rate seen in the last window.
    fn steer(&mut self, loaded: &mut Loaded) -> Result<()> {
        let runs = counters(loaded, "RUNS")?;
        let seen = runs.get(Program::SyscallExit.index()).copied().unwrap_or(0);
        let window = PERIOD.as_secs_f64() * self.duty;
        let rate = seen.saturating_sub(self.last_runs) as f64 / window;
        self.last_runs = seen;
        if self.mode == SyscallMode::Auto {
            let each: f64 = self.costs.values().sum();
            let share = rate * each / 1e9 / self.cpus as f64;
            let wanted = if share <= 0.0 {
                1.0
            } else {
                self.limit * SHARE / share
            };
            self.duty = if wanted >= 1.0 {
                0.9
            } else {
                wanted.clamp(LEAST, 0.9)
            };
        }
        Ok(())
    }

    fn switch(&mut self, loaded: &mut Loaded, on: bool, now: Instant) -> Result<()> {
        if self.on == on {
            return Ok(());
        }
        loaded.switch("syscall", on)?;
        if self.on {
            self.on_time += now.duration_since(self.changed);
        }
        self.on = on;
        self.changed = now;
        Ok(())
    }

    /// Ends a tick: the share of it during which the hooks were attached.
    pub fn finish_tick(&mut self, now: Instant) -> f64 {
        if self.on {
            self.on_time += now.duration_since(self.changed);
            self.changed = now;
        }
        let length = now.duration_since(self.tick_began).as_secs_f64();
        let ratio = if self.mode == SyscallMode::Exact || length <= 0.0 {
            1.0
        } else {
            (self.on_time.as_secs_f64() / length).clamp(0.0, 1.0)
        };
        self.on_time = Duration::ZERO;
        self.tick_began = now;
        ratio
    }

    /// Calibrated cost of so many runs in seconds, 0 for programs that are not calibrated.
    #[must_use]
    pub fn cost_seconds(&self, program: Program, runs: u64) -> f64 {
        self.costs.get(&program).map_or(0.0, |ns| ns * runs as f64 / 1e9)
    }

    /// Takes the total spent so far.
    pub fn account(&mut self, spent_seconds: f64, length_ns: u64) {
        let seconds = length_ns.max(1) as f64 / 1e9;
        self.cost_ratio = (spent_seconds - self.last_spent).max(0.0) / seconds / self.cpus as f64;
        self.last_spent = spent_seconds;
    }

    /// What it decided.
    #[must_use]
    pub fn telemetry(&self) -> GovernorTelemetry {
        let windows = self.mode == SyscallMode::Auto;
        GovernorTelemetry {
            syscall_duty: if self.mode == SyscallMode::Off {
                0.0
            } else {
                self.duty
            },
            reason: if windows {
                "counted in windows and scaled".to_owned()
            } else {
                String::new()
            },
            cost_ratio: self.cost_ratio,
            cost_limit_ratio: self.limit,
            ..GovernorTelemetry::default()
        }
    }
}
