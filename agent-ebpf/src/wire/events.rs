//! Records of the ring buffer. Each starts with its kind.

use super::{Cause, ConnKey, MemoryKind};

/// User frames of a sample at most.
pub const USER_FRAMES: usize = 127;
/// Kernel frames of a sample at most.
pub const KERNEL_FRAMES: usize = 64;

/// [`SlotEvent::kind`]: a program image began.
pub const EVENT_OPENED: u32 = 1;
/// [`SlotEvent::kind`]: the last thread of an image ended.
pub const EVENT_CLOSED: u32 = 2;
/// [`SlotEvent::kind`]: a process ended.
pub const EVENT_EXITED: u32 = 3;
/// [`WaitDone::kind`].
pub const EVENT_WAIT_DONE: u32 = 4;
/// [`StackHeader::kind`].
pub const EVENT_STACK: u32 = 5;
/// [`OomVictim::kind`].
pub const EVENT_OOM: u32 = 6;

/// Life of slots and processes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotEvent {
    /// `EVENT_OPENED`, `EVENT_CLOSED` or `EVENT_EXITED`.
    pub kind: u32,
    /// Slot.
    pub slot: u32,
    /// Process.
    pub pid: u32,
    /// Slot before the `exec`, `SLOT_NONE` when the image was found.
    pub parent: u32,
    /// Name of the thread.
    pub comm: [u8; 16],
}

/// The kernel chose a process to kill for memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OomVictim {
    /// `EVENT_OOM`.
    pub kind: u32,
    /// Slot.
    pub slot: u32,
    /// Process.
    pub pid: u32,
    /// Padding.
    pub pad: u32,
    /// Pages in memory by `MemoryKind`. Where the kernel names the victim by its number alone (before Linux 6.8) and another process
    /// asked for the memory, only the anonymous ones are known, as of its last growth.
    pub pages: [u64; MemoryKind::COUNT],
    /// Name of the thread; empty where it is not known.
    pub comm: [u8; 16],
}

/// A sampled wait ended: how long it was.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct WaitDone {
    /// `EVENT_WAIT_DONE`.
    pub kind: u32,
    /// Forecast in units of 1024 ns.
    pub expect: u32,
    /// Mean of the threshold in units of 1024 ns.
    pub mean: u32,
    /// 1 where the stack may be taken anew: a stack event with the same id and [`SAMPLE_AGAIN`](super::SAMPLE_AGAIN) follows.
    pub again: u32,
    /// Id of the stack event.
    pub sample: u64,
    /// Nanoseconds blocked.
    pub blocked_ns: u64,
}

/// Set in a user address beyond the first that is not a return address: the place where a signal interrupted the thread.
pub const FRAME_INTERRUPTED: u64 = 1 << 63;
/// Bits of which a user address has none: with [`FRAME_INTERRUPTED`] alone they tell a mark from an address of the kernel's
/// half, where `[vsyscall]` is.
pub const FRAME_UPPER: u64 = 0xff << 56;

/// Words after the user half of a sample of growth, in place of kernel frames: the time in nanoseconds of the monotonic clock,
/// then the thread's saved registers (`struct pt_regs` of x86-64), by which the agent finds the address that was touched.
pub const GROWTH_WORDS: usize = 22;

/// Words after the user half of a sample of a TCP connection, in place of kernel frames: its [`ConnKey`].
pub const CONN_WORDS: usize = size_of::<ConnKey>() / 8;

/// [`CapturedModule::flags`]: the file is the process's executable.
pub const MODULE_EXECUTABLE: u32 = 1;
/// [`CapturedModule::flags`]: no file, but what the kernel maps into each process.
pub const MODULE_VDSO: u32 = 2;
/// Modules that a sample carries at most.
pub const SAMPLE_MODULES: usize = 8;

/// An executable mapping that has an address of the sample, as it was when the sample was taken: of a process that the agent
/// does not know yet, and which may be gone when it looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CapturedModule {
    /// First address.
    pub start: u64,
    /// First address behind it; 0 where the place is not used.
    pub end: u64,
    /// Offset of `start` in the file, in pages.
    pub page_offset: u64,
    /// Number of the file; 0 without one. Of a file that another filesystem shows (overlayfs), these are of the file below.
    pub inode: u64,
    /// Its size.
    pub size: u64,
    /// When its content changed last, in seconds.
    pub mtime: i64,
    /// Nanoseconds of that.
    pub mtime_nsec: u32,
    /// Device of its filesystem, as the kernel numbers devices: 20 bits of minor number, and the major number above.
    pub device: u32,
    /// Tells it from earlier files with its number.
    pub generation: u32,
    /// `MODULE_*`.
    pub flags: u32,
}
const _: () = assert!(size_of::<CapturedModule>() == 64);

