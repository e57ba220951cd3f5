//! Fields of tasks and saved registers.
//!
//! Where the verifier knows a pointer's BTF type, a field is a plain load (1 ns), and the agent writes the field's offset
//! into that very instruction; elsewhere it is `bpf_probe_read_kernel`.

use core::arch::asm;

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs},
};

use crate::offsets::{MARK_CAST, MARK_CASTS, MARK_IOWAIT, MARK_MEMSTALL, MARK_REGS, MISSING};

/// Where a plain load finds its field.
pub(crate) struct At<const OFFSET: i32>;

/// A field for a plain load.
macro_rules! field {
    ($field:ident) => {
        $crate::bpf::task::At::<
            {
                $crate::offsets::MARK_LOAD as i32
                    + core::mem::offset_of!($crate::offsets::Offsets, $field) as i32
            },
        >
    };
}
pub(crate) use field;

/// An offset as a number.
macro_rules! offset {
    ($field:ident) => {
        $crate::bpf::task::constant::<
            { $crate::offsets::MARK + core::mem::offset_of!($crate::offsets::Offsets, $field) as u32 },
        >() as u32
    };
}
pub(crate) use offset;

/// A constant that neither the compiler nor anything else knows before the agent loads the object. A branch on it costs
/// nothing, because the verifier takes the dead one away.
#[inline(always)]
pub(crate) fn constant<const MARK: u32>() -> u64 {
    let constant: u64;
    // SAFETY: moves a constant into a register.
    unsafe { asm!("{} = {}", out(reg) constant, const MARK, options(pure, nomem, nostack, preserves_flags)) };
    constant
}

/// What one instruction can load.
pub(crate) trait Word: Copy {
    /// Loads it; a bad address reads as zero (the kernel handles the exception).
    ///
    /// # Safety
    /// The verifier must know the type of `from`, and the kernel's structure must not be one that Rust sees as well.
    unsafe fn load<const OFFSET: i32>(from: *const u8) -> Self;
}

macro_rules! words {
    ($($word:ty: $size:literal,)+) => {$(
        impl Word for $word {
            #[inline(always)]
            unsafe fn load<const OFFSET: i32>(from: *const u8) -> Self {
                let word: u64;
                // SAFETY: checked by the verifier, which knows the type; no memory of Rust's is read.
                unsafe {
                    asm!(
                        concat!("{} = *(", $size, " *)({} + {})"),
                        out(reg) word,
                        in(reg) from as u64,
                        const OFFSET,
                        options(nomem, nostack, preserves_flags)
                    );
                    // Spares the compiler to clear the upper part.
                    core::hint::assert_unchecked(word <= u64::MAX >> (64 - 8 * size_of::<Self>()));
                }
                word as Self
            }
        }
    )+};
}
words! {
    u8: "u8",
    u16: "u16",
    u32: "u32",
    u64: "u64",
    *const u8: "u64",
}

/// A pointer whose BTF type the verifier knows.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Kernel(pub(crate) *const u8);

impl Kernel {
    /// A plain load of a field.
    #[inline(always)]
    pub(crate) fn load<T: Word, const OFFSET: i32>(self, _field: At<OFFSET>) -> T {
        // SAFETY: the verifier checks type and bounds of BTF pointers.
        unsafe { T::load::<OFFSET>(self.0) }
    }

    /// Whether a thread waits for a disk.
    #[inline(always)]
    pub(crate) fn in_iowait(self) -> bool {
        u64::from(self.load::<u8, _>(field!(task_iowait))) & constant::<MARK_IOWAIT>() != 0
    }

    /// Whether the kernel holds a thread up for want of memory (`psi_memstall_enter`, kernel/sched/psi.c).
    #[inline(always)]
    pub(crate) fn in_memstall(self) -> bool {
        offset!(task_memstall) != MISSING
            && u64::from(self.load::<u8, _>(field!(task_memstall))) & constant::<MARK_MEMSTALL>() != 0
    }

    /// Follows a pointer field to another typed pointer.
    #[inline(always)]
    pub(crate) fn follow<const OFFSET: i32>(self, field: At<OFFSET>) -> Self {
        Self(self.load(field))
    }

    /// Reads through the helper: for pointers whose type the verifier does not know.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(self, offset: u32) -> Option<T> {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(offset as usize).cast::<T>()) }.ok()
    }

    /// Follows a pointer through the helper.
    #[inline(always)]
    pub(crate) fn deref(self, offset: u32) -> Option<Self> {
        self.read::<*const u8>(offset)
            .filter(|pointer| !pointer.is_null())
            .map(Self)
    }
}

