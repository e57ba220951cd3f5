//! What the kernel side keeps: per thread, per slot, and the knobs that the agent turns.

use super::{BUCKETS, Cause, FdKind, MemoryKind, Stall, WATCHED};

/// Forecast entries of a thread's blocking places.
pub const SITES: usize = 8;
/// Bits of a forecast entry that hold the forecast; the place's tag is above them.
pub const FORECAST_BITS: u32 = 24;
/// Highest forecast: 17 s, beyond any threshold.
pub const FORECAST_MAX: u32 = (1 << FORECAST_BITS) - 1;
/// Slots at most; a power of two, because a slot id's low bits are its index.
pub const MAX_SLOTS: u32 = 4096;
/// Slot of nothing: the thread was never seen.
pub const SLOT_NONE: u32 = 0;
/// Slot of the kernel's own threads.
pub const SLOT_KERNEL: u32 = 1;
/// First slot that a program image can get.
pub const SLOT_FIRST: u32 = 2;
/// Callers of `connect` that are sampled of a slot in each round before the chance of the next one halves, and so on: the
/// first are all known, and a flood is sampled as often as its logarithm tells.
pub const CALLER_SAMPLES: u32 = 128;
/// System call numbers that are told apart.
pub const MAX_SYSCALLS: u32 = 512;

/// [`Thread::state`]: not seen yet.
pub const STATE_UNSEEN: u8 = 0;
/// [`Thread::state`]: on a CPU.
pub const STATE_ON: u8 = 1;
/// [`Thread::state`]: off the CPU.
pub const STATE_OFF: u8 = 2;
/// [`Thread::state`]: created, not run yet.
pub const STATE_NEW: u8 = 3;

/// Bits of [`Thread::sample`] that are no part of the id, but for the lowest, which makes it another than 0.
pub const SAMPLE_FLAGS: u64 = 0b110;
/// [`Thread::sample`]: its stack was broken off for want of tables. Threads that wait for work go to sleep once, early, and for
/// long: they would be nobody's.
pub const SAMPLE_SHORT: u64 = 0b010;
/// [`Thread::sample`]: its wait is over, and its stack is taken anew at the end of the system call.
pub const SAMPLE_AGAIN: u64 = 0b100;

/// Everything kept of a thread, written only while it is switched (under its run queue's lock) or by itself. What every
/// switch touches comes first: it shares few cache lines.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Thread {
    /// Slot of its program image, or one of the `SLOT_*` constants.
    pub slot: u32,
    /// Its process.
    pub tgid: u32,
    /// Since when it is in `state`, in the run queue's clock.
    pub since: u64,
    /// `run_delay` of the task when it left the CPU.
    pub run_delay: u64,
    /// Time on the CPU.
    pub cpu_ns: u64,
    /// Id of the stack sample taken when it went to sleep, with the bits of [`SAMPLE_FLAGS`]; 0 for none.
    pub sample: u64,
    /// Forecast wait left until the next sample, in units of 1024 ns.
    pub credit: u32,
    /// [`Tuning::wait_mean`] that `credit` was drawn with.
    pub credit_mean: u32,
    /// `STATE_*`.
    pub state: u8,
    /// Cause of the running wait.
    pub cause: u8,
    /// Index into `forecast` of the running wait.
    pub site: u8,
    /// 1 where `cause` is what the descriptor was when it was last looked up.
    pub remembered: u8,
    /// Waits left until a descriptor is looked up anew.
    pub kind_left: u16,
    /// What the descriptor of the last such wait was: its cause.
    pub kind: u16,
    /// The call and the descriptor of that wait: the number of the call in the lowest two bytes.
    pub kind_of: u64,
    /// Where its saved registers are.
    pub regs: u64,
    /// Moving averages of the wait by blocking place, same unit: the place's tag above [`FORECAST_BITS`].
    pub forecast: [u32; SITES],
    /// Time off the CPU by cause.
    pub wait_ns: [u64; Cause::COUNT],
    /// Forecast that the sample was chosen by, same unit; with [`SAMPLE_AGAIN`], [`Tuning::window`] in which the wait ended.
    pub sample_expect: u32,
    /// Sampling threshold `T` that the sample was chosen by, same unit.
    pub sample_mean: u32,
    /// Anonymous pages of the process at its last fault (leaders only).
    pub anon_pages: i64,
    /// When the running system call was entered, 0 when it is not timed.
    pub sys_at: u64,
    /// [`Tuning::window`] and number (plus one) of the running system call, packed by [`entered`]; 0 for none.
    pub sys_entered: u32,
    /// Calls left until the next timed one.
    pub sys_skip: u32,
    /// Calls left until the next sampled caller.
    pub sys_stack_skip: u32,
    /// 1 once growth of the process was sampled (leaders only).
    pub grown: u32,
    /// Growth of anonymous memory not sampled yet, in pages (leaders only).
    pub growth_pages: u32,
    /// Bytes to allocate until the next sample.
    pub alloc_left: u32,
    /// When it began to free memory, 0 while it does not.
    pub stall_at: u64,
    /// Stack pointer at the entry of the sampled call that runs, 0 for none.
    pub alloc_at: u64,
    /// Where that call stores its result, 0 where it returns it; or that result and a mark, as far as it is known. Without such a
    /// call, the last instruction with a probe.
    pub alloc_out: u64,
    /// Allocations of which a sample was taken.
    pub alloc_count: u32,
    /// [`AllocTarget::epoch`](super::AllocTarget::epoch) that `alloc_left` was drawn in.
    pub alloc_epoch: u32,
}
const _: () = assert!(size_of::<Thread>() == 256);

