//! Finished windows of stacks, from which profiles are made.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::symbolize::{Service, SharedStack, StackDetail, StackKind};

/// One stack of one service in a window or in a profile.
#[derive(Clone, Debug)]
pub struct StackValue {
    /// What is known besides the stack; waits carry their cause after the division of futex time.
    pub detail: StackDetail,
    /// The stack; equal stacks of all windows are the same allocation.
    pub stack: SharedStack,
    /// Scaled value in the unit of the kind.
    pub value: u64,
}

/// What was seen in one tick; never changed once it is finished.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) end_unix_ns: u64,
    pub(super) length_ns: u64,
    pub(super) stacks: BTreeMap<Arc<Service>, BTreeMap<StackKind, Vec<StackValue>>>,
    entries: usize,
}

pub(super) type StackKey = (StackDetail, usize);

/// A stack's identity once it is interned.
pub(super) fn address(stack: &SharedStack) -> usize {
    Arc::as_ptr(stack) as usize
}

/// Collects the tick that is running.
#[derive(Debug, Default)]
pub(super) struct WindowBuilder {
    stacks: HashMap<(Arc<Service>, StackKind), HashMap<StackKey, StackValue>>,
}

impl WindowBuilder {
    pub(super) fn add(&mut self, service: &Arc<Service>, kind: StackKind, value: StackValue) {
        if value.value == 0 {
            return;
        }
        self.stacks
            .entry((Arc::clone(service), kind))
            .or_default()
            .entry((value.detail, address(&value.stack)))
            .and_modify(|known| known.value = known.value.saturating_add(value.value))
            .or_insert(value);
    }
}

/// Frames of all stacks that windows hold, for each entry that they may hold: 8 bytes each, and 96 for each that differs.
const FRAMES_PER_ENTRY: usize = 4;

/// What the windows of the ring hold, each stack counted once.
#[derive(Debug, Default)]
struct Held {
    entries: usize,
    frames: usize,
    references: HashMap<usize, usize>,
}

impl Held {
    fn add(&mut self, window: &Window) {
        self.entries += window.entries;
        for stack in window.each() {
            let references = self.references.entry(address(stack)).or_default();
            if *references == 0 {
                self.frames += stack.frames.len();
            }
            *references += 1;
        }
    }

    fn remove(&mut self, window: &Window) {
        self.entries -= window.entries;
        for stack in window.each() {
            if let Entry::Occupied(mut references) = self.references.entry(address(stack)) {
                *references.get_mut() -= 1;
                if *references.get() == 0 {
                    references.remove();
                    self.frames -= stack.frames.len();
                }
            }
        }
    }
}

impl Window {
    fn each(&self) -> impl Iterator<Item = &SharedStack> {
        self.stacks
            .values()
            .flat_map(BTreeMap::values)
            .flatten()
            .map(|value| &value.stack)
    }
}

/// The ring of finished windows, bounded in time, in entries and in frames.
#[derive(Debug)]
pub(super) struct Windows {
    retention_ns: u64,
    max_entries: usize,
    ring: VecDeque<Arc<Window>>,
    held: Held,
    interned: HashSet<SharedStack>,
    /// Entries given up for the bound: of windows that left early, and the least of a window too big by itself.
    pub(super) dropped: u64,
}

impl Windows {
    pub(super) fn new(retention: Duration, max_entries: usize) -> Self {
        Self {
            retention_ns: u64::try_from(retention.as_nanos()).unwrap_or(u64::MAX),
            max_entries,
            ring: VecDeque::new(),
            held: Held::default(),
            interned: HashSet::new(),
            dropped: 0,
        }
    }

    /// One allocation for equal stacks, as long as a window holds one of them.
    pub(super) fn intern(&mut self, stack: &SharedStack) -> SharedStack {
        if let Some(known) = self.interned.get(stack) {
            return Arc::clone(known);
        }
        self.interned.insert(Arc::clone(stack));
        Arc::clone(stack)
    }

