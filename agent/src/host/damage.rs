//! What a test gives to a reader of foreign bytes beside good ones: bytes made to do harm, the same in each run, and what a reader
//! may need for them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Once;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Numbers that look random (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap()
    }

    fn place(&mut self, len: usize, weak: &[Range<usize>]) -> usize {
        match weak.get(self.below(2 * weak.len())) {
            Some(range) => (range.start + self.below(range.len())).min(len.saturating_sub(1)),
            None => self.below(len),
        }
    }

    /// A damaged copy: cut off, bits turned, overwritten with numbers at the limits, parts of it in the place of others. Half of
    /// what is done is done to the ranges that decide most, where some are given.
    pub(crate) fn damage(&mut self, good: &[u8], weak: &[Range<usize>]) -> Vec<u8> {
        const LIMITS: [u64; 8] = [
            0,
            1,
            u64::MAX,
            i64::MAX as u64,
            1 << 63,
            0x7fff_ffff,
            0x8000_0000,
            0xff,
        ];
        let mut bad = good.to_vec();
        for _ in 0..1 << self.below(7) {
            let at = self.place(bad.len(), weak);
            let room = bad.len() - at;
            match self.below(10) {
                0 => {
                    let len = self.below(room.min(256));
                    let from = self.below(bad.len() - len);
                    bad.copy_within(from..from + len, at);
                }
                1..4 => {
                    let size = (1 << self.below(4)).min(room);
                    let number = LIMITS[self.below(LIMITS.len())].to_le_bytes();
                    bad[at..at + size].copy_from_slice(&number[..size]);
                }
                4..6 if room > 0 => bad[at] ^= 1 << self.below(8),
                _ if room > 0 => bad[at] = u8::try_from(self.below(256)).unwrap(),
                _ => {}
            }
        }
        if self.below(8) == 0 {
            bad.truncate(self.below(good.len()));
        }
        bad
    }
}

/// How often to damage something; `TIEBACK_DAMAGE=100` asks for a hundred times as many rounds as usual, other ones.
pub(crate) fn rounds(usual: u64) -> impl Iterator<Item = Random> {
    let times = std::env::var("TIEBACK_DAMAGE").ok();
    let times: u64 = times.map_or(1, |times| times.parse().expect("TIEBACK_DAMAGE is a number"));
    (1..=usual * times).map(|round| Random(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// What a reader of damaged bytes may need at most for one input.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of the heap at one time, beside the input.
    pub(crate) bytes: usize,
    /// Calls of the allocator: steps that leave something behind.
    pub(crate) allocations: usize,
}

/// CPU time for one input at most: far more than any needs without optimization, far less than one without an end.
const TIME: Duration = Duration::from_secs(2);

/// How often a reader made something of damaged bytes, and how often it did not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) read: u64,
    pub(crate) refused: u64,
}

impl Ends {
    /// Nothing was refused.
    pub(crate) fn always(self) {
        assert_eq!(self.refused, 0, "{self:?}");
    }

    /// Some damage was noticed and some was not: else hardly anything was put to the test.
    pub(crate) fn both_often(self) {
        let least = (self.read + self.refused) / 50;
        assert!(self.read > least && self.refused > least, "{self:?}");
    }
}

thread_local! {
    static DAMAGED: Cell<bool> = const { Cell::new(false) };
}

/// Panics of other people's readers, which are caught, are told by one line on this thread: a backtrace, where one is wanted,
/// takes sixty megabytes for the names of its frames.
fn without_backtraces() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if DAMAGED.get() {
                eprintln!("{panic}");
            } else {
                usual(panic);
            }
        }));
    });
    DAMAGED.set(true);
}

