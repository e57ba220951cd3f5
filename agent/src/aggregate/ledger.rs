//! Matching samples with the exact total that they are samples of.
//!
//! The exact time of a wait is counted while it passes, but its sample comes when it ends; samples and counters are
//! also read at slightly different moments. So a ledger holds exact amounts that no sample has claimed yet, and
//! samples that found nothing to claim, for a few ticks each:
//!
//! - samples and something to claim: the samples' weights are scaled so that they add up to what they claim, to the
//!   last unit;
//! - an amount that nobody claims in time is *unsampled* and goes to `(other)`;
//! - samples that find nothing in time are dropped and counted.
//!
//! Credits plus unsampled amounts equal the exact total as soon as the hold time has passed, always.

use std::collections::VecDeque;
use std::sync::Arc;

use super::group::Rule;
use crate::symbolize::{Owner, SharedStack, StackDetail};

/// Samples of one group that may wait for their total.
const MAX_PENDING: usize = 256;
/// Ticks that they wait at most: the counters of what they are samples of come with them, or soon.
const MOST_PATIENCE: usize = 6;

/// A sampled stack that asks for its part of an exact total.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) stack: SharedStack,
    pub(super) detail: StackDetail,
    pub(super) weight: f64,
    /// The part of `weight` that was measured, not estimated.
    pub(super) own: f64,
}

impl Claim {
    pub(super) fn owner(&self) -> Owner {
        Owner {
            function: Arc::clone(&self.stack.owner.function),
            file: Arc::clone(&self.stack.owner.file),
        }
    }
}

/// What a tick settled.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Claims and what each of them got.
    pub(super) credits: Vec<(Claim, u64)>,
    /// Of the exact total, what no sample covers.
    pub(super) unsampled: u64,
    /// Samples that waited in vain.
    pub(super) dropped: u64,
}

/// The books of one group of one service.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Unclaimed exact amounts, the oldest tick first.
    held: VecDeque<u64>,
    /// Durations of ended waits whose samples have not come, the oldest tick first.
    ended: VecDeque<u64>,
    /// Samples that found nothing, with the ticks that they have waited.
    pending: VecDeque<(Claim, usize)>,
    /// How the samples of the last tick related to its amount.
    rule: Option<Rule>,
}

impl Ledger {
    pub(super) fn rule(&self) -> Option<Rule> {
        self.rule
    }

    /// Takes a tick's exact amount and samples; `hold` is for how many ticks either may wait for the other.
    pub(super) fn settle(&mut self, exact: u64, rule: Rule, claims: Vec<Claim>, hold: usize) -> Settled {
        let mut settled = Settled::default();
        self.held.push_back(exact);
        self.rule = Some(rule);
        if let Rule::Ended(ns) = rule {
            self.ended.push_back(ns);
        }
        self.pending.extend(
            claims
                .into_iter()
                .filter(|claim| claim.weight > 0.0)
                .map(|claim| (claim, 0)),
        );

        let weight: f64 = self.pending.iter().map(|(claim, _)| claim.weight).sum();
        let held = sum(&self.held);
        let overdue = self
            .pending
            .front()
            .is_some_and(|(_, age)| *age >= hold.min(MOST_PATIENCE));
        let target = match rule {
            Rule::Scale => held,
            Rule::Claim => held.min(weight.round() as u64),
            Rule::Ended(_) => match sum(&self.ended) {
                // The histogram never came: the weights are the best that is known of these waits.
                0 if overdue => held.min(weight.round() as u64),
                ended => held.min(ended),
            },
        };
        if weight > 0.0 && target > 0 {
            self.credit(target, weight, rule, &mut settled);
        }
        self.expire(hold, &mut settled);
        settled
    }

