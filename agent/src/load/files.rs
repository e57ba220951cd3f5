//! Which kinds of files have which file operations, learnt from one file of each kind.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use agent_ebpf::wire::FileOps;
use anyhow::{Context as _, Result, ensure};
use aya::{Ebpf, programs::RawTracePoint};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::inotify;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use super::{attach, sys};

const PROGRAM: &str = "learn_files";

/// Tells the kernel side. Without it descriptors are known by their inodes, which eventfd, epoll, timerfd, inotify and signalfd
/// have in common.
pub(super) fn learn(ebpf: &mut Ebpf) -> Result<()> {
    let program: &mut RawTracePoint = attach::program(ebpf, PROGRAM)?.try_into()?;
    program.load().with_context(|| format!("load {PROGRAM}"))?;
    let mut files = Vec::new();
    let mut failed = Vec::new();
    for kind in FileOps::ALL {
        let file = open(*kind);
        if let Err(error) = &file {
            failed.push(format!("{}: {error}", kind.as_str()));
        }
        files.push(file.ok());
    }
    // No process has a descriptor of this number.
    let number = |file: &Option<OwnedFd>| file.as_ref().map_or(u64::MAX, |file| file.as_raw_fd() as u64);
    let numbers: Vec<u64> = files.iter().map(number).collect();
    sys::run(program.fd()?.as_fd(), &numbers).with_context(|| format!("run {PROGRAM}"))?;
    program.unload()?;
    ensure!(failed.is_empty(), "cannot open {}", failed.join(", "));
    Ok(())
}

fn open(kind: FileOps) -> io::Result<OwnedFd> {
    Ok(match kind {
        FileOps::Socket => {
            let flags = SocketFlags::CLOEXEC;
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?
        }
        FileOps::Pipe => pipe_with(PipeFlags::CLOEXEC)?.0,
        FileOps::Eventfd => eventfd(0, EventfdFlags::CLOEXEC)?,
        FileOps::Epoll => epoll::create(epoll::CreateFlags::CLOEXEC)?,
        FileOps::Timerfd => timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
        // One of 128 that a user may have (fs.inotify.max_user_instances).
        FileOps::Inotify => inotify::init(inotify::CreateFlags::CLOEXEC)?,
        FileOps::Signalfd => sys::signalfd()?,
    })
}