/// Gives damaged copies of good bytes to a reader, which says whether it made something of them. It does not panic, and it needs
/// no more than it may.
pub(crate) fn harmless(
    usual: u64,
    good: &[u8],
    weak: &[Range<usize>],
    bounds: Bounds,
    mut reader: impl FnMut(&[u8]) -> bool,
) -> Ends {
    without_backtraces();
    let mut ends = Ends { read: 0, refused: 0 };
    let (mut most, mut calls, mut longest) = (0, 0, Duration::ZERO);
    for (round, mut random) in rounds(usual).enumerate() {
        let damaged = random.damage(good, weak);
        let before = Heap::now();
        let began = clock_gettime(ClockId::ThreadCPUTime);
        let read = catch_unwind(AssertUnwindSafe(|| reader(&damaged)));
        let took = clock_gettime(ClockId::ThreadCPUTime) - began;
        let after = Heap::now();
        let read = read.unwrap_or_else(|panic| {
            eprintln!("damage of round {round}: a panic");
            resume_unwind(panic)
        });
        ends.read += u64::from(read);
        ends.refused += u64::from(!read);
        most = most.max(after.most.saturating_sub(before.held));
        calls = calls.max(after.calls - before.calls);
        longest = longest.max(Duration::try_from(took).unwrap_or(Duration::MAX));
        assert!(
            most <= bounds.bytes && calls <= bounds.allocations,
            "damage of round {round}: {most} bytes in {calls} allocations"
        );
        assert!(longest < TIME, "damage of round {round}: {longest:?}");
    }
    eprintln!("{ends:?}; at most {most} bytes, {calls} allocations, {longest:?}");
    ends
}

/// What this thread has on the heap.
#[derive(Clone, Copy)]
struct Heap {
    held: usize,
    /// The most since [`Heap::now`] was last asked.
    most: usize,
    calls: usize,
}

thread_local! {
    static HEAP: Cell<Heap> = const { Cell::new(Heap { held: 0, most: 0, calls: 0 }) };
}

impl Heap {
    fn now() -> Self {
        let heap = HEAP.get();
        HEAP.set(Self {
            most: heap.held,
            ..heap
        });
        heap
    }

    fn more(size: usize) {
        // Gone when the thread ends, and then nobody asks.
        let _ = HEAP.try_with(|cell| {
            let mut heap = cell.get();
            heap.held = heap.held.wrapping_add(size);
            heap.most = heap.most.max(heap.held);
            heap.calls += 1;
            cell.set(heap);
        });
    }

    fn less(size: usize) {
        let _ = HEAP.try_with(|cell| {
            let mut heap = cell.get();
            // What another thread has given to this one was never counted here.
            heap.held = heap.held.saturating_sub(size);
            cell.set(heap);
        });
    }
}

/// The system's allocator, which counts for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Heap::more(layout.size());
        // SAFETY: what the caller promises is what the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Heap::more(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        Heap::less(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Heap::more(size);
        Heap::less(layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Bounds = Bounds {
        bytes: 1000,
        allocations: 2,
    };

    /// Reads a number of items that it is told, and believes it.
    fn credulous(bytes: &[u8]) -> bool {
        let Some(count) = bytes.first() else { return false };
        drop(vec![0_u64; usize::from(*count)]);
        *count < 100
    }

    #[test]
    fn a_reader_that_takes_too_much_is_caught() {
        let more = Bounds {
            bytes: 255 * 8,
            ..FEW
        };
        harmless(500, &[3; 16], &[0..1, 0..1], more, credulous).both_often();
        let caught = catch_unwind(|| harmless(500, &[3; 16], &[0..1, 0..1], FEW, credulous));
        let said = caught.unwrap_err().downcast::<String>().unwrap();
        assert!(said.contains("bytes in 1 allocations"), "{said}");
        let many = |bytes: &[u8]| (0..3).map(|_| Box::new(bytes[0])).any(|byte| *byte > 9);
        assert!(catch_unwind(|| harmless(500, &[3; 16], &[], FEW, many)).is_err());
        // One for which all is the same was given nothing to read.
        assert!(catch_unwind(|| harmless(500, &[3; 16], &[], FEW, |_| true).both_often()).is_err());
    }

    #[test]
    fn what_is_held_is_counted_once() {
        let before = Heap::now();
        let mut held = vec![0_u8; 1000];
        held.resize(3000, 0);
        drop(held);
        let after = Heap::now();
        assert_eq!(after.held, before.held);
        assert!(
            (3000..6000).contains(&(after.most - before.held)),
            "{}",
            after.most - before.held
        );
        assert_eq!(after.calls - before.calls, 2);
    }
}
