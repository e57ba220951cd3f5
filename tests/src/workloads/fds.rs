//! Holds a known number of descriptors.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde_json::json;

use super::{anon, gate};

/// Files without a name, by kind: so many of each.
fn nameless() -> Result<Vec<(&'static str, Vec<OwnedFd>)>> {
    use rustix::{event, fs, time};
    type Opened = rustix::io::Result<OwnedFd>;
    let many = |count, open: &dyn Fn() -> Opened| (0..count).map(|_| open()).collect::<Result<Vec<_>, _>>();
    let clock = time::TimerfdClockId::Monotonic;
    let null = || fs::open("/dev/null", fs::OFlags::RDONLY, fs::Mode::empty());
    Ok(vec![
        (
            "eventfd",
            many(5, &|| event::eventfd(0, event::EventfdFlags::CLOEXEC))?,
        ),
        (
            "epoll",
            many(3, &|| event::epoll::create(event::epoll::CreateFlags::CLOEXEC))?,
        ),
        (
            "timerfd",
            many(4, &|| time::timerfd_create(clock, time::TimerfdFlags::CLOEXEC))?,
        ),
        (
            "inotify",
            many(2, &|| fs::inotify::init(fs::inotify::CreateFlags::CLOEXEC))?,
        ),
        ("device", many(6, &null)?),
        (
            "other",
            vec![anon::signalfd()?, anon::signalfd()?, anon::signalfd()?],
        ),
    ])
}

/// Opens files, pipes (two ends each), unbound sockets and some of all other kinds, and holds them until told to go on.
pub fn open(files: usize, pipes: usize, sockets: usize) -> Result<()> {
    gate::step("ready", &json!({}))?;
    let own: Vec<_> = (0..files)
        .map(|_| File::open("/proc/self/exe"))
        .collect::<Result<_, _>>()?;
    let ends: Vec<_> = (0..pipes)
        .map(|_| rustix::pipe::pipe())
        .collect::<Result<_, _>>()?;
    let sockets: Vec<_> = (0..sockets)
        .map(|_| UnixDatagram::unbound())
        .collect::<Result<_, _>>()?;
    let others = nameless()?;
    let mut facts = json!({ "file": own.len(), "pipe": 2 * ends.len(), "socket": sockets.len() });
    for (kind, open) in &others {
        facts[*kind] = open.len().into();
    }
    gate::step("open", &facts)?;
    drop((own, ends, sockets, others));
    gate::step("closed", &json!({}))?;
    gate::truth(&json!({}))
}

/// Numbers far above those in use.
const SECOND: i32 = 600;
const THIRD: i32 = 601;
const FOURTH: i32 = 700;

/// Descriptors come and go in every way there is; each step names the processes that hold them.
pub fn steps() -> Result<()> {
    let own = std::process::id();
    // What a test happens to have open is inherited.
    // SAFETY: nothing of this process is open yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
    ensure!(closed == 0, "close_range");
    let (near, far) = UnixStream::pair()?;
    gate::step("ready", &json!({ "pids": [own] }))?;

    let file = File::open("/proc/self/exe")?;
    let raw = file.as_raw_fd();
    // SAFETY: the numbers are far above those in use, and nobody else opens any.
    unsafe {
        ensure!(libc::dup(raw) >= 0, "dup");
        ensure!(libc::dup2(raw, SECOND) == SECOND, "dup2");
        ensure!(libc::dup3(raw, THIRD, libc::O_CLOEXEC) == THIRD, "dup3");
        let fourth = libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, FOURTH);
        ensure!(fourth == FOURTH, "F_DUPFD_CLOEXEC");
    }
    gate::step("dup", &json!({ "pids": [own] }))?;

    // SAFETY: this process has one thread.
    let child = match unsafe { libc::fork() } {
        0 => hold(&far),
        child => u32::try_from(child).context("fork")?,
    };
    gate::step("fork", &json!({ "pids": [own, child] }))?;

    // SAFETY: nobody uses these numbers any more.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, SECOND, THIRD, 0) };
    ensure!(closed == 0, "close_range");
    gate::step("close_range", &json!({ "pids": [own, child] }))?;

    // Inherits the first copy, not the fourth.
    let mut sleep = Command::new("sleep").arg("3600").spawn()?;
    gate::step("exec", &json!({ "pids": [own, child, sleep.id()] }))?;

    let passed = [file.as_fd(), file.as_fd(), near.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    ensure!(message.push(SendAncillaryMessage::ScmRights(&passed)), "no room");
    sendmsg(&near, &[IoSlice::new(b"x")], &mut message, SendFlags::empty())?;
    (&near).read_exact(&mut [0])?;
    gate::step("passed", &json!({ "pids": [own, child, sleep.id()] }))?;

    sleep.kill()?;
    sleep.wait()?;
    // SAFETY: the child is this process's own, and was not waited for.
    unsafe {
        libc::kill(child as i32, libc::SIGKILL);
        libc::waitpid(child as i32, std::ptr::null_mut(), 0);
    }
    gate::step("closed", &json!({ "pids": [own] }))?;
    gate::truth(&json!({}))
}

/// Keeps what it is sent until it is killed, or its parent is gone.
fn hold(socket: &UnixStream) -> ! {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    loop {
        let mut message = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0; 1];
        let got = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut message,
            RecvFlags::empty(),
        );
        for part in message.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                descriptors.for_each(std::mem::forget);
            }
        }
        let answered = got.is_ok_and(|got| got.bytes > 0) && { socket }.write_all(b"y").is_ok();
        if !answered {
            std::process::exit(0);
        }
    }
}
