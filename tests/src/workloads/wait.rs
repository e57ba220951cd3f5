//! One wait of a known kind and length. The main thread waits; a helper thread or process ends the wait.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use rustix::event::{EventfdFlags, epoll, eventfd};
use serde_json::json;

use super::{anon, gate, raw};

/// What to wait for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// `nanosleep`.
    Sleep,
    /// A read of an empty pipe.
    Pipe,
    /// A read of a Unix stream socket.
    Unix,
    /// A read of a loopback TCP connection.
    Tcp,
    /// A read of a loopback TCP connection whose descriptor was a pipe a moment ago; only the second wait is measured.
    Reused,
    /// A read of an eventfd at zero.
    Eventfd,
    /// A read of a timerfd.
    Timerfd,
    /// A read of an inotify descriptor.
    Inotify,
    /// A read of a signalfd.
    Signalfd,
    /// `epoll_wait`.
    Epoll,
    /// `accept`.
    Accept,
    /// `wait4` for a child that sleeps.
    Wait4,
    /// A `std::sync::Mutex` that another thread holds.
    Mutex,
    /// A futex that no library function is around.
    Futex,
    /// `flock` on a file that is locked.
    Flock,
    /// `std::sync::Condvar`.
    Condvar,
    /// `pthread_cond_wait`.
    PthreadCondvar,
}

/// Waits `seconds` in the way of `kind`, `times` times, and prints the measured sum.
pub fn run(kind: Kind, seconds: f64, times: u32) -> Result<()> {
    let length = Duration::from_secs_f64(seconds);
    gate::step("ready", &json!({}))?;
    let mut waited = Duration::ZERO;
    for _ in 0..times {
        waited += one(kind, length).with_context(|| format!("{kind:?}"))?;
    }
    gate::truth(&json!({ "waited_seconds": waited.as_secs_f64(), "waits": times }))
}

fn one(kind: Kind, length: Duration) -> Result<Duration> {
    match kind {
        Kind::Sleep => timed(|| wait_sleep(length)),
        Kind::Pipe => {
            let (reader, writer) = rustix::pipe::pipe()?;
            read_after(length, reader.as_fd(), writer, wait_pipe)
        }
        Kind::Unix => {
            let (reader, writer) = UnixStream::pair()?;
            read_after(length, reader.as_fd(), writer.into(), wait_unix)
        }
        Kind::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let writer = TcpStream::connect(listener.local_addr()?)?;
            let (reader, _) = listener.accept()?;
            read_after(length, reader.as_fd(), writer.into(), wait_tcp)
        }
        Kind::Reused => {
            let (mut reader, writer) = rustix::pipe::pipe()?;
            read_after(length, reader.as_fd(), writer, wait_pipe)?;
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let writer = TcpStream::connect(listener.local_addr()?)?;
            rustix::io::dup2(listener.accept()?.0, &mut reader)?;
            read_after(length, reader.as_fd(), writer.into(), wait_tcp)
        }
        Kind::Eventfd => {
            let reader = eventfd(0, EventfdFlags::CLOEXEC)?;
            let writer = reader.try_clone()?;
            read_after(length, reader.as_fd(), writer, wait_eventfd)
        }
        Kind::Timerfd => anon::timerfd_after(length),
        Kind::Inotify => anon::inotify_after(length),
        Kind::Signalfd => anon::signalfd_after(length),
        Kind::Epoll => epoll_after(length),
        Kind::Accept => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?;
            let helper = after(length, move || {
                TcpStream::connect(address).map(drop).map_err(Into::into)
            });
            let waited = timed(|| wait_accept(listener.as_fd()))?;
            joined(helper)?;
            Ok(waited)
        }
        Kind::Wait4 => {
            let child = Command::new("sleep")
                .arg(length.as_secs_f64().to_string())
                .spawn()?;
            let pid = i32::try_from(child.id())?;
            timed(|| wait_child(pid))
        }
        Kind::Mutex => mutex_after(length),
        Kind::Futex => futex_after(length),
        Kind::Flock => flock_after(length),
        Kind::Condvar => condvar_after(length),
        Kind::PthreadCondvar => pthread_condvar_after(length),
    }
}

#[inline(never)]
fn wait_sleep(length: Duration) -> isize {
    raw::nanosleep(length)
}

#[inline(never)]
fn wait_pipe(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; 8])
}

#[inline(never)]
fn wait_unix(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; 8])
}

#[inline(never)]
fn wait_tcp(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; 8])
}

#[inline(never)]
fn wait_eventfd(fd: BorrowedFd<'_>) -> isize {
    raw::read(fd, &mut [0; 8])
}

#[inline(never)]
fn wait_accept(fd: BorrowedFd<'_>) -> isize {
    raw::accept(fd)
}

#[inline(never)]
fn wait_child(pid: i32) -> isize {
    raw::wait4(pid)
}

#[inline(never)]
fn wait_epoll(fd: BorrowedFd<'_>) -> isize {
    raw::epoll_wait(fd.as_raw_fd())
}

#[inline(never)]
fn wait_futex(word: &AtomicU32) -> isize {
    raw::futex_wait(word, 0)
}

#[inline(never)]
fn wait_flock(fd: BorrowedFd<'_>) -> isize {
    raw::flock(fd, libc::LOCK_EX)
}