/// The running task.
#[inline(always)]
pub(crate) fn current() -> Kernel {
    // SAFETY: the helper has no preconditions.
    Kernel(unsafe { bpf_get_current_task_btf() } as *const u8)
}

/// The run queue's clock as of the last update, in nanoseconds: what the scheduler itself accounts with. Reading it
/// costs three loads, `bpf_ktime_get_ns` about 58 ns (COST.md 2.1).
#[inline(always)]
pub(crate) fn rq_clock(task: Kernel) -> u64 {
    if offset!(cfs_rq_rq) == MISSING {
        return now();
    }
    task.follow(field!(task_cfs_rq))
        .follow(field!(cfs_rq_rq))
        .load(field!(rq_clock))
}

/// What a thread has had of a CPU until `clock` ([`rq_clock`]), as the kernel accounts for it: without what a hypervisor took, nor
/// interrupts where they are accounted for. The account of one that runs is as old as its last tick.
#[inline(always)]
pub(crate) fn ran(task: Kernel, running: bool, clock: u64) -> u64 {
    let accounted: u64 = task.load(field!(task_ran));
    if !running || offset!(cfs_rq_rq) == MISSING {
        return accounted;
    }
    let queue = task.follow(field!(task_cfs_rq)).follow(field!(cfs_rq_rq));
    let since = queue
        .load::<u64, _>(field!(rq_clock_task))
        .wrapping_sub(task.load(field!(task_exec_start)));
    let behind = clock.wrapping_sub(queue.load(field!(rq_clock)));
    accounted + positive(since) + positive(behind)
}

/// A difference of clocks, 0 where the other one is ahead.
#[inline(always)]
fn positive(difference: u64) -> u64 {
    difference & !((difference as i64 >> 63) as u64)
}

/// Monotonic time in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// User registers of a task.
#[derive(Clone, Copy)]
pub(crate) struct Regs(Kernel);

impl Regs {
    /// Saved registers of a task; only meaningful for user threads.
    #[inline(always)]
    pub(crate) fn of(task: Kernel) -> Self {
        // SAFETY: the verifier checks that the pointer is a task.
        Self(Kernel(
            unsafe { bpf_task_pt_regs(task.0.cast_mut().cast()) } as *const u8
        ))
    }

    /// Saved registers of a task whose [`address`](Self::address) was noted, which stays the same for its life: the helper's
    /// call is a tenth of the cost of a context switch's program.
    #[inline(always)]
    pub(crate) fn noted(task: Kernel, address: u64) -> Self {
        if constant::<MARK_CASTS>() == 0 {
            return Self::of(task);
        }
        let typed: *const u8;
        // SAFETY: the agent makes this a call of `bpf_rdonly_cast`, of which the verifier makes a move; loads from a bad
        // address read zero.
        unsafe {
            asm!(
                "r2 = {type}",
                "call {cast}",
                type = const MARK_REGS,
                cast = const MARK_CAST,
                inout("r1") address => _,
                out("r0") typed,
                out("r2") _,
                out("r3") _,
                out("r4") _,
                out("r5") _,
                options(pure, nomem, nostack)
            );
        }
        Self(Kernel(typed))
    }

    /// Saved registers that a tracepoint hands over.
    #[inline(always)]
    pub(crate) fn at(registers: *const u8) -> Self {
        Self(Kernel(registers))
    }

    /// System call number; negative outside of system calls. Only 32 bits count, as in the kernel.
    #[inline(always)]
    pub(crate) fn nr(self) -> i32 {
        self.0.load::<u64, _>(field!(regs_nr)) as i32
    }

    /// First argument.
    #[inline(always)]
    pub(crate) fn arg0(self) -> u64 {
        self.0.load(field!(regs_arg0))
    }

    /// Second argument.
    #[inline(always)]
    pub(crate) fn arg1(self) -> u64 {
        self.0.load(field!(regs_arg1))
    }

    /// Third argument.
    #[inline(always)]
    pub(crate) fn arg2(self) -> u64 {
        self.0.load(field!(regs_arg2))
    }

    /// Fourth argument.
    #[inline(always)]
    pub(crate) fn arg3(self) -> u64 {
        self.0.load(field!(regs_arg3))
    }

    /// Where they are saved.
    #[inline(always)]
    pub(crate) fn address(self) -> *const u8 {
        self.0.0
    }

    /// Instruction pointer.
    #[inline(always)]
    pub(crate) fn ip(self) -> u64 {
        self.0.load(field!(regs_ip))
    }

    /// Stack pointer.
    #[inline(always)]
    pub(crate) fn sp(self) -> u64 {
        self.0.load(field!(regs_sp))
    }

    /// Frame pointer.
    #[inline(always)]
    pub(crate) fn fp(self) -> u64 {
        self.0.load(field!(regs_fp))
    }
}
