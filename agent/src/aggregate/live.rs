//! Live allocations of one service by stack: a gauge with a history, from which leaks are told.
//!
//! A stack leaks if what lives of it grows through the whole window, did not stop growing, and if what lived of it half a window
//! ago still lives. So a cache that was filled and a steady coming and going are no leaks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, VecDeque};

use super::group::CodeScope;
use super::snapshot::CodeSeries;
use super::window::address;
use crate::symbolize::{Living, Owner, SharedStack, StackDetail, SymbolizedSample};

/// Classes of ages: up to 2^20 seconds.
const AGES: usize = 21;
/// Stacks of a service that are remembered, the largest ones.
const MOST_STACKS: usize = 2048;
/// Points of a history at most.
const MOST_POINTS: usize = 128;
/// Points from which on a history tells something.
const LEAST_POINTS: usize = 10;
/// Parts of a history, each of which must be above the one before.
const PARTS: usize = 5;
/// Samples' worth of growth below which it may be chance: each sample stands for one period or more, so that a sum of `n` of
/// them has an error of about the square root of `n`.
const LEAST_GROWTH_PERIODS: f64 = 8.0;
/// Part of the mean growth that the last part must have.
const STILL_GROWS: f64 = 0.4;
/// Part of what lived half a window ago that must live now.
const OUTLIVES: f64 = 0.5;

/// Live objects of a stack and how old they are; estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LiveAges {
    /// How many; of what is large, a sample stands for one and a bit.
    pub objects: f64,
    /// Age of the youngest object that was sampled.
    pub youngest_seconds: f64,
    /// Mean age of the bytes that live.
    pub mean_seconds: f64,
    /// Age of the oldest object that was sampled.
    pub oldest_seconds: f64,
}

impl LiveAges {
    /// Adds what has so many bytes to what had so many.
    fn add(&mut self, had: u64, living: Living, bytes: u64) {
        let seconds = |hundredths: u32| f64::from(hundredths) / 100.0;
        let (youngest, mean) = (seconds(living.youngest), seconds(living.mean));
        self.youngest_seconds = if had == 0 {
            youngest
        } else {
            self.youngest_seconds.min(youngest)
        };
        self.oldest_seconds = self.oldest_seconds.max(seconds(living.oldest));
        let all = (had as f64 + bytes as f64).max(1.0);
        self.mean_seconds = (self.mean_seconds * had as f64 + mean * bytes as f64) / all;
        self.objects += living.objects as f64 / 100.0;
    }
}

/// What of a stack lives.
#[derive(Clone, Debug)]
pub struct LiveCode {
    /// The stack.
    pub stack: SharedStack,
    /// Bytes.
    pub bytes: u64,
    /// Objects and ages.
    pub ages: LiveAges,
}

#[derive(Debug)]
struct LiveStack {
    stack: SharedStack,
    classes: [u64; AGES],
    ages: LiveAges,
    /// Clock and bytes at ticks.
    history: VecDeque<(u64, u64)>,
}

impl LiveStack {
    fn bytes(&self) -> u64 {
        self.classes
            .iter()
            .fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
    }
}

/// A stack whose live allocations grow and outlive the window.
#[derive(Clone, Debug)]
pub struct Leak {
    /// The stack.
    pub stack: SharedStack,
    /// Bytes that live.
    pub live_bytes: u64,
    /// In how many objects, and for how long.
    pub ages: LiveAges,
    /// Growth in bytes a second.
    pub bytes_per_second: f64,
    /// Length of the history in seconds.
    pub seconds: f64,
}

/// What lives at the end of a tick.
#[derive(Clone, Debug, Default)]
pub struct LiveView {
    /// By stack, largest first.
    pub stacks: Vec<LiveCode>,
    /// By owning frame; the rest is `None`.
    pub code: Vec<CodeSeries>,
    /// Leaks, fastest first.
    pub leaks: Vec<Leak>,
}

#[derive(Debug, Default)]
pub(super) struct LiveStacks {
    stacks: HashMap<usize, LiveStack>,
}

