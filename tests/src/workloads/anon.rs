//! Waits on descriptors of things that have no name in any file system.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::fs::inotify;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::raw;
use super::wait::{after, joined, timed};

#[inline(never)]
fn wait_timerfd(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; 8])
}

#[inline(never)]
fn wait_inotify(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; 4096])
}

#[inline(never)]
fn wait_signalfd(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; size_of::<libc::signalfd_siginfo>()])
}

pub(super) fn timerfd_after(length: Duration) -> Result<Duration> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(length)?,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    timed(|| wait_timerfd(timer.as_fd()))
}

pub(super) fn inotify_after(length: Duration) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let events = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&events, folder.path(), inotify::WatchFlags::CREATE)?;
    let path = folder.path().join("new");
    let helper = after(length, move || Ok(File::create(path).map(drop)?));
    let waited = timed(|| wait_inotify(events.as_fd()))?;
    joined(helper)?;
    Ok(waited)
}

/// A signal that this thread, and those that it begins, do not take, and a descriptor that it is read from.
pub(super) fn signalfd() -> Result<OwnedFd> {
    // SAFETY: the set of signals is emptied before it is used, and lives until the calls return.
    let fd = unsafe {
        let mut signals = MaybeUninit::uninit();
        libc::sigemptyset(signals.as_mut_ptr());
        libc::sigaddset(signals.as_mut_ptr(), libc::SIGUSR1);
        let blocked = libc::pthread_sigmask(libc::SIG_BLOCK, signals.as_ptr(), std::ptr::null_mut());
        ensure!(blocked == 0, "{}", io::Error::from_raw_os_error(blocked));
        libc::signalfd(-1, signals.as_ptr(), libc::SFD_CLOEXEC)
    };
    ensure!(fd >= 0, "signalfd: {}", io::Error::last_os_error());
    // SAFETY: it is new, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn signalfd_after(length: Duration) -> Result<Duration> {
    let signals = signalfd()?;
    // SAFETY: no preconditions.
    let thread = unsafe { libc::pthread_self() };
    let helper = after(length, move || {
        // SAFETY: the thread waits for this one.
        let sent = unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
        ensure!(sent == 0, "{}", io::Error::from_raw_os_error(sent));
        Ok(())
    });
    let waited = timed(|| wait_signalfd(signals.as_fd()))?;
    joined(helper)?;
    Ok(waited)
}
