//! What is given up, in which order, when the cost stays over its ceiling, and when it is taken back.

use anyhow::Result;

use crate::load::Loaded;

/// Wait samples a second that the host may take: about 0.04 % of a CPU (COST.md, cost model).
const WAIT_BUDGET: f64 = 100.0;
/// Ticks in a row over the ceiling before detail is given up, and how long they are together: one burst (a deployment, a compiler,
/// the symbols of what has just begun) is no reason, however short the ticks are.
const OVER: Lasting = Lasting {
    ticks: 3,
    seconds: 25.0,
};
/// The same below half of the ceiling before detail is taken back: slower, so that it does not swing.
const UNDER: Lasting = Lasting {
    ticks: 12,
    seconds: 60.0,
};

/// A step: its name on `/status` and what it gives up.
struct Step {
    name: &'static str,
    gives_up: &'static str,
}

const STEPS: [Step; 4] = [
    Step {
        name: "full",
        gives_up: "",
    },
    Step {
        name: "fewer stacks",
        gives_up: "a quarter of the stack samples only",
    },
    Step {
        name: "no system call durations",
        gives_up: "no durations and callers of system calls",
    },
    Step {
        name: "no system calls",
        gives_up: "system calls are not counted",
    },
];

/// Ticks in a row of which something is true.
#[derive(Clone, Copy, Debug, Default)]
struct Lasting {
    ticks: u32,
    seconds: f64,
}

impl Lasting {
    fn tick(&mut self, holds: bool, seconds: f64) {
        *self = match holds {
            true => Self {
                ticks: self.ticks + 1,
                seconds: self.seconds + seconds,
            },
            false => Self::default(),
        };
    }

    fn enough(self, wanted: Self) -> bool {
        self.ticks >= wanted.ticks && self.seconds >= wanted.seconds
    }
}

/// The present step.
#[derive(Debug, Default)]
pub(super) struct Levels {
    level: u32,
    over: Lasting,
    under: Lasting,
}

impl Levels {
    /// Takes the cost of a tick of so many seconds; true when the level changed.
    pub(super) fn tick(&mut self, cost: f64, limit: f64, seconds: f64) -> bool {
        self.over.tick(cost > limit, seconds);
        self.under.tick(cost < limit / 2.0, seconds);
        let last = STEPS.len() as u32 - 1;
        if self.over.enough(OVER) && self.level < last {
            self.level += 1;
            tracing::warn!(
                cost,
                limit,
                level = self.level,
                "over the ceiling of cost: {}",
                self.step().gives_up
            );
        } else if self.under.enough(UNDER) && self.level > 0 {
            self.level -= 1;
            tracing::info!(
                cost,
                limit,
                level = self.level,
                "room in the budget: back to {}",
                self.name()
            );
        } else {
            return false;
        }
        (self.over, self.under) = (Lasting::default(), Lasting::default());
        true
    }

    /// Tells the kernel side.
    pub(super) fn tune(&self, loaded: &mut Loaded) -> Result<()> {
        let normal = Loaded::DEFAULT_TUNING;
        let (fewer, durations) = (self.level >= 1, self.level < 2);
        loaded.set_tuning(|tuning| {
            tuning.memory_pages = normal.memory_pages * if fewer { 4 } else { 1 };
            tuning.conn_every = normal.conn_every * if fewer { 4 } else { 1 };
            tuning.syscall_every = if durations {
                normal.syscall_every
            } else {
                u32::MAX / 4
            };
            tuning.syscall_stack_every = if durations {
                normal.syscall_stack_every
            } else {
                u32::MAX / 4
            };
        })
    }

    fn step(&self) -> &'static Step {
        &STEPS[self.level as usize]
    }

    pub(super) fn level(&self) -> u32 {
        self.level
    }

    pub(super) fn name(&self) -> &'static str {
        self.step().name
    }

    /// All that is given up.
    pub(super) fn reasons(&self) -> Vec<&'static str> {
        STEPS[1..=self.level as usize]
            .iter()
            .map(|step| step.gives_up)
            .collect()
    }

    pub(super) fn syscalls(&self) -> bool {
        self.level < 3
    }

    pub(super) fn wait_budget(&self) -> f64 {
        if self.level >= 1 {
            WAIT_BUDGET / 4.0
        } else {
            WAIT_BUDGET
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_burst_changes_nothing_and_a_lasting_load_steps_down_in_order() {
        let mut levels = Levels::default();
        for cost in [0.5, 0.5, 0.001, 0.5, 0.5] {
            assert!(!levels.tick(cost, 0.01, 10.0));
        }
        assert!(levels.tick(0.5, 0.01, 10.0));
        assert_eq!(
            (levels.name(), levels.wait_budget(), levels.syscalls()),
            ("fewer stacks", 25.0, true)
        );
        for _ in 0..20 {
            levels.tick(0.5, 0.01, 10.0);
        }
        assert_eq!(
            (levels.level(), levels.syscalls(), levels.reasons().len()),
            (3, false, 3)
        );
    }

    #[test]
    fn detail_comes_back_slowly_and_only_with_room() {
        let mut levels = Levels {
            level: 2,
            ..Levels::default()
        };
        for _ in 0..100 {
            assert!(
                !levels.tick(0.008, 0.01, 10.0),
                "inside the ceiling, but no room for more"
            );
        }
        let changes = (0..24).filter(|_| levels.tick(0.001, 0.01, 10.0)).count();
        assert_eq!((changes, levels.level()), (2, 0));
    }

    #[test]
    fn a_burst_is_one_at_any_interval() {
        let mut levels = Levels::default();
        let lasts = (1..100).find(|_| levels.tick(0.5, 0.01, 1.0));
        assert_eq!(lasts, Some(25));
        let lasts = (1..100).find(|_| levels.tick(0.001, 0.01, 1.0));
        assert_eq!((lasts, levels.level()), (Some(60), 0));
        let lasts = (1..100).find(|_| levels.tick(0.5, 0.01, 60.0));
        assert_eq!(lasts, Some(3));
    }
}