    /// Shares `target` out, to the unit.
    ///
    /// What is scaled is the estimated part of each weight: a wait so long that it was certain to be sampled stands
    /// for itself and takes no part of the error of those that were chosen by lot. (Scaling whole weights is a ratio
    /// estimator, biased towards the lottery by some percent where a tick has few samples; see Särndal, Swensson and
    /// Wretman, Model Assisted Survey Sampling, 6.5, for this calibration of weights.)
    fn credit(&mut self, target: u64, weight: f64, rule: Rule, settled: &mut Settled) {
        let own: f64 = self.pending.iter().map(|(claim, _)| claim.own).sum();
        let estimated = weight - own;
        let (measured, scale) = if estimated > 1e-9 * weight && own < target as f64 {
            (1.0, (target as f64 - own) / estimated)
        } else {
            (0.0, target as f64 / weight)
        };
        let (mut seen, mut given) = (0.0, 0);
        let last = self.pending.len() - 1;
        for (at, (claim, _)) in self.pending.iter().enumerate() {
            seen += measured * claim.own + scale * (claim.weight - measured * claim.own);
            let upto = if at == last {
                target
            } else {
                (seen as u64).clamp(given, target)
            };
            settled.credits.push((claim.clone(), upto - given));
            given = upto;
        }
        take(&mut self.held, target);
        self.ended.clear();
        let left = 1.0 - target as f64 / weight;
        if rule == Rule::Claim && left > 1e-6 {
            for (claim, _) in &mut self.pending {
                claim.weight *= left;
            }
        } else {
            self.pending.clear();
        }
    }

    fn expire(&mut self, hold: usize, settled: &mut Settled) {
        while self.held.len() > hold {
            settled.unsampled = settled
                .unsampled
                .saturating_add(self.held.pop_front().unwrap_or(0));
        }
        while self.ended.len() > hold {
            self.ended.pop_front();
        }
        for (_, age) in &mut self.pending {
            *age += 1;
        }
        let patience = hold.min(MOST_PATIENCE);
        while self.pending.len() > MAX_PENDING || self.pending.front().is_some_and(|(_, age)| *age > patience)
        {
            self.pending.pop_front();
            settled.dropped += 1;
        }
    }

    /// Nothing is held and nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.held.iter().chain(&self.ended).all(|&amount| amount == 0)
    }
}

fn sum(amounts: &VecDeque<u64>) -> u64 {
    amounts.iter().fold(0, |sum: u64, &more| sum.saturating_add(more))
}