impl LiveStacks {
    /// Takes a tick's live allocations; `period` is what a sample stands for.
    pub(super) fn tick(
        &mut self,
        samples: Vec<SymbolizedSample>,
        clock_ns: u64,
        retention_ns: u64,
        period: f64,
        top: usize,
    ) -> LiveView {
        for stack in self.stacks.values_mut() {
            stack.classes = [0; AGES];
            stack.ages = LiveAges::default();
        }
        for sample in samples {
            let StackDetail::Live(living) = sample.detail else {
                continue;
            };
            let bytes = sample.weight.round() as u64;
            if bytes == 0 {
                continue;
            }
            let entry = self
                .stacks
                .entry(address(&sample.stack))
                .or_insert_with(|| LiveStack {
                    stack: sample.stack,
                    classes: [0; AGES],
                    ages: LiveAges::default(),
                    history: VecDeque::new(),
                });
            entry.ages.add(entry.bytes(), living, bytes);
            let class = &mut entry.classes[usize::from(living.class).min(AGES - 1)];
            *class = class.saturating_add(bytes);
        }
        let oldest = clock_ns.saturating_sub(retention_ns);
        for stack in self.stacks.values_mut() {
            let bytes = stack.bytes();
            stack.history.push_back((clock_ns, bytes));
            while stack.history.len() > MOST_POINTS
                || stack.history.front().is_some_and(|(at, _)| *at < oldest)
            {
                stack.history.pop_front();
            }
        }
        self.stacks
            .retain(|_, stack| stack.history.iter().any(|(_, bytes)| *bytes > 0));
        if self.stacks.len() > MOST_STACKS {
            let mut sizes: Vec<u64> = self.stacks.values().map(LiveStack::bytes).collect();
            sizes.sort_unstable_by_key(|bytes| Reverse(*bytes));
            let least = sizes[MOST_STACKS - 1];
            self.stacks.retain(|_, stack| stack.bytes() >= least.max(1));
        }
        self.view(clock_ns, period, top)
    }

    fn view(&self, clock_ns: u64, period: f64, top: usize) -> LiveView {
        let living = || self.stacks.values().filter(|stack| stack.bytes() > 0);
        let mut stacks: Vec<LiveCode> = living()
            .map(|stack| LiveCode {
                stack: SharedStack::clone(&stack.stack),
                bytes: stack.bytes(),
                ages: stack.ages,
            })
            .collect();
        stacks.sort_by(|a, b| {
            Reverse(a.bytes)
                .cmp(&Reverse(b.bytes))
                .then_with(|| a.stack.owner.cmp(&b.stack.owner))
        });
        let mut owners: BTreeMap<&Owner, u64> = BTreeMap::new();
        for stack in living() {
            *owners.entry(&stack.stack.owner).or_default() += stack.bytes();
        }
        let mut owners: Vec<(&Owner, u64)> = owners.into_iter().collect();
        owners.sort_by_key(|(owner, bytes)| (Reverse(*bytes), *owner));
        let rest: u64 = owners.iter().skip(top).map(|(_, bytes)| bytes).sum();
        let series = |owner: Option<&Owner>, value| CodeSeries {
            scope: CodeScope::Whole,
            owner: owner.cloned(),
            value,
        };
        let mut code: Vec<CodeSeries> = owners
            .iter()
            .take(top)
            .map(|(owner, bytes)| series(Some(owner), *bytes))
            .collect();
        if rest > 0 {
            code.push(series(None, rest));
        }
        let mut leaks: Vec<Leak> = living()
            .filter_map(|stack| leak(stack, clock_ns, period))
            .collect();
        leaks.sort_by(|a, b| b.bytes_per_second.total_cmp(&a.bytes_per_second));
        LiveView { stacks, code, leaks }
    }
}

fn leak(stack: &LiveStack, clock_ns: u64, period: f64) -> Option<Leak> {
    let points: Vec<(f64, f64)> = stack
        .history
        .iter()
        .map(|(at, bytes)| (*at as f64 / 1e9, *bytes as f64))
        .collect();
    if points.len() < LEAST_POINTS {
        return None;
    }
    // Means of parts: single points are as noisy as samples are.
    let size = points.len() / PARTS;
    let first = points.len() - size * PARTS;
    let parts: Vec<(f64, f64)> = points[first..]
        .chunks(size)
        .map(|part| {
            let mean = |pick: fn(&(f64, f64)) -> f64| part.iter().map(pick).sum::<f64>() / part.len() as f64;
            (mean(|point| point.0), mean(|point| point.1))
        })
        .collect();
    let steps: Vec<f64> = parts.windows(2).map(|pair| pair[1].1 - pair[0].1).collect();
    let growth: f64 = steps.iter().sum();
    let mean = growth / steps.len() as f64;
    let grows = steps.iter().all(|step| *step > 0.0)
        && growth >= LEAST_GROWTH_PERIODS * period
        && steps.last().is_some_and(|last| *last >= STILL_GROWS * mean);
    if !grows || !outlives(stack, clock_ns) {
        return None;
    }
    let (begin, end) = (parts.first()?.0, parts.last()?.0);
    Some(Leak {
        stack: SharedStack::clone(&stack.stack),
        live_bytes: stack.bytes(),
        ages: stack.ages,
        bytes_per_second: growth / (end - begin).max(1e-9),
        seconds: points.last()?.0 - points.first()?.0,
    })
}

