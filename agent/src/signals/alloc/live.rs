//! Sampled allocations that were not freed yet, by the stack that made them.

use std::collections::HashMap;
use std::sync::Arc;

use super::ages::{Lives, age_class};
use crate::decode::model::{LiveKey, LiveValue, SlotId, StackDetail, StackKind, StackSample};

/// Samples that are kept at most; the kernel side keeps half as many.
const MOST: usize = 1 << 17;

/// What is known of sampled allocations.
#[derive(Default)]
pub struct Live {
    kept: HashMap<u64, Kept>,
    /// Number of the reading.
    round: u64,
    /// Samples that found no room.
    pub lost: u64,
}

/// Slot, process, stack and age.
type StackKey<'a> = (SlotId, u32, &'a [u64], u8);

struct Kept {
    sample: Arc<StackSample>,
    bytes: f64,
    /// Objects that it stands for.
    objects: f64,
    /// In which round it came: its call may not have returned when the table was read.
    round: u64,
}

impl Live {
    /// An allocation was sampled.
    pub fn sampled(&mut self, sample: &StackSample) {
        let StackDetail::Alloc { id, .. } = sample.detail else {
            return;
        };
        if self.kept.len() >= MOST {
            self.lost += 1;
            return;
        }
        let kept = Kept {
            sample: Arc::new(sample.clone()),
            bytes: sample.weight,
            objects: sample.objects(),
            round: self.round,
        };
        self.kept.insert(id, kept);
    }

    /// What lives by the kernel side's table as it is at `now_ns` of the monotonic clock: a sample for each stack and class of age, and
    /// the bytes of each slot.
    pub fn read(
        &mut self,
        table: &[(LiveKey, LiveValue)],
        now_ns: u64,
    ) -> (Vec<StackSample>, HashMap<SlotId, f64>) {
        self.round += 1;
        let mut alive: HashMap<u64, u64> = HashMap::with_capacity(table.len());
        alive.extend(table.iter().map(|(_, value)| (value.sample, value.since)));
        let round = self.round;
        self.kept
            .retain(|id, kept| alive.contains_key(id) || kept.round + 1 >= round);
        let mut slots: HashMap<SlotId, f64> = HashMap::new();
        let mut stacks: HashMap<StackKey<'_>, (&Arc<StackSample>, Lives)> = HashMap::new();
        for (id, kept) in &self.kept {
            let Some(since) = alive.get(id) else { continue };
            let age_ns = now_ns.saturating_sub(*since);
            let sample = &kept.sample;
            *slots.entry(sample.slot).or_default() += kept.bytes;
            let key = (sample.slot, sample.pid, sample.user.as_slice(), age_class(age_ns));
            let lives = &mut stacks.entry(key).or_insert((sample, Lives::default())).1;
            lives.add(kept.bytes, kept.objects, age_ns);
        }
        let samples = stacks
            .into_iter()
            .map(|((.., class), (sample, lives))| StackSample {
                kind: StackKind::AllocLive,
                detail: lives.detail(class),
                weight: lives.bytes,
                ..StackSample::clone(sample)
            });
        (samples.collect(), slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::model::{PythonStack, UnwindResult};
    use crate::signals::alloc::living;

    const SECOND: u64 = 1_000_000_000;

    fn sample(id: u64, address: u64, bytes: f64) -> StackSample {
        StackSample {
            slot: SlotId(5),
            pid: 7,
            tid: 7,
            kind: StackKind::Alloc,
            detail: StackDetail::Alloc { id, size: 10 },
            weight: bytes,
            own: 0.0,
            user: vec![address],
            interrupted: 0,
            unfolded: false,
            kernel: Vec::new(),
            python: PythonStack::default(),
            unwind: UnwindResult::Complete,
        }
    }

    fn entry(id: u64, since: u64) -> (LiveKey, LiveValue) {
        let key = LiveKey {
            address: id * 16,
            pid: 7,
            pad: 0,
        };
        (key, LiveValue { sample: id, since })
    }

    #[test]
    fn what_the_table_has_lives_by_stack_and_age() {
        let mut live = Live::default();
        for (id, stack, bytes) in [(1, 0x10, 100.0), (2, 0x10, 50.0), (3, 0x10, 7.0), (4, 0x20, 1.0)] {
            live.sampled(&sample(id, stack, bytes));
        }
        let table = [
            entry(1, 9 * SECOND),
            entry(2, 8 * SECOND + SECOND / 2),
            entry(3, SECOND),
            entry(4, SECOND),
        ];
        let (mut stacks, slots) = live.read(&table, 9 * SECOND);
        stacks.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        let found: Vec<_> = stacks.iter().map(|s| (s.user[0], s.detail, s.weight)).collect();
        // Of the first 100 bytes are of no age, and 50 are half a second old: 0.17 s in the mean.
        assert_eq!(
            found,
            [
                (0x10, living(0, 1_500, [0, 17, 50]), 150.0),
                (0x10, living(4, 70, [800; 3]), 7.0),
                (0x20, living(4, 10, [800; 3]), 1.0)
            ]
        );
        assert_eq!(slots, HashMap::from([(SlotId(5), 158.0)]));
    }

    #[test]
    fn what_was_freed_is_forgotten_but_not_what_has_not_returned_yet() {
        let mut live = Live::default();
        live.sampled(&sample(1, 0x10, 1.0));
        // Its call runs while the table is read.
        assert_eq!(live.read(&[], SECOND).0, []);
        assert_eq!(live.read(&[entry(1, SECOND)], SECOND).0.len(), 1);
        assert_eq!(live.read(&[], SECOND).0, []);
        assert_eq!(live.read(&[entry(1, SECOND)], SECOND).0, []);
        assert!(live.kept.is_empty());
    }
}