    /// Finishes a window. A window that would take more than half of a bound by itself keeps the largest values of
    /// each service and signal, in proportion; the rest is kept by letting the oldest windows go before their time.
    pub(super) fn finish(&mut self, builder: WindowBuilder, end_unix_ns: u64, length_ns: u64) {
        let mut window = Window {
            end_unix_ns,
            length_ns,
            ..Window::default()
        };
        let entries: usize = builder.stacks.values().map(HashMap::len).sum();
        let frames: HashMap<usize, usize> = builder
            .stacks
            .values()
            .flat_map(HashMap::values)
            .map(|value| (address(&value.stack), value.stack.frames.len()))
            .collect();
        let share = |limit: usize, is: usize| (limit / 2) as f64 / is.max(1) as f64;
        let keep = share(self.max_entries, entries)
            .min(share(self.max_entries * FRAMES_PER_ENTRY, frames.values().sum()));
        for ((service, kind), values) in builder.stacks {
            let mut values: Vec<StackValue> = values.into_values().collect();
            if keep < 1.0 {
                values.sort_by_key(|value| (Reverse(value.value), value.detail, address(&value.stack)));
                values.truncate((values.len() as f64 * keep) as usize);
            }
            window.entries += values.len();
            if !values.is_empty() {
                window.stacks.entry(service).or_default().insert(kind, values);
            }
        }
        self.dropped += (entries - window.entries) as u64;
        self.held.add(&window);
        self.ring.push_back(Arc::new(window));

        let oldest = end_unix_ns.saturating_sub(self.retention_ns);
        while self.ring.len() > 1
            && self
                .ring
                .front()
                .is_some_and(|window| window.end_unix_ns <= oldest)
            && let Some(window) = self.ring.pop_front()
        {
            self.held.remove(&window);
        }
        while self.held.entries > self.max_entries || self.held.frames > self.max_entries * FRAMES_PER_ENTRY {
            let Some(window) = self.ring.pop_front() else {
                break;
            };
            self.held.remove(&window);
            self.dropped += window.entries as u64;
        }
        self.interned.retain(|stack| Arc::strong_count(stack) > 1);
    }