/// Whether most of what lived some time ago lives now. The time is a power of two of seconds, at most half of the history.
fn outlives(stack: &LiveStack, clock_ns: u64) -> bool {
    let Some((begin, _)) = stack.history.front() else {
        return false;
    };
    let half = clock_ns.saturating_sub(*begin) / 2 / 1_000_000_000;
    let Some(class) = half.checked_ilog2() else {
        return false;
    };
    let then_ns = clock_ns.saturating_sub(1_000_000_000 << class);
    let then = stack
        .history
        .iter()
        .take_while(|(at, _)| *at <= then_ns)
        .last()
        .map_or(0, |(_, bytes)| *bytes);
    let old: u64 = stack.classes.iter().skip(class as usize + 1).sum();
    old as f64 >= OUTLIVES * then as f64
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::fixture::{service, stack};
    use super::*;
    use crate::symbolize::StackKind;

    const SECOND: u64 = 1_000_000_000;
    const MIB: f64 = 1048576.0;

    /// Bytes that live at a time (of this tick, of this age).
    type Lives = fn(u64, u64) -> f64;

    /// Runs stacks for some ticks of a second, each with the bytes of each age that live at a time.
    fn run(ticks: u64, lives: &[(&str, Lives)]) -> LiveView {
        let mut live = LiveStacks::default();
        let stacks: Vec<SharedStack> = lives.iter().map(|(name, _)| stack(name, false)).collect();
        let mut view = LiveView::default();
        for now in 1..=ticks {
            let mut samples = Vec::new();
            for (stack, (_, bytes)) in stacks.iter().zip(lives) {
                for age in 0..now {
                    let class = (u64::BITS - age.leading_zeros()) as u8;
                    let age = u32::try_from(100 * age).unwrap();
                    let living = Living {
                        class,
                        objects: 158,
                        youngest: age,
                        mean: age + 10,
                        oldest: age + 20,
                    };
                    samples.push(SymbolizedSample {
                        service: service("shop"),
                        kind: StackKind::AllocLive,
                        detail: StackDetail::Live(living),
                        weight: bytes(now, u64::from(age / 100)),
                        own: 0.0,
                        stack: Arc::clone(stack),
                    });
                }
            }
            view = live.tick(samples, now * SECOND, 900 * SECOND, 0.5 * MIB, 2);
        }
        view
    }

    #[test]
    fn leaks_are_told_from_caches_and_from_coming_and_going() {
        let view = run(
            40,
            &[
                // A MiB a second that stays.
                ("leak", |_, _| MIB),
                // The same, faster: first in the list.
                ("flood", |_, _| 3.0 * MIB),
                // What was allocated in the first ten seconds stays.
                ("cache", |now, age| if now - age <= 10 { 2.0 * MIB } else { 0.0 }),
                // Lives for two seconds each.
                ("churn", |_, age| if age < 2 { 5.0 * MIB } else { 0.0 }),
                // Ever more, but nothing of it grows old.
                ("rush", |now, age| if age < 2 { now as f64 * MIB } else { 0.0 }),
            ],
        );
        let names: Vec<&str> = view
            .leaks
            .iter()
            .map(|leak| &*leak.stack.owner.function)
            .collect();
        assert_eq!(names, ["flood", "leak"]);
        let rate = view.leaks[1].bytes_per_second;
        assert!((rate / MIB - 1.0).abs() < 1e-6, "{rate}");
        assert_eq!(view.leaks[1].live_bytes, 40 << 20);
    }

    #[test]
    fn objects_and_ages_are_of_what_lives_now() {
        // One MiB is a second old, two are two, and three are three, in 1.58 objects each; of the last tick there is nothing.
        let view = run(4, &[("keep", |_, age| age as f64 * MIB)]);
        let [keep] = &*view.stacks else {
            panic!("{:?}", view.stacks)
        };
        assert_eq!(keep.bytes, 6 << 20);
        assert!((keep.ages.objects - 4.74).abs() < 1e-9, "{:?}", keep.ages);
        let ages = keep.ages;
        assert_eq!((ages.youngest_seconds, ages.oldest_seconds), (1.0, 3.2));
        // (1 * 1.1 + 2 * 2.1 + 3 * 3.1) / 6
        assert!((ages.mean_seconds - 14.6 / 6.0).abs() < 1e-9, "{ages:?}");
    }

    #[test]
    fn a_short_history_and_small_growth_tell_nothing() {
        assert!(run(9, &[("leak", |_, _| MIB)]).leaks.is_empty());
        assert!(run(40, &[("few", |_, _| 0.02 * MIB)]).leaks.is_empty());
    }

    #[test]
    fn code_is_a_gauge_of_the_largest() {
        let view = run(
            1,
            &[
                ("a", |_, _| MIB),
                ("b", |_, _| 3.0 * MIB),
                ("c", |_, _| 2.0 * MIB),
                ("d", |_, _| 0.0),
            ],
        );
        let code: Vec<_> = view
            .code
            .iter()
            .map(|series| {
                (
                    series.owner.as_ref().map(|owner| owner.function.to_string()),
                    series.value >> 20,
                )
            })
            .collect();
        assert_eq!(code, [(Some("b".into()), 3), (Some("c".into()), 2), (None, 1)]);
        assert_eq!(view.stacks.len(), 3);
    }
}
