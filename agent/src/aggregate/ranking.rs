//! The top-K code series of one service and signal.
//!
//! All owning frames compete in a space-saving table (Metwally et al., 2005: bounded, over-estimates by a known
//! error) of scores that halve every [`HALF_LIFE_TICKS`]. The best K get series; a promoted one counts what it adds
//! from then on, everybody else adds to `(other)`. Promoted ones stay until a challenger is clearly better: what a
//! program does while it starts takes all series first, one small sample each, and makes way at once. The value of an
//! evicted series is remembered for a while, so that a frame that comes back goes on where it stopped: no series ever
//! goes down.

use std::collections::{BTreeMap, HashMap};

use super::group::CodeScope;
use crate::symbolize::{Cause, Owner};

/// Ticks in which a score loses half.
const HALF_LIFE_TICKS: f64 = 30.0;
/// A challenger must have this multiple of the weakest promoted score.
const HYSTERESIS: f64 = 2.0;
/// Ticks for which a promoted series stays if a challenger is less than [`OVERWHELMING`] times as good.
const MIN_STAY_TICKS: u64 = 6;
/// See [`MIN_STAY_TICKS`]; each change of places asks for as much again, so that there are few.
const OVERWHELMING: f64 = 16.0;
/// Candidates and remembered evicted values, as multiples of K.
const CANDIDATES_PER_SERIES: usize = 8;
/// Scores below this are forgotten.
const NEGLIGIBLE: f64 = 0.5;

/// Names one code series within its service and signal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CodeKey {
    pub(super) scope: CodeScope,
    pub(super) owner: Owner,
}

#[derive(Clone, Copy, Debug)]
struct Score {
    value: f64,
    /// How much of it may be another's, whose place it took.
    error: f64,
}

#[derive(Clone, Copy, Debug)]
struct Promoted {
    value: u64,
    since: u64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Ranking {
    top: usize,
    candidates: HashMap<CodeKey, Score>,
    promoted: BTreeMap<CodeKey, Promoted>,
    other: BTreeMap<CodeScope, u64>,
    /// Values of evicted series and when they ended.
    retired: HashMap<CodeKey, Promoted>,
}

impl Ranking {
    pub(super) fn new(top: usize) -> Self {
        Self {
            top,
            candidates: HashMap::new(),
            promoted: BTreeMap::new(),
            other: BTreeMap::new(),
            retired: HashMap::new(),
        }
    }

    /// Takes a tick's credits and unsampled amounts. Idleness never competes for a series: time spent waiting for
    /// work says nothing about code and would drown what does.
    pub(super) fn tick(
        &mut self,
        now: u64,
        credits: BTreeMap<CodeKey, u64>,
        unsampled: &BTreeMap<CodeScope, u64>,
    ) {
        self.decay();
        for (key, &amount) in &credits {
            if amount > 0 && key.scope != CodeScope::Cause(Cause::Idle) {
                self.score(key, amount as f64);
            }
        }
        self.promote(now);
        for (key, amount) in credits.into_iter().filter(|(_, amount)| *amount > 0) {
            let value = match self.promoted.get_mut(&key) {
                Some(series) => &mut series.value,
                None => self.other.entry(key.scope).or_default(),
            };
            *value = value.saturating_add(amount);
        }
        for (&scope, &amount) in unsampled.iter().filter(|(_, amount)| **amount > 0) {
            let value = self.other.entry(scope).or_default();
            *value = value.saturating_add(amount);
        }
    }

    /// Promoted series, and what is not in any of them by scope.
    pub(super) fn series(&self) -> impl Iterator<Item = (CodeScope, Option<&Owner>, u64)> {
        let promoted = self
            .promoted
            .iter()
            .map(|(key, series)| (key.scope, Some(&key.owner), series.value));
        promoted.chain(self.other.iter().map(|(&scope, &value)| (scope, None, value)))
    }

    fn decay(&mut self) {
        let factor = (-1.0 / HALF_LIFE_TICKS).exp2();
        self.candidates.retain(|_, score| {
            score.value *= factor;
            score.error *= factor;
            score.value >= NEGLIGIBLE
        });
    }

