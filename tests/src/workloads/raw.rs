//! System calls issued by the calling function itself.
//!
//! Each wrapper is inlined, so that the innermost user frame of the call is the (named, never inlined) workload
//! function: what a profiler says about that function can be checked whatever its unwinder can do.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Issues a system call and returns the kernel's answer: the result, or the negated errno.
///
/// # Safety
/// Pointers among `args` must be valid for what the call does with them.
#[inline(always)]
unsafe fn syscall(number: libc::c_long, args: [usize; 6]) -> isize {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for the arguments; rcx and r11 are the only registers that the instruction clobbers.
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number as isize => result, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5], out("rcx") _, out("r11") _,
            options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller vouches for the arguments; the instruction clobbers x0 only.
    unsafe {
        std::arch::asm!("svc 0", in("x8") number, inlateout("x0") args[0] as isize => result, in("x1") args[1],
            in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5], options(nostack));
    }
    result
}

/// A descriptor as a register value.
#[inline(always)]
fn register(fd: BorrowedFd<'_>) -> usize {
    fd.as_raw_fd() as usize
}

/// `read(2)`.
#[inline(always)]
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> isize {
    let args = [register(fd), buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer.
    unsafe { syscall(libc::SYS_read, args) }
}

/// `write(2)`.
#[inline(always)]
pub fn write(fd: BorrowedFd<'_>, buffer: &[u8]) -> isize {
    let args = [register(fd), buffer.as_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: the kernel reads at most `buffer.len()` bytes from the buffer.
    unsafe { syscall(libc::SYS_write, args) }
}

/// `fsync(2)`.
#[inline(always)]
pub fn fsync(fd: BorrowedFd<'_>) -> isize {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_fsync, [register(fd), 0, 0, 0, 0, 0]) }
}

/// `flock(2)`.
#[inline(always)]
pub fn flock(fd: BorrowedFd<'_>, operation: i32) -> isize {
    // SAFETY: no pointers.
    unsafe { syscall(libc::SYS_flock, [register(fd), operation as usize, 0, 0, 0, 0]) }
}

/// `nanosleep(2)` without restart.
#[inline(always)]
pub fn nanosleep(time: Duration) -> isize {
    let spec = libc::timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    // SAFETY: the kernel reads one timespec that lives until the call returns.
    unsafe {
        syscall(
            libc::SYS_nanosleep,
            [std::ptr::from_ref(&spec) as usize, 0, 0, 0, 0, 0],
        )
    }
}

/// `getppid(2)`.
#[inline(always)]
pub fn getppid() -> isize {
    // SAFETY: no arguments.
    unsafe { syscall(libc::SYS_getppid, [0; 6]) }
}

/// `openat(2)` relative to the working directory; the result is a descriptor or the negated errno.
#[inline(always)]
pub fn openat(path: &CStr, flags: i32) -> isize {
    let args = [
        libc::AT_FDCWD as usize,
        path.as_ptr() as usize,
        flags as usize,
        0o600,
        0,
        0,
    ];
    // SAFETY: the path ends in a zero byte.
    unsafe { syscall(libc::SYS_openat, args) }
}

/// `accept4(2)` without an address; the result is a descriptor or the negated errno.
#[inline(always)]
pub fn accept(fd: BorrowedFd<'_>) -> isize {
    // SAFETY: null pointers ask for no address.
    unsafe {
        syscall(
            libc::SYS_accept4,
            [register(fd), 0, 0, libc::SOCK_CLOEXEC as usize, 0, 0],
        )
    }
}

/// `epoll_pwait(2)` for one event, with no time limit.
#[inline(always)]
pub fn epoll_wait(epoll: RawFd) -> isize {
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    let args = [
        epoll as usize,
        std::ptr::from_mut(&mut event) as usize,
        1,
        usize::MAX,
        0,
        0,
    ];
    // SAFETY: room for one event; a null signal mask changes nothing.
    unsafe { syscall(libc::SYS_epoll_pwait, args) }
}

/// `wait4(2)` for one child.
#[inline(always)]
pub fn wait4(pid: i32) -> isize {
    // SAFETY: null pointers ask for neither status nor usage.
    unsafe { syscall(libc::SYS_wait4, [pid as usize, 0, 0, 0, 0, 0]) }
}

/// `futex(2)`: waits while the word holds `value`.
#[inline(always)]
pub fn futex_wait(word: &AtomicU32, value: u32) -> isize {
    let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the word outlives the call; a null timeout waits for ever.
    unsafe {
        syscall(
            libc::SYS_futex,
            [word.as_ptr() as usize, operation, value as usize, 0, 0, 0],
        )
    }
}

/// `futex(2)`: wakes all waiters of the word.
#[inline(always)]
pub fn futex_wake(word: &AtomicU32) -> isize {
    let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
    // SAFETY: the word outlives the call.
    unsafe {
        syscall(
            libc::SYS_futex,
            [word.as_ptr() as usize, operation, i32::MAX as usize, 0, 0, 0],
        )
    }
}

/// `connect(2)`; the address is the bytes of a `sockaddr`.
#[inline(always)]
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> isize {
    let args = [register(fd), address.as_ptr() as usize, address.len(), 0, 0, 0];
    // SAFETY: the kernel reads at most `address.len()` bytes.
    unsafe { syscall(libc::SYS_connect, args) }
}
