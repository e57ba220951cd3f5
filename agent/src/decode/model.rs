//! The plain values that flow through the stages: totals of a slot, sampled stacks, lifecycle events.
//!
//! A *slot* is the kernel side's unit of accounting: one program image, from `exec` until its last thread (of all
//! processes forked from it without another `exec`) is gone. Userspace maps slots to services.

use std::collections::BTreeMap;

pub use super::connections::{AGES, ConnTotals, MOST_ADDRESSES, Peer, PoolPeer, PoolTotals};
pub use super::descriptors::{FdForecast, ProcessFds};
pub use super::histogram::{HISTOGRAM_BUCKETS, Histogram};
pub use super::listeners::ListenTotals;
pub use super::unix::{UnixBrief, UnixSocket};
pub use agent_ebpf::wire::unwind::UnwindResult;
pub use agent_ebpf::wire::{
    ALLOC_RANGES, AllocCall, AllocCounts, AllocSite, AllocTarget, LiveKey, LiveValue, MAX_ALLOC_TARGETS,
    Stall,
};
pub use agent_ebpf::wire::{Cause, ConnEnd, ConnFailure, Direction, DiskOp, FdKind, MemoryKind, StackKind};

/// Identifies a program image while the agent runs; never reused within one run of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

impl SlotId {
    /// The kernel's own threads.
    pub const KERNEL: Self = Self(agent_ebpf::wire::SLOT_KERNEL);
}

/// Totals of one system call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyscallTotals {
    /// Returned calls.
    pub count: u64,
    /// Failed calls by errno.
    pub errors: BTreeMap<u16, u64>,
    /// Durations, of an unbiased sample of calls scaled to `count`.
    pub duration: Histogram,
}

/// Block I/O of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskTotals {
    /// Bytes moved.
    pub bytes: u64,
    /// Request latency.
    pub duration: Histogram,
}

/// Everything counted for one slot (in a tick: since the tick before; gauges: now).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Nanoseconds off the CPU by `Cause`.
    pub wait_ns: [u64; Cause::COUNT],
    /// Durations of finished waits by `Cause`.
    pub wait: [Histogram; Cause::COUNT],
    /// Nanoseconds on the CPU in user mode.
    pub cpu_user_ns: u64,
    /// Nanoseconds on the CPU in the kernel.
    pub cpu_system_ns: u64,
    /// Nanoseconds on the CPU that the kernel accounts as neither: a hypervisor took the CPU away, or interrupts where it accounts
    /// for them.
    pub cpu_steal_ns: u64,
    /// By system call number.
    pub syscalls: BTreeMap<u16, SyscallTotals>,
    /// Anonymous memory grown, in bytes.
    pub memory_growth_bytes: u64,
    /// Anonymous memory shrunk, in bytes.
    pub memory_returned_bytes: u64,
    /// Nanoseconds in which threads freed memory, by `Stall`.
    pub stall_ns: [u64; Stall::COUNT],
    /// How often, by `Stall`.
    pub stalls: [u64; Stall::COUNT],
    /// Minor faults.
    pub faults_minor: u64,
    /// Major faults.
    pub faults_major: u64,
    /// Killed for memory.
    pub oom_kills: u64,
    /// Allocated bytes, where allocations are watched; an estimate in windows.
    pub alloc_bytes: u64,
    /// Allocations, likewise.
    pub alloc_objects: u64,
    /// Gauge: bytes that were allocated while they were watched, and not freed.
    pub alloc_live_bytes: u64,
    /// By `DiskOp`.
    pub disk: [DiskTotals; DiskOp::COUNT],
    /// By direction and peer; `open` is a gauge.
    pub conns: BTreeMap<(Direction, Peer), ConnTotals>,
    /// By direction and peer: how the connections are used.
    pub pools: BTreeMap<(Direction, PoolPeer), PoolTotals>,
    /// By the address that is listened on, `Peer::Other` past the bound.
    pub listeners: BTreeMap<Peer, ListenTotals>,
    /// Gauge: resident bytes by `MemoryKind`.
    pub resident_bytes: [u64; MemoryKind::COUNT],
    /// Gauge: open descriptors by `FdKind`.
    pub fds: [u64; FdKind::COUNT],
    /// Gauge: the lowest soft limit of descriptors among the processes, 0 when unknown.
    pub fd_limit: u64,
    /// Descriptors by which processes went beyond the most that they had had open at a tick before.
    pub fd_growth: u64,
    /// Gauge: when the first process reaches its limit of descriptors, where one has ever more of them.
    pub fd_forecast: Option<FdForecast>,
    /// Gauge: live processes.
    pub processes: u64,
    /// Gauge: live threads.
    pub threads: u64,
}

