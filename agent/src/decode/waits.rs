//! Sampled waits. A stack is taken when a thread goes to sleep, and how long it slept is told when it wakes up. Where its tables
//! were not loaded then, the stack is taken anew as the system call ends.

use std::collections::HashMap;

use agent_ebpf::wire::WaitDone;

use super::model::StackSample;

/// Wait samples whose wait has not ended, at most.
const MAX_PENDING: usize = 16_384;
/// Samples that wait for a better stack, at most.
const MAX_AGAIN: usize = 4096;

/// Waits that are not known wholly.
#[derive(Debug, Default)]
pub struct Waits {
    /// Those whose length is not known, by id.
    pending: HashMap<u64, StackSample>,
    /// Those whose stack may be taken anew, since the last turn and before it.
    again: HashMap<u64, StackSample>,
    before: HashMap<u64, StackSample>,
    /// Samples since they were asked for last.
    samples: u64,
    /// Ends of waits without a beginning, and beginnings that were given up.
    pub unmatched: u64,
}

/// Weight of a wait sample: waits are chosen with probability `1 - e^(-expect / mean)`, so dividing by it makes the sum
/// over samples an unbiased estimate of the time waited (Horvitz and Thompson, 1952).
#[must_use]
pub fn wait_weight(blocked_ns: u64, expect: u32, mean: u32) -> f64 {
    let probability = -(-f64::from(expect.max(1)) / f64::from(mean.max(1))).exp_m1();
    blocked_ns as f64 / probability
}

impl Waits {
    /// How many waits were sampled since the last time this was asked.
    pub fn take_samples(&mut self) -> u64 {
        std::mem::take(&mut self.samples)
    }

    /// A thread goes to sleep.
    pub(super) fn began(&mut self, id: u64, sample: StackSample) {
        if self.pending.len() >= MAX_PENDING {
            self.unmatched += self.pending.len() as u64;
            self.pending.clear();
        }
        self.samples += 1;
        self.pending.insert(id, sample);
    }

    /// It woke up. The sample, if there is no better stack to come.
    pub(super) fn done(&mut self, done: &WaitDone) -> Option<StackSample> {
        let Some(mut sample) = self.pending.remove(&done.sample) else {
            self.unmatched += 1;
            return None;
        };
        sample.weight = wait_weight(done.blocked_ns, done.expect, done.mean);
        sample.own = done.blocked_ns as f64;
        if done.again == 0 || self.again.len() >= MAX_AGAIN {
            return Some(sample);
        }
        self.again.insert(done.sample, sample);
        None
    }

    /// The stack of a wait that was over, anew: the user half as it was when the thread went to sleep.
    pub(super) fn again(&mut self, id: u64, anew: StackSample) -> Option<StackSample> {
        let mut sample = self.again.remove(&id).or_else(|| self.before.remove(&id))?;
        let same =
            (anew.slot, anew.pid) == (sample.slot, sample.pid) && anew.user.first() == sample.user.first();
        if same && anew.unwind.whole() {
            sample.user = anew.user;
            sample.interrupted = anew.interrupted;
            sample.python = anew.python;
            sample.unwind = anew.unwind;
        }
        Some(sample)
    }