    fn score(&mut self, key: &CodeKey, amount: f64) {
        if let Some(score) = self.candidates.get_mut(key) {
            score.value += amount;
            return;
        }
        let mut score = Score {
            value: amount,
            error: 0.0,
        };
        if self.candidates.len() >= self.top * CANDIDATES_PER_SERIES {
            let weakest = self
                .candidates
                .iter()
                .filter(|(known, _)| !self.promoted.contains_key(known))
                .min_by(|a, b| a.1.value.total_cmp(&b.1.value).then_with(|| a.0.cmp(b.0)))
                .map(|(known, score)| (known.clone(), *score));
            if let Some((weakest, taken)) = weakest {
                self.candidates.remove(&weakest);
                score = Score {
                    value: amount + taken.value,
                    error: taken.value,
                };
            }
        }
        self.candidates.insert(key.clone(), score);
    }

    fn promote(&mut self, now: u64) {
        let mut challengers: Vec<(f64, CodeKey)> = self
            .candidates
            .iter()
            .filter(|(key, _)| !self.promoted.contains_key(key))
            .map(|(key, score)| (score.value - score.error, key.clone()))
            .filter(|(sure, _)| *sure > 0.0)
            .collect();
        challengers.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        for (sure, key) in challengers {
            if self.promoted.len() >= self.top {
                let Some((weakest, score)) = self.weakest() else {
                    return;
                };
                let young = self
                    .promoted
                    .get(&weakest)
                    .is_none_or(|p| now < p.since + MIN_STAY_TICKS);
                let stays = young && sure <= score * OVERWHELMING;
                if stays || sure <= score * HYSTERESIS {
                    return;
                }
                self.retire(&weakest, now);
            }
            let value = self.retired.remove(&key).map_or(0, |retired| retired.value);
            self.promoted.insert(key, Promoted { value, since: now });
        }
    }

    fn weakest(&self) -> Option<(CodeKey, f64)> {
        let score = |key| self.candidates.get(key).map_or(0.0, |score| score.value);
        self.promoted
            .keys()
            .map(|key| (key, score(key)))
            .min_by(|a, b| a.1.total_cmp(&b.1).then_with(|| b.0.cmp(a.0)))
            .map(|(key, score)| (key.clone(), score))
    }