/// Beside the cause of a sampled wait: the kernel held the thread up for want of memory.
pub const FOR_MEMORY: u32 = 1 << 8;
const _: () = assert!(Cause::COUNT < FOR_MEMORY as usize);

/// A sampled stack; `user_len` and then `kernel_len` addresses follow, 8 bytes each, see [`FRAME_INTERRUPTED`]; then
/// `python_len` frames of [`PYTHON_WORDS`](super::python::PYTHON_WORDS), and behind them `modules` times [`CapturedModule`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackHeader {
    /// `EVENT_STACK`.
    pub kind: u32,
    /// Slot.
    pub slot: u32,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// `StackKind`.
    pub stack_kind: u32,
    /// Cause of a wait, with [`FOR_MEMORY`]; of an allocation, the mean distance of samples in bytes.
    pub cause: u32,
    /// System call number, -1 for none (so of a TCP connection); of an allocation, the thread's count of samples.
    pub nr: i32,
    /// Frames of the user half.
    pub user_len: u16,
    /// Frames of the kernel half, or the words in their place ([`GROWTH_WORDS`], [`CONN_WORDS`]).
    pub kernel_len: u16,
    /// [`UnwindResult`](super::unwind::UnwindResult): how the walk of the user half ended.
    pub unwind: u32,
    /// Frames of CPython.
    pub python_len: u8,
    /// Minor version of the interpreter that they are of, with
    /// [`PYTHON_WHOLE`](super::python::PYTHON_WHOLE) and [`PYTHON_RETURNED`](super::python::PYTHON_RETURNED).
    pub python_minor: u8,
    /// Modules behind the frames.
    pub modules: u16,
    /// What the sample stands for: nanoseconds, calls, bytes, connections; the sample's id for waits and descriptors, the
    /// size of an allocation.
    pub weight: u64,
}
const _: () = assert!(size_of::<StackHeader>() == 48);

index_enum! {
    /// Why something was lost.
    Lost {
        /// The ring buffer was full.
        Ring = "ring_full",
        /// No slot was free: the image is counted for its parent.
        Slots = "slots_full",
        /// The table of threads was full.
        Threads = "threads_full",
        /// A counter table was full.
        Counters = "counters_full",
        /// The table of ranges that were given back was full.
        Ranges = "ranges_full",
        /// The table of connections was full.
        Conns = "connections_full",
        /// The table of block requests was full.
        Requests = "requests_full",
        /// An event that could not be matched with its beginning.
        Unmatched = "unmatched",
        /// The table of live allocations was full.
        Live = "live_full",
        /// Another thread was taking a sample on this CPU.
        Busy = "busy",
        /// A mapping of a process that the agent did not know could not be captured with a sample.
        Modules = "modules_unreadable",
        /// The kernel did not tell that a thread got a CPU: how long it ran is what the scheduler says.
        Untold = "untold",
    }
}

index_enum! {
    /// Programs of the object, for counting their runs.
    Program {
        /// `wait_switch`.
        WaitSwitch = "wait_switch",
        /// `process_fork`.
        ProcessFork = "process_fork",
        /// `process_exec`.
        ProcessExec = "process_exec",
        /// `cpu_clock`.
        CpuClock = "cpu_clock",
        /// `syscall_enter`.
        SyscallEnter = "syscall_enter",
        /// `syscall_exit`.
        SyscallExit = "syscall_exit",
        /// `memory_growth`.
        MemoryGrowth = "memory_growth",
        /// `memory_moved`.
        MemoryMoved = "memory_moved",
        /// The beginnings of `stall_...`.
        Stall = "stall_begin",
        /// `memory_oom`.
        MemoryOom = "memory_oom",
        /// `disk_start`.
        DiskStart = "disk_start",
        /// `disk_done`.
        DiskDone = "disk_done",
        /// `conn_state`.
        ConnState = "conn_state",
        /// `alloc_enter`.
        AllocEnter = "alloc_enter",
        /// `alloc_return`.
        AllocReturn = "alloc_return",
        /// `alloc_free`.
        AllocFree = "alloc_free",
        /// `opener_exit`.
        OpenerExit = "opener_exit",
        /// `conn_nested`.
        ConnNested = "conn_nested",
    }
}

impl Cause {
    /// `Cause` of a byte that this side wrote.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::from_index(u32::from(byte))
    }
}
