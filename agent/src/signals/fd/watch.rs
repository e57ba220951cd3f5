//! Which processes are watched, and when.

use std::collections::HashSet;

use crate::decode::descriptors::WATCHED;
use crate::decode::model::FdForecast;

/// Ticks for which openings are sampled at a time.
const ATTACHED: u32 = 6;
/// Ticks between two such times: the hook costs every system call of the host, so it is there for a tenth of the time.
const REST: u32 = 54;
/// The same where a process has to be watched that never was.
const SHORT_REST: u32 = 12;

/// What the kernel side is to do until the next tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Processes whose descriptors are looked at one by one, 0 for none.
    pub watched: [u32; WATCHED],
    /// Openings are sampled.
    pub attached: bool,
}

/// Decides.
#[derive(Default)]
pub(super) struct Watch {
    /// Processes that have ever more descriptors, the one that reaches its limit first at the beginning.
    suspects: Vec<FdForecast>,
    watched: Vec<u32>,
    /// Watched, but not since openings began to be sampled.
    fresh: HashSet<u32>,
    /// Processes with sampled descriptors that stay.
    held: HashSet<u32>,
    /// Ticks until the hook is detached.
    left: u32,
    /// Ticks since it was; `None` where it never was there.
    rested: Option<u32>,
}

impl Watch {
    pub(super) fn suspects(&mut self, mut growing: Vec<FdForecast>) {
        growing.sort_by_key(|forecast| (forecast.left_ns, forecast.pid));
        self.suspects = growing;
    }

    pub(super) fn hold(&mut self, pids: impl Iterator<Item = u32>) {
        self.held = pids.collect();
    }

    pub(super) fn plan(&mut self, allowed: bool, alive: impl Fn(u32) -> bool) -> Plan {
        let suspect: HashSet<u32> = self.suspects.iter().map(|forecast| forecast.pid).collect();
        // Who is watched stays so while the number grows; one whose descriptors only stay makes room for who needs it.
        let mut next: Vec<u32> = self.watched.clone();
        next.retain(|pid| suspect.contains(pid));
        next.extend(self.suspects.iter().map(|forecast| forecast.pid));
        next.extend(
            self.watched
                .iter()
                .filter(|pid| self.held.contains(pid) && alive(**pid)),
        );
        let mut seen = HashSet::new();
        next.retain(|pid| seen.insert(*pid));
        next.truncate(WATCHED);
        self.fresh
            .extend(next.iter().filter(|pid| !self.watched.contains(pid)));
        self.fresh.retain(|pid| next.contains(pid));
        self.watched = next;

        let needed = allowed && self.watched.iter().any(|pid| suspect.contains(pid));
        if self.left > 0 {
            self.left -= 1;
            if self.left == 0 || !needed {
                (self.left, self.rested) = (0, Some(0));
            }
        } else if needed {
            let rest = if self.fresh.is_empty() { REST } else { SHORT_REST };
            let rested = self.rested.map(|ticks| ticks + 1);
            self.rested = rested;
            if rested.is_none_or(|ticks| ticks >= rest) {
                self.left = ATTACHED;
                self.fresh.clear();
            }
        } else {
            self.rested = self.rested.map(|ticks| ticks.saturating_add(1));
        }
        let mut watched = [0; WATCHED];
        for (to, pid) in watched.iter_mut().zip(&self.watched) {
            *to = *pid;
        }
        Plan {
            watched,
            attached: self.left > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growing(pids: &[u32]) -> Vec<FdForecast> {
        let each = pids.iter().zip(1u64..);
        each.map(|(pid, left_ns)| FdForecast {
            left_ns,
            each_ns: 1,
            open: 1,
            limit: 9,
            pid: *pid,
        })
        .collect()
    }

    #[test]
    fn the_hook_is_there_a_tenth_of_the_time_and_only_while_a_number_grows() {
        let mut watch = Watch::default();
        assert_eq!(watch.plan(true, |_| true), Plan::default());
        watch.suspects(growing(&[7]));
        let plans: Vec<Plan> = (0..600).map(|_| watch.plan(true, |_| true)).collect();
        assert!(plans.iter().all(|plan| plan.watched == [7, 0, 0, 0]));
        let attached = plans.iter().filter(|plan| plan.attached).count();
        assert!(
            plans[0].attached && (55..=70).contains(&attached),
            "{attached} of 600"
        );
        watch.suspects(growing(&[]));
        assert_eq!(watch.plan(true, |_| true), Plan::default());
    }

    #[test]
    fn who_is_watched_stays_and_a_newcomer_waits_for_a_short_rest() {
        let mut watch = Watch::default();
        watch.suspects(growing(&[1, 2, 3, 4]));
        watch.plan(true, |_| true);
        watch.suspects(growing(&[9, 1, 2, 3, 4]));
        assert_eq!(watch.plan(true, |_| true).watched, [1, 2, 3, 4]);
        // One stops to grow and has nothing that stays.
        watch.suspects(growing(&[9, 1, 2, 3]));
        watch.hold([4, 3].into_iter());
        let plans: Vec<Plan> = (0..30).map(|_| watch.plan(true, |_| true)).collect();
        assert!(plans.iter().all(|plan| plan.watched == [1, 2, 3, 9]));
        let again = plans
            .iter()
            .skip_while(|plan| plan.attached)
            .position(|plan| plan.attached);
        assert_eq!(again, Some(SHORT_REST as usize));
        assert!(!watch.plan(false, |_| true).attached, "not allowed");
    }

    #[test]
    fn a_process_with_descriptors_that_stay_is_watched_while_it_lives() {
        let mut watch = Watch::default();
        watch.suspects(growing(&[7]));
        watch.plan(true, |_| true);
        watch.hold([7].into_iter());
        watch.suspects(Vec::new());
        let plan = watch.plan(true, |_| true);
        assert_eq!((plan.watched[0], plan.attached), (7, false));
        assert_eq!(watch.plan(true, |_| false).watched[0], 0);
    }
}