    pub(super) fn list(&self) -> Vec<Arc<Window>> {
        self.ring.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{service, stack};
    use super::super::profile::{ProfileQuery, WindowProfile, profile};
    use super::*;
    use crate::symbolize::Cause;

    const SECOND: u64 = 1_000_000_000;

    fn windows(max_entries: usize) -> Windows {
        Windows::new(Duration::from_secs(60), max_entries)
    }

    fn finish(windows: &mut Windows, at: u64, stacks: &[(&str, u64)]) {
        let mut builder = WindowBuilder::default();
        for (function, value) in stacks {
            let stack = windows.intern(&stack(function, false));
            let value = StackValue {
                detail: StackDetail::wait(Cause::Disk, None),
                stack,
                value: *value,
            };
            builder.add(&service("shop"), StackKind::Wait, value);
        }
        windows.finish(builder, at * SECOND, 10 * SECOND);
    }

    fn ask(windows: &Windows, since: u64) -> Option<WindowProfile> {
        let query = ProfileQuery {
            namespace: "",
            name: "shop",
            version: None,
            kind: StackKind::Wait,
            since: Duration::from_secs(since),
            idle: false,
        };
        profile(&windows.list(), &query)
    }

    #[test]
    fn equal_stacks_of_windows_in_range_merge() {
        let mut windows = windows(100);
        assert!(ask(&windows, 60).is_none());
        finish(&mut windows, 10, &[("a", 1), ("b", 10)]);
        finish(&mut windows, 20, &[("a", 2)]);
        finish(&mut windows, 30, &[("a", 4)]);
        let profile = ask(&windows, 20).expect("there");
        assert_eq!(
            (profile.start_unix_ns, profile.duration_ns),
            (10 * SECOND, 20 * SECOND)
        );
        assert_eq!(profile.samples.iter().map(|s| s.value).collect::<Vec<_>>(), [6]);
        let all = ask(&windows, 60).expect("there");
        assert_eq!(all.samples.iter().map(|s| s.value).collect::<Vec<_>>(), [10, 7]);
    }

    #[test]
    fn old_windows_and_their_stacks_go() {
        let mut windows = windows(100);
        for at in 1..=20 {
            finish(&mut windows, at * 10, &[(&format!("f{at}"), 1)]);
        }
        assert_eq!(windows.ring.len(), 6);
        assert_eq!(windows.interned.len(), 6);
        assert_eq!(windows.dropped, 0);
    }

    #[test]
    fn entries_are_bounded_and_what_goes_over_is_counted() {
        let mut windows = windows(10);
        let many: Vec<String> = (0..20).map(|n| format!("f{n}")).collect();
        let many: Vec<(&str, u64)> = many
            .iter()
            .zip(1..)
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        finish(&mut windows, 10, &many);
        assert_eq!(windows.dropped, 15);
        let kept = ask(&windows, 60).expect("there").samples;
        assert_eq!(
            kept.iter().map(|s| s.value).collect::<Vec<_>>(),
            [20, 19, 18, 17, 16]
        );
        finish(&mut windows, 20, &many[..5]);
        assert_eq!((windows.ring.len(), windows.dropped), (2, 15));
        finish(&mut windows, 30, &many[..1]);
        assert_eq!((windows.ring.len(), windows.dropped), (2, 20));
    }

    #[test]
    fn deep_stacks_count_by_their_frames() {
        let mut windows = windows(10);
        let deep = |name: &str, depth: usize| {
            let mut deep = (*stack(name, false)).clone();
            deep.frames = vec![Arc::clone(&deep.frames[0]); depth].into();
            SharedStack::new(deep)
        };
        for at in 1..=3 {
            let mut builder = WindowBuilder::default();
            for name in ["same".to_owned(), format!("f{at}")] {
                let stack = windows.intern(&deep(&name, 10));
                let value = StackValue {
                    detail: StackDetail::None,
                    stack,
                    value: 1,
                };
                builder.add(&service("shop"), StackKind::Cpu, value);
            }
            windows.finish(builder, at * SECOND, SECOND);
        }
        assert_eq!(
            (windows.ring.len(), windows.held.frames, windows.dropped),
            (3, 40, 0)
        );
        let mut builder = WindowBuilder::default();
        let stack = windows.intern(&deep("one more", 20));
        builder.add(
            &service("shop"),
            StackKind::Cpu,
            StackValue {
                detail: StackDetail::None,
                stack,
                value: 1,
            },
        );
        windows.finish(builder, 4 * SECOND, SECOND);
        assert_eq!(
            (windows.ring.len(), windows.held.frames, windows.dropped),
            (2, 40, 4)
        );
        assert_eq!(windows.interned.len(), 3);
    }

    #[test]
    fn idle_waits_only_on_request() {
        let mut windows = windows(10);
        let mut builder = WindowBuilder::default();
        let stack = windows.intern(&stack("park", true));
        let value = StackValue {
            detail: StackDetail::wait(Cause::Idle, None),
            stack,
            value: 5,
        };
        builder.add(&service("shop"), StackKind::Wait, value);
        windows.finish(builder, SECOND, SECOND);
        let mut query = ProfileQuery {
            namespace: "",
            name: "shop",
            version: None,
            kind: StackKind::Wait,
            since: Duration::from_secs(1),
            idle: false,
        };
        assert!(
            profile(&windows.list(), &query)
                .expect("there")
                .samples
                .is_empty()
        );
        query.idle = true;
        assert_eq!(profile(&windows.list(), &query).expect("there").samples.len(), 1);
        query.version = Some("9");
        assert!(
            profile(&windows.list(), &query)
                .expect("there")
                .samples
                .is_empty()
        );
    }
}
