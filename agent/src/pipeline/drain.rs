//! What the ring buffer says: samples, and the life of processes.

use std::time::Instant;

use super::Reader;
use super::naming::News;
use crate::attribute::{Lifecycle, SlotId, StackSample, UnwindResult};
use crate::decode::events::{Event, More};

impl Reader {
    /// The next record, which may say nothing by itself.
    fn next(&mut self) -> Option<Option<Event>> {
        let record = self.ring.next()?;
        Some(self.events.decode(&record))
    }

    pub(super) fn drain(&mut self, now: Instant) {
        while let Some(event) = self.next() {
            match event {
                Some(Event::Sample(sample, more)) => self.sampled(sample, more, now),
                Some(Event::Walked(slot, pid, result)) if self.attributor.wants(slot) => {
                    self.walked(slot, pid, result);
                }
                Some(Event::Life(event)) => {
                    match &event {
                        Lifecycle::Opened {
                            slot, pid, parent, ..
                        } => {
                            self.harvest.opened(*slot);
                            self.unwinding.opened(*slot, *pid);
                            // Else it was found, and began nobody knows when.
                            if parent.is_some() {
                                self.first_stacks.opened(*slot, now);
                            }
                        }
                        Lifecycle::Closed { slot } => {
                            self.harvest.closed(*slot);
                            self.unwinding.closed(*slot);
                            self.first_stacks.closed(*slot);
                            self.closed.push(*slot);
                        }
                        Lifecycle::Exited { slot, pid } => {
                            self.unwinding.exited(*slot, *pid);
                            self.growth.exited.push(*pid);
                            self.watching.gone(*pid);
                        }
                    }
                    self.attributor.apply(&event, now);
                }
                Some(Event::Oom(slot, victim)) => self.oom_victims.push((slot, victim)),
                Some(Event::Walked(..)) | None => {}
            }
        }
    }

    /// A process's stack was walked.
    fn walked(&mut self, slot: SlotId, pid: u32, result: UnwindResult) {
        if slot == SlotId::KERNEL {
            return;
        }
        self.unwinding.sampled(slot, pid, result);
        // Its memory map is read at once: by the end of the tick it may be gone. Where the other thread is busy, that chance is
        // lost, and nothing else.
        if self.noted.insert((slot, pid)) {
            let _ = self.send.try_send(News::Sampled(slot, pid));
        }
    }

    pub(super) fn sampled(&mut self, sample: StackSample, more: More, now: Instant) {
        if !self.attributor.wants(sample.slot) {
            return;
        }
        *self.unwound.entry(sample.unwind).or_default() += 1;
        if sample.slot != SlotId::KERNEL {
            self.first_stacks.sampled(sample.slot, sample.unwind, now);
        }
        self.walked(sample.slot, sample.pid, sample.unwind);
        match more {
            More::Opening(id) => {
                self.descriptors.descriptors.opened(id, sample);
                return;
            }
            More::Growth(growth) => {
                self.growth
                    .sampled(&self.host, self.samples.len(), &sample, &growth);
            }
            More::Nothing => {}
        }
        self.watching.sampled(&sample, &mut self.samples);
        self.samples.push(sample);
    }
}