/// Times a call and fails if the kernel did.
pub(super) fn timed(call: impl FnOnce() -> isize) -> Result<Duration> {
    let start = Instant::now();
    let result = call();
    let waited = start.elapsed();
    if result < 0 {
        bail!(
            "the wait failed: {}",
            std::io::Error::from_raw_os_error(i32::try_from(-result)?)
        );
    }
    Ok(waited)
}

/// Runs `action` in a thread after `length`.
pub(super) fn after(
    length: Duration,
    action: impl FnOnce() -> Result<()> + Send + 'static,
) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        raw::nanosleep(length);
        action()
    })
}

pub(super) fn joined(helper: JoinHandle<Result<()>>) -> Result<()> {
    helper.join().map_err(|_| anyhow!("the helper thread panicked"))?
}

fn read_after(
    length: Duration,
    reader: BorrowedFd<'_>,
    writer: OwnedFd,
    wait: fn(BorrowedFd<'_>) -> isize,
) -> Result<Duration> {
    let helper = after(length, move || {
        Ok(File::from(writer).write_all(&1u64.to_ne_bytes())?)
    });
    let waited = timed(|| wait(reader))?;
    joined(helper)?;
    Ok(waited)
}

fn epoll_after(length: Duration) -> Result<Duration> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&set, &reader, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    let helper = after(length, move || Ok(File::from(writer).write_all(&[1])?));
    let waited = timed(|| wait_epoll(set.as_fd()))?;
    joined(helper)?;
    Ok(waited)
}

fn spin_until(flag: &AtomicBool) {
    while !flag.load(Ordering::Acquire) {
        std::hint::spin_loop();
    }
}

fn mutex_after(length: Duration) -> Result<Duration> {
    let mutex = Arc::new(Mutex::new(()));
    let held = Arc::new(AtomicBool::new(false));
    let helper = {
        let (mutex, held) = (Arc::clone(&mutex), Arc::clone(&held));
        std::thread::spawn(move || {
            let guard = mutex.lock().map_err(|_| anyhow!("poisoned"))?;
            held.store(true, Ordering::Release);
            raw::nanosleep(length);
            drop(guard);
            Ok(())
        })
    };
    spin_until(&held);
    let start = Instant::now();
    let locked = mutex.lock().map(drop).is_ok();
    let waited = start.elapsed();
    joined(helper)?;
    anyhow::ensure!(locked, "the mutex is poisoned");
    Ok(waited)
}

fn futex_after(length: Duration) -> Result<Duration> {
    let word = Arc::new(AtomicU32::new(0));
    let other = Arc::clone(&word);
    let helper = after(length, move || {
        other.store(1, Ordering::Release);
        raw::futex_wake(&other);
        Ok(())
    });
    let start = Instant::now();
    while word.load(Ordering::Acquire) == 0 {
        wait_futex(&word);
    }
    let waited = start.elapsed();
    joined(helper)?;
    Ok(waited)
}

fn flock_after(length: Duration) -> Result<Duration> {
    let file = tempfile::NamedTempFile::new()?;
    let holder = File::open(file.path())?;
    anyhow::ensure!(
        raw::flock(holder.as_fd(), libc::LOCK_EX) == 0,
        "the lock is not free"
    );
    let helper = after(length, move || {
        drop(holder);
        Ok(())
    });
    let waited = timed(|| wait_flock(file.as_file().as_fd()))?;
    joined(helper)?;
    Ok(waited)
}

fn condvar_after(length: Duration) -> Result<Duration> {
    let pair = Arc::new((Mutex::new(false), Condvar::new()));
    let other = Arc::clone(&pair);
    let helper = after(length, move || {
        *other.0.lock().map_err(|_| anyhow!("poisoned"))? = true;
        other.1.notify_all();
        Ok(())
    });
    let start = Instant::now();
    let mut done = pair.0.lock().map_err(|_| anyhow!("poisoned"))?;
    while !*done {
        done = pair.1.wait(done).map_err(|_| anyhow!("poisoned"))?;
    }
    drop(done);
    let waited = start.elapsed();
    joined(helper)?;
    Ok(waited)
}

/// A condition that C code waits for.
struct Condition {
    mutex: std::cell::UnsafeCell<libc::pthread_mutex_t>,
    condvar: std::cell::UnsafeCell<libc::pthread_cond_t>,
    done: AtomicBool,
}

// SAFETY: the pthread functions synchronise all access to the two cells.
unsafe impl Sync for Condition {}

fn pthread_condvar_after(length: Duration) -> Result<Duration> {
    let condition = Arc::new(Condition {
        mutex: libc::PTHREAD_MUTEX_INITIALIZER.into(),
        condvar: libc::PTHREAD_COND_INITIALIZER.into(),
        done: AtomicBool::new(false),
    });
    let other = Arc::clone(&condition);
    let helper = after(length, move || {
        // SAFETY: both objects are initialised and live in the shared allocation.
        unsafe {
            libc::pthread_mutex_lock(other.mutex.get());
            other.done.store(true, Ordering::Release);
            libc::pthread_cond_broadcast(other.condvar.get());
            libc::pthread_mutex_unlock(other.mutex.get());
        }
        Ok(())
    });
    let start = Instant::now();
    // SAFETY: as above; the mutex is held around the wait.
    unsafe {
        libc::pthread_mutex_lock(condition.mutex.get());
        while !condition.done.load(Ordering::Acquire) {
            libc::pthread_cond_wait(condition.condvar.get(), condition.mutex.get());
        }
        libc::pthread_mutex_unlock(condition.mutex.get());
    }
    let waited = start.elapsed();
    joined(helper)?;
    Ok(waited)
}