/// What more is known of a sampled stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StackDetail {
    /// Of a wait.
    Wait {
        /// What for.
        cause: Cause,
        /// In which system call; `None` outside of one.
        call: Option<u16>,
        /// Whether the kernel held the thread up for want of memory, as its account of pressure has it (`psi_memstall_enter`): to
        /// make some free, or for pages that had been in use when they were evicted.
        memory: bool,
    },
    /// Of a system call sample: its number.
    Syscall(u16),
    /// Of a connection that it opened: to whom.
    Opened(Peer),
    /// Of an allocation.
    Alloc {
        /// Which one.
        id: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// Of live allocations.
    Live(Living),
    /// Nothing more.
    None,
}

impl StackDetail {
    /// Of a wait that has nothing to do with memory.
    #[must_use]
    pub fn wait(cause: Cause, call: Option<u16>) -> Self {
        Self::Wait {
            cause,
            call,
            memory: false,
        }
    }

    /// What a wait was for.
    #[must_use]
    pub fn cause(self) -> Option<Cause> {
        match self {
            Self::Wait { cause, .. } => Some(cause),
            _ => None,
        }
    }
}

/// Live allocations of one stack and of one class of age, beside their bytes. Ages are in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Living {
    /// Class `n` is younger than `2^n` seconds and not of a lower class.
    pub class: u8,
    /// How many, estimated; in hundredths, because one sample of what is large stands for one and a bit.
    pub objects: u64,
    /// Age of the youngest that was sampled.
    pub youngest: u32,
    /// Mean age of the bytes.
    pub mean: u32,
    /// Age of the oldest that was sampled.
    pub oldest: u32,
}

/// A frame of CPython, as the kernel side found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PythonFrame {
    /// Address of its code object.
    pub code: u64,
    /// The instruction in its code, in units of two bytes.
    pub instruction: u32,
    /// C code called it: a run of frames that share one native frame ends with it.
    pub entry: bool,
}

/// Frames of CPython, innermost first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PythonStack {
    /// Minor version of the interpreter.
    pub minor: u16,
    /// There are no more: the outermost one is the thread's first.
    pub whole: bool,
    /// The innermost native frame of the interpreter's loop has no frame here: its function has just returned.
    pub returned: bool,
    /// The frames.
    pub frames: Vec<PythonFrame>,
}

/// A sampled stack as the kernel sent it. Weights are unbiased estimates in the unit of the kind.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSample {
    /// Which program image.
    pub slot: SlotId,
    /// Process id (thread group).
    pub pid: u32,
    /// Thread id.
    pub tid: u32,
    /// What it tells about.
    pub kind: StackKind,
    /// More on it.
    pub detail: StackDetail,
    /// Nanoseconds, calls, bytes or connections that this sample stands for.
    pub weight: f64,
    /// The part of `weight` that was measured on this very event, 0 where a sample is one of many alike. Scaling to
    /// an exact total never touches it.
    pub own: f64,
    /// User addresses, innermost first: where the thread stopped, then return addresses and [interrupted](Self::interrupted)
    /// ones.
    pub user: Vec<u64>,
    /// One bit a user frame, the lowest for the innermost: it did not call, it was interrupted by a signal.
    pub interrupted: u128,
    /// Each user address is that of one function, also where that was inlined, and behind its call: stacks that Go's runtime
    /// took itself.
    pub unfolded: bool,
    /// Kernel return addresses, innermost first.
    pub kernel: Vec<u64>,
    /// Frames of an interpreter, beside its own in the user half.
    pub python: PythonStack,
    /// How the walk of the user half ended.
    pub unwind: UnwindResult,
}