    fn retire(&mut self, key: &CodeKey, now: u64) {
        let Some(series) = self.promoted.remove(key) else {
            return;
        };
        if self.retired.len() >= self.top * CANDIDATES_PER_SERIES
            && let Some(oldest) = self
                .retired
                .iter()
                .min_by_key(|(key, at)| (at.since, *key))
                .map(|(key, _)| key.clone())
        {
            self.retired.remove(&oldest);
        }
        self.retired.insert(
            key.clone(),
            Promoted {
                value: series.value,
                since: now,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Random, owner};
    use super::*;

    fn key(function: usize) -> CodeKey {
        CodeKey {
            scope: CodeScope::Whole,
            owner: owner(&format!("f{function}")),
        }
    }

    fn tick(ranking: &mut Ranking, now: u64, credits: &[(usize, u64)]) {
        ranking.tick(
            now,
            credits.iter().map(|&(f, n)| (key(f), n)).collect(),
            &BTreeMap::new(),
        );
    }

    fn value(ranking: &Ranking, function: usize) -> Option<u64> {
        let owner = key(function).owner;
        ranking
            .series()
            .find(|(_, o, _)| *o == Some(&owner))
            .map(|(_, _, value)| value)
    }

    fn other(ranking: &Ranking) -> u64 {
        ranking
            .series()
            .filter(|(_, owner, _)| owner.is_none())
            .map(|(_, _, value)| value)
            .sum()
    }

    #[test]
    fn the_first_k_start_at_once_and_the_rest_is_other() {
        let mut ranking = Ranking::new(2);
        tick(&mut ranking, 1, &[(1, 100), (2, 50), (3, 10)]);
        assert_eq!(
            (value(&ranking, 1), value(&ranking, 2), value(&ranking, 3)),
            (Some(100), Some(50), None)
        );
        assert_eq!(other(&ranking), 10);
    }

    #[test]
    fn a_promoted_function_starts_at_what_it_adds_from_then_on_and_resumes_where_it_stopped() {
        let mut ranking = Ranking::new(1);
        tick(&mut ranking, 1, &[(1, 100)]);
        let mut now = 1;
        while value(&ranking, 2).is_none() {
            now += 1;
            assert!(now < 20, "never promoted");
            tick(&mut ranking, now, &[(2, 100)]);
        }
        assert!(now > MIN_STAY_TICKS, "evicted inside its minimum stay");
        assert_eq!((value(&ranking, 1), value(&ranking, 2)), (None, Some(100)));
        assert_eq!(other(&ranking), 100 * (now - 2));
        while value(&ranking, 1).is_none() {
            now += 1;
            assert!(now < 200, "never promoted again");
            tick(&mut ranking, now, &[(1, 1000)]);
        }
        assert_eq!(value(&ranking, 1), Some(1100));
    }

    #[test]
    fn what_a_program_does_while_it_starts_keeps_no_series_from_what_it_does_then() {
        let mut ranking = Ranking::new(3);
        tick(&mut ranking, 1, &[(1, 10), (2, 10), (3, 200)]);
        // Two that work, and three that have been there before them.
        tick(&mut ranking, 2, &[(4, 1000), (5, 900), (6, 100)]);
        assert_eq!((value(&ranking, 4), value(&ranking, 5)), (Some(1000), Some(900)));
        assert_eq!((value(&ranking, 3), value(&ranking, 6)), (Some(200), None));
        assert_eq!(other(&ranking), 100);
    }

    #[test]
    fn two_equals_do_not_take_turns() {
        let mut ranking = Ranking::new(1);
        for now in 0..200 {
            tick(&mut ranking, now, &[(1, 100), (2, 100 + now % 50)]);
            assert_eq!(value(&ranking, 1).is_some(), value(&ranking, 2).is_none());
        }
        assert_eq!(ranking.retired.len(), 0);
    }

    #[test]
    fn idleness_is_never_promoted() {
        let mut ranking = Ranking::new(5);
        let idle = CodeKey {
            scope: CodeScope::Cause(Cause::Idle),
            owner: owner("park"),
        };
        ranking.tick(
            1,
            BTreeMap::from([(idle, 7)]),
            &BTreeMap::from([(CodeScope::Cause(Cause::Idle), 3)]),
        );
        assert_eq!(
            ranking.series().collect::<Vec<_>>(),
            [(CodeScope::Cause(Cause::Idle), None, 10)]
        );
    }

    #[test]
    fn no_series_ever_goes_down_and_memory_is_bounded() {
        let mut random = Random(7);
        let mut ranking = Ranking::new(4);
        let mut seen: HashMap<(CodeScope, Option<Owner>), u64> = HashMap::new();
        let mut changes = 0;
        for now in 0..3000u64 {
            // The favourites move on every 100 ticks; a crowd of others comes and goes.
            let hot = (now / 100 * 3 % 9) as usize;
            let mut credits = vec![(hot, 10_000), (hot + 1, 8_000)];
            for _ in 0..random.below(20) {
                credits.push((10 + random.below(500) as usize, random.below(300)));
            }
            let before: Vec<CodeKey> = ranking.promoted.keys().cloned().collect();
            tick(&mut ranking, now, &credits);
            changes += usize::from(before != ranking.promoted.keys().cloned().collect::<Vec<_>>());
            for (scope, owner, value) in ranking.series() {
                let last = seen.entry((scope, owner.cloned())).or_default();
                assert!(value >= *last, "{owner:?} fell from {last} to {value}");
                *last = value;
            }
            assert!(ranking.promoted.len() <= 4);
            assert!(ranking.candidates.len() <= 32 && ranking.retired.len() <= 32);
        }
        assert!(changes > 20, "the test must see evictions, saw {changes} changes");
    }
}