/// Sums over threads.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Sums {
    /// Time on the CPU.
    pub cpu_ns: u64,
    /// The part of it that the kernel accounts as CPU time. What threads had before they were counted here is taken from that of
    /// threads that ended, which alone may so be below 0.
    pub ran_ns: u64,
    /// Time off the CPU by cause.
    pub wait_ns: [u64; Cause::COUNT],
    /// The part of `wait_ns` of waits that still last (live threads only).
    pub lasting_ns: [u64; Cause::COUNT],
    /// `utime` as the kernel samples it.
    pub utime: u64,
    /// `stime` as the kernel samples it.
    pub stime: u64,
    /// Minor faults.
    pub min_flt: u64,
    /// Major faults.
    pub maj_flt: u64,
}
impl Sums {
    /// No thread.
    pub const ZERO: Self = Self {
        cpu_ns: 0,
        ran_ns: 0,
        wait_ns: [0; Cause::COUNT],
        lasting_ns: [0; Cause::COUNT],
        utime: 0,
        stime: 0,
        min_flt: 0,
        maj_flt: 0,
    };
}
const _: () = assert!(size_of::<Sums>() == (6 + 2 * Cause::COUNT) * 8);

/// Everything summed for a slot.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Slot {
    /// Full id of the present owner.
    pub id: u32,
    /// [`Tuning::round`] that the live part belongs to.
    pub round: u32,
    /// Live threads.
    pub refs: u64,
    /// Threads that ended.
    pub dead: Sums,
    /// Threads alive at the last harvest.
    pub live: Sums,
    /// Growth of anonymous memory in pages.
    pub growth_pages: u64,
    /// Anonymous memory that shrank, in pages.
    pub returned_pages: u64,
    /// Time in which threads freed memory, by `Stall`.
    pub stall_ns: [u64; Stall::COUNT],
    /// How often, by `Stall`.
    pub stalls: [u64; Stall::COUNT],
    /// Processes killed for memory.
    pub oom_kills: u64,
    /// Live processes at the last harvest.
    pub processes: u64,
    /// Live threads at the last harvest.
    pub threads: u64,
    /// Resident pages at the last harvest.
    pub rss_pages: [u64; MemoryKind::COUNT],
    /// Lowest soft limit of descriptors at the last harvest.
    pub fd_limit: u64,
    /// Open descriptors at the last harvest of descriptors.
    pub fds: [u64; FdKind::COUNT],
    /// [`Tuning::round`] that `fds` belongs to.
    pub fds_round: u64,
    /// [`Tuning::round`] that `conn_samples` belongs to.
    pub conn_round: u32,
    /// Callers of `connect` that were sampled in that round.
    pub conn_samples: u32,
}
impl Slot {
    /// A slot that nobody has.
    pub const EMPTY: Self = Self {
        id: 0,
        round: 0,
        refs: 0,
        dead: Sums::ZERO,
        live: Sums::ZERO,
        growth_pages: 0,
        returned_pages: 0,
        stall_ns: [0; Stall::COUNT],
        stalls: [0; Stall::COUNT],
        oom_kills: 0,
        processes: 0,
        threads: 0,
        rss_pages: [0; MemoryKind::COUNT],
        fd_limit: 0,
        fds: [0; FdKind::COUNT],
        fds_round: 0,
        conn_round: 0,
        conn_samples: 0,
    };
}
const _: () =
    assert!(size_of::<Slot>() == 16 + 2 * size_of::<Sums>() + 8 * (5 + 2 * Stall::COUNT + 4 + 1 + 9 + 2));