/// Takes an amount away, the oldest first.
fn take(amounts: &mut VecDeque<u64>, mut amount: u64) {
    for held in amounts.iter_mut() {
        let taken = amount.min(*held);
        *held -= taken;
        amount -= taken;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Random, stack};
    use super::*;

    fn claim(function: &str, weight: f64) -> Claim {
        Claim {
            stack: stack(function, false),
            detail: StackDetail::None,
            weight,
            own: 0.0,
        }
    }

    fn amounts(settled: &Settled) -> Vec<(String, u64)> {
        settled
            .credits
            .iter()
            .map(|(c, n)| (c.owner().function.to_string(), *n))
            .collect()
    }

    #[test]
    fn scaled_to_the_exact_total() {
        let mut ledger = Ledger::default();
        let settled = ledger.settle(1001, Rule::Scale, vec![claim("a", 3.0), claim("b", 1.0)], 2);
        assert_eq!(amounts(&settled), [("a".into(), 750), ("b".into(), 251)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn what_was_measured_is_not_scaled() {
        let mut ledger = Ledger::default();
        let certain = Claim {
            own: 50.0,
            ..claim("long", 50.0)
        };
        let lot = Claim {
            own: 1.0,
            ..claim("short", 101.0)
        };
        let settled = ledger.settle(100, Rule::Scale, vec![certain.clone(), lot.clone()], 2);
        assert_eq!(amounts(&settled), [("long".into(), 50), ("short".into(), 50)]);
        // More was measured than the total holds: nothing is left but to scale it all.
        let settled = ledger.settle(30, Rule::Scale, vec![certain, lot], 2);
        assert_eq!(amounts(&settled), [("long".into(), 9), ("short".into(), 21)]);
    }

    #[test]
    fn a_long_wait_is_credited_in_full_when_it_ends_and_not_to_others_before() {
        let mut ledger = Ledger::default();
        for _ in 0..5 {
            // "short" waits 1 a tick and is sampled at its end; "long" has been waiting all the time.
            let settled = ledger.settle(11, Rule::Ended(1), vec![claim("short", 1.0)], 6);
            assert_eq!(amounts(&settled), [("short".into(), 1)]);
        }
        let settled = ledger.settle(10, Rule::Ended(60), vec![claim("long", 60.0)], 6);
        assert_eq!(amounts(&settled), [("long".into(), 60)]);
        assert!(ledger.is_empty());
    }

    #[test]
    fn unclaimed_amounts_expire_and_late_samples_are_dropped() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.settle(5, Rule::Scale, vec![], 1).unsampled, 0);
        assert_eq!(ledger.settle(0, Rule::Scale, vec![], 1).unsampled, 5);
        assert_eq!(ledger.settle(0, Rule::Scale, vec![claim("a", 2.0)], 1).dropped, 0);
        assert_eq!(ledger.settle(0, Rule::Scale, vec![], 1).dropped, 1);
        assert!(ledger.is_empty());
    }

    #[test]
    fn samples_that_come_before_their_count_wait_for_it() {
        let mut ledger = Ledger::default();
        assert!(
            ledger
                .settle(0, Rule::Scale, vec![claim("a", 2.0)], 2)
                .credits
                .is_empty()
        );
        assert_eq!(
            amounts(&ledger.settle(9, Rule::Scale, vec![], 2)),
            [("a".into(), 9)]
        );
    }

    #[test]
    fn claims_take_what_they_weigh_and_no_more_than_there_is() {
        let mut ledger = Ledger::default();
        assert_eq!(
            amounts(&ledger.settle(10, Rule::Claim, vec![claim("a", 4.0)], 1)),
            [("a".into(), 4)]
        );
        assert_eq!(ledger.settle(0, Rule::Claim, vec![], 1).unsampled, 6);
        assert_eq!(
            amounts(&ledger.settle(3, Rule::Claim, vec![claim("a", 5.0)], 1)),
            [("a".into(), 3)]
        );
        assert_eq!(
            amounts(&ledger.settle(2, Rule::Claim, vec![], 1)),
            [("a".into(), 2)]
        );
    }

    #[test]
    fn without_a_histogram_the_weights_count() {
        let mut ledger = Ledger::default();
        assert!(
            ledger
                .settle(10, Rule::Ended(0), vec![claim("a", 4.0)], 1)
                .credits
                .is_empty()
        );
        let settled = ledger.settle(0, Rule::Ended(0), vec![], 1);
        assert_eq!((amounts(&settled), settled.unsampled), (vec![("a".into(), 4)], 6));
    }

    #[test]
    fn credits_and_unsampled_always_add_up_to_the_exact_total() {
        let mut random = Random(42);
        for rule in [Rule::Scale, Rule::Claim, Rule::Ended(0)] {
            let mut ledger = Ledger::default();
            let (mut exact, mut out) = (0, 0);
            for tick in 0..2000 {
                let amount = if tick < 1990 && random.below(3) > 0 {
                    random.below(1_000_000)
                } else {
                    0
                };
                let claims = (0..random.below(4))
                    .map(|_| claim("f", random.below(500_000) as f64))
                    .collect();
                let rule = if let Rule::Ended(_) = rule {
                    Rule::Ended(random.below(1_000_000))
                } else {
                    rule
                };
                let settled = ledger.settle(amount, rule, if tick < 1990 { claims } else { vec![] }, 4);
                exact += amount;
                out += settled.unsampled + settled.credits.iter().map(|(_, n)| n).sum::<u64>();
                assert!(out <= exact);
            }
            assert_eq!(out, exact);
        }
    }
}