impl StackSample {
    /// The address of a user frame is that of the instruction where it stopped: the innermost frame's, and those of frames that
    /// signals interrupted. That of any other is behind its call.
    #[must_use]
    pub const fn stopped_at(&self, frame: usize) -> bool {
        frame == 0 && !self.unfolded || (frame < u128::BITS as usize && self.interrupted >> frame & 1 == 1)
    }

    /// Connections over Unix sockets are sampled in the windows in which system calls are counted, which are this share of the
    /// time, and those over TCP always: as a part of both, a sample of the former stands for what came outside of windows, too.
    pub fn stand_for_all(&mut self, windows: f64) {
        if self.detail == StackDetail::Opened(Peer::Unix) && windows > 0.0 {
            self.weight /= windows;
        }
    }

    /// Of an allocation, objects that it stands for.
    #[must_use]
    pub fn objects(&self) -> f64 {
        match self.detail {
            StackDetail::Alloc { size, .. } => self.weight / size.max(1) as f64,
            _ => 0.0,
        }
    }

    /// The walk ended before the entry of the thread.
    #[must_use]
    pub const fn truncated(&self) -> bool {
        !self.unwind.whole()
    }
}

/// What tells a file from any other that was or will be in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CapturedFile {
    /// Numbers of the device of its filesystem.
    pub device: (u32, u32),
    /// Inode.
    pub inode: u64,
    /// Tells the inode from earlier ones with its number.
    pub generation: u32,
    /// Size in bytes.
    pub size: u64,
    /// When its content changed last: seconds and nanoseconds.
    pub mtime: (i64, i64),
}

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CapturedCode {
    /// A file.
    File(CapturedFile),
    /// What the kernel maps into each process.
    Vdso,
    /// Memory.
    Memory,
}

/// An executable mapping of a process, captured with a stack that leads through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedModule {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Offset of `start` in the file.
    pub offset: u64,
    /// What is there.
    pub code: CapturedCode,
    /// It is the process's executable.
    pub executable: bool,
}

/// What happened to program images and processes, in the order in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// A new slot for process `pid`: by `exec` from the image `parent`, or found when the agent started (`None`).
    Opened {
        /// The new slot.
        slot: SlotId,
        /// Process id that got it.
        pid: u32,
        /// Slot that the process had before its `exec`.
        parent: Option<SlotId>,
        /// Kernel's name of the main thread.
        comm: String,
    },
    /// The last thread of the slot is gone; its totals are final.
    Closed {
        /// The slot.
        slot: SlotId,
    },
    /// A process (not a thread) ended.
    Exited {
        /// Its slot.
        slot: SlotId,
        /// Its id.
        pid: u32,
    },
}

/// Where a sample of growth was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// When, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// The thread's registers, in the order of `struct pt_regs` of x86-64.
    pub registers: [u64; 21],
}

/// A range of addresses whose memory a process gave back or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Process.
    pub pid: u32,
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where it was moved to, if it was.
    pub to: Option<u64>,
    /// When last, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
}

/// A process that the kernel killed for memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OomVictim {
    /// Unix time in nanoseconds, to a tenth of a second.
    pub at_unix_ns: u64,
    /// Process id.
    pub pid: u32,
    /// Kernel's name of its thread; empty where it is not known.
    pub comm: String,
    /// By `MemoryKind`, as it was when it was chosen; before Linux 6.8 only anonymous memory is known unless the victim itself asked
    /// for more.
    pub resident_bytes: [u64; MemoryKind::COUNT],
}

/// One tick: everything that the kernel side counted since the tick before.
#[derive(Clone, Debug, Default)]
pub struct Tick {
    /// Unix time of the tick's end, in nanoseconds.
    pub at_unix_ns: u64,
    /// Length of the tick in nanoseconds.
    pub length_ns: u64,
    /// Differences of counters, gauges as they are, by slot.
    pub slots: Vec<(SlotId, Box<Totals>)>,
    /// Open descriptors of each process.
    pub processes: Vec<ProcessFds>,
    /// Open connections over Unix sockets; those that several processes share as often.
    pub unix: Vec<UnixSocket>,
    /// Those over Unix sockets that were opened and closed since the tick before.
    pub unix_brief: Vec<UnixBrief>,
}