    /// Once a tick: samples for which no better stack came in a whole one. The thread was killed, or system calls are no longer
    /// traced.
    pub fn turn(&mut self) -> impl Iterator<Item = StackSample> {
        let before = std::mem::replace(&mut self.before, std::mem::take(&mut self.again));
        before.into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::model::UnwindResult;
    use crate::decode::model::{Cause, PythonStack, SlotId, StackDetail, StackKind};

    /// The estimator on a known mixture: many short waits and few long ones, chosen the way the kernel side does.
    #[test]
    fn weighted_samples_are_unbiased_on_a_mixture() {
        let mut seed = 7u64;
        let mut uniform = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            ((seed >> 11) as f64 + 0.5) / (1u64 << 53) as f64
        };
        let mean = 4000u32; // 4.1 ms
        let (mut shorts, mut longs, mut samples) = (Vec::new(), Vec::new(), 0u32);
        let (waits, every) = (20_000, 500);
        let draw = |u: f64| (-u.ln() * f64::from(mean)) as u32;
        for _ in 0..30 {
            let (mut short, mut long) = (0.0, 0.0);
            let (mut truth_short, mut truth_long) = (0.0, 0.0);
            let mut credit = draw(uniform());
            let mut forecast = [976u32; 2];
            for i in 0..waits {
                let is_long = i % every == 0;
                let length = ((if is_long { 50e6 } else { 20e3 }) * (0.5 + uniform())) as u64;
                let expect = forecast[usize::from(is_long)];
                if is_long {
                    truth_long += length as f64;
                } else {
                    truth_short += length as f64;
                }
                if expect >= credit {
                    credit = draw(uniform());
                    samples += 1;
                    let weight = wait_weight(length, expect, mean);
                    if is_long { long += weight } else { short += weight }
                } else {
                    credit -= expect;
                }
                let units = (length >> 10).max(1) as u32;
                let old = forecast[usize::from(is_long)];
                forecast[usize::from(is_long)] = (old - old / 4 + units / 4).max(1);
            }
            shorts.push(short / truth_short - 1.0);
            longs.push(long / truth_long - 1.0);
        }
        for errors in [shorts, longs] {
            let n = errors.len() as f64;
            let mean = errors.iter().sum::<f64>() / n;
            let deviation = (errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
            assert!(
                mean.abs() < 3.0 * deviation / n.sqrt(),
                "bias {mean} with deviation {deviation}"
            );
        }
        // 40 long waits of 50 ms and 0.4 s of short ones: at most about one sample per T of waiting, plus long ones.
        assert!(samples < 30 * (40 + 400_000 / 4096 + 60), "{samples} samples");
    }

    fn sample(user: &[u64], unwind: UnwindResult) -> StackSample {
        StackSample {
            slot: SlotId(9),
            pid: 7,
            tid: 8,
            kind: StackKind::Wait,
            detail: StackDetail::wait(Cause::Lock, Some(202)),
            weight: 0.0,
            own: 0.0,
            user: user.to_vec(),
            interrupted: 0,
            unfolded: false,
            kernel: vec![0xffff_ffff_8000_0000],
            python: PythonStack::default(),
            unwind,
        }
    }

    const fn done(sample: u64, again: u32) -> WaitDone {
        WaitDone {
            kind: agent_ebpf::wire::EVENT_WAIT_DONE,
            expect: 1000,
            mean: 1,
            again,
            sample,
            blocked_ns: 5000,
        }
    }

    #[test]
    fn a_better_stack_takes_the_place_of_the_first() {
        use UnwindResult::{Complete, FramePointers};
        let mut waits = Waits::default();
        for id in 1..=5 {
            waits.began(id, sample(&[1], FramePointers));
        }
        assert_eq!(waits.take_samples(), 5);
        // Nothing better is to come.
        let first = waits.done(&done(1, 0)).unwrap();
        assert_eq!((first.user.len(), first.own), (1, 5000.0));
        for id in 2..=5 {
            assert_eq!(waits.done(&done(id, 1)), None);
        }
        let mended = waits.again(2, sample(&[1, 2, 3], Complete)).unwrap();
        assert_eq!(
            (mended.user, mended.kernel.len(), mended.own),
            (vec![1, 2, 3], 1, 5000.0)
        );
        // No better than the first one; or of another call.
        let same = waits.again(3, sample(&[1, 2], FramePointers)).unwrap();
        assert_eq!((same.user, same.unwind), (vec![1], FramePointers));
        let other = waits.again(4, sample(&[4, 5], Complete)).unwrap();
        assert_eq!(other.user, [1]);
        // None came.
        assert_eq!(waits.turn().count(), 0);
        let late: Vec<_> = waits.turn().collect();
        assert_eq!((late.len(), late[0].own), (1, 5000.0));
        assert_eq!(waits.turn().count(), 0);
        assert_eq!(waits.again(5, sample(&[1, 2], Complete)), None);
        assert_eq!(waits.done(&done(6, 1)), None);
        assert_eq!(waits.unmatched, 1);
    }
}
