//! Fields of tasks and saved registers.
//!
//! Where the verifier knows a pointer's BTF type, a field is a plain load (1 ns) at an offset that it sees as a constant,
//! because the agent writes the offsets into the instructions; elsewhere it is `bpf_probe_read_kernel`.

use aya_ebpf::helpers::{
    bpf_probe_read_kernel,
    generated::{bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_task_pt_regs},
};

use crate::offsets::MISSING;

/// An offset: a constant that neither the compiler nor anything else knows before the agent loads the object.
macro_rules! offset {
    ($field:ident) => {
        $crate::bpf::task::offset_at::<
            { $crate::offsets::MARK + core::mem::offset_of!($crate::offsets::Offsets, $field) as u32 },
        >()
    };
}
pub(crate) use offset;

#[inline(always)]
pub(crate) fn offset_at<const MARK: u32>() -> u32 {
    let offset: u64;
    // SAFETY: moves a constant into a register.
    unsafe {
        core::arch::asm!("{} = {}", out(reg) offset, const MARK, options(pure, nomem, nostack, preserves_flags));
        // Spares the compiler to clear the upper half.
        core::hint::assert_unchecked(offset <= 0x7fff_ffff || offset == u64::MAX);
    }
    offset as u32
}

/// A pointer whose BTF type the verifier knows.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Kernel(pub(crate) *const u8);

impl Kernel {
    /// A plain load at an offset; a bad address reads as zero (the kernel handles the exception).
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the verifier checks type and bounds of BTF pointers; faults are handled by the kernel.
        unsafe { core::ptr::read_volatile(self.0.add(offset as usize).cast::<T>()) }
    }

    /// Follows a pointer field to another typed pointer.
    #[inline(always)]
    pub(crate) fn follow(self, offset: u32) -> Self {
        Self(self.load::<*const u8>(offset))
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
    task.follow(offset!(task_cfs_rq))
        .follow(offset!(cfs_rq_rq))
        .load(offset!(rq_clock))
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

    /// Saved registers that a tracepoint hands over.
    #[inline(always)]
    pub(crate) fn at(registers: *const u8) -> Self {
        Self(Kernel(registers))
    }

    /// System call number; negative outside of system calls. Only 32 bits count, as in the kernel.
    #[inline(always)]
    pub(crate) fn nr(self) -> i32 {
        self.0.load::<u64>(offset!(regs_nr)) as i32
    }

    /// First argument.
    #[inline(always)]
    pub(crate) fn arg0(self) -> u64 {
        self.0.load(offset!(regs_arg0))
    }

    /// Second argument.
    #[inline(always)]
    pub(crate) fn arg1(self) -> u64 {
        self.0.load(offset!(regs_arg1))
    }

    /// Third argument.
    #[inline(always)]
    pub(crate) fn arg2(self) -> u64 {
        self.0.load(offset!(regs_arg2))
    }

    /// Fourth argument.
    #[inline(always)]
    pub(crate) fn arg3(self) -> u64 {
        self.0.load(offset!(regs_arg3))
    }

    /// Where they are saved.
    #[inline(always)]
    pub(crate) fn address(self) -> *const u8 {
        self.0.0
    }

    /// Result of a function.
    #[inline(always)]
    pub(crate) fn result(self) -> u64 {
        self.0.load(offset!(regs_ax))
    }

    /// Instruction pointer.
    #[inline(always)]
    pub(crate) fn ip(self) -> u64 {
        self.0.load(offset!(regs_ip))
    }

    /// Stack pointer.
    #[inline(always)]
    pub(crate) fn sp(self) -> u64 {
        self.0.load(offset!(regs_sp))
    }

    /// Frame pointer.
    #[inline(always)]
    pub(crate) fn fp(self) -> u64 {
        self.0.load(offset!(regs_fp))
    }
}