/// Duration histogram with its sum.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Hist {
    /// Observations by bucket.
    pub buckets: [u64; BUCKETS],
    /// Sum in nanoseconds.
    pub sum_ns: u64,
}

/// Histograms of finished waits of a slot. They have no sums of their own: the finished part of the totals is that sum,
/// and each atomic addition costs as much as a fifth of the whole program. Counts begin at 0 again after 2^32.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct WaitHists {
    /// Buckets by cause.
    pub causes: [[u32; BUCKETS]; Cause::COUNT],
}

/// A range of a process's addresses whose memory was given back or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct RangeKey {
    /// Process.
    pub pid: u32,
    /// Padding.
    pub pad: u32,
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Where it was moved to, 0 where it was given back.
    pub to: u64,
}

/// Bytes above a lowered end of the heap (`brk`) that are taken as given back: where it ended before is not known.
pub const ABOVE_HEAP: u64 = 64 << 30;

/// Key of system call counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SyscallKey {
    /// Slot.
    pub slot: u32,
    /// System call number.
    pub nr: u16,
    /// 0 for all calls, else the errno that they failed with.
    pub errno: u16,
}

/// Key of block I/O counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DiskKey {
    /// Slot.
    pub slot: u32,
    /// `DiskOp`.
    pub op: u32,
}

/// Block I/O counters.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct DiskStats {
    /// Bytes.
    pub bytes: u64,
    /// Latency.
    pub latency: Hist,
}

/// A block request under way.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DiskRequest {
    /// When it started.
    pub at: u64,
    /// Who caused it.
    pub slot: u32,
    /// `DiskOp`.
    pub op: u32,
}

/// [`Thread::sys_entered`] of a call that was entered in `window`.
#[inline(always)]
#[must_use]
pub const fn entered(window: u32, nr: u32) -> u32 {
    window << 16 | ((nr + 1) & 0xffff)
}

/// What the agent tells the kernel side while it runs.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tuning {
    /// Mean of forecast waiting between two wait samples, in units of 1024 ns.
    pub wait_mean: u32,
    /// Anonymous growth between two memory samples, in pages.
    pub memory_pages: u32,
    /// One of how many system calls is timed.
    pub syscall_every: u32,
    /// One of how many system calls has its caller sampled.
    pub syscall_stack_every: u32,
    /// One of how many connects has its caller sampled, of the first [`CALLER_SAMPLES`] of a round.
    pub conn_every: u32,
    /// Windows in which system calls are counted: odd while one is open. It opens after both hooks are attached and
    /// closes before they are detached, so its length is known to the microsecond, which attaching is not.
    pub window: u32,
    /// Number of the harvest.
    pub round: u32,
    /// Nanoseconds that one CPU sample stands for.
    pub cpu_period_ns: u32,
    /// Whether a visit to all descriptors takes up what listens, and nothing else.
    pub listeners_only: u32,
    /// Processes whose descriptors are watched, 0 for none.
    pub watched: [u32; WATCHED],
}
