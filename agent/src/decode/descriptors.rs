//! Descriptors as later stages see them: how many each process has, and what became of those whose opening was sampled.

pub use agent_ebpf::wire::WATCHED;
use agent_ebpf::wire::{Direction, FD_UNVISITED, FdKind, FdProcess, OpenerFd, OpenerKey, SLOT_NONE, UnixEnd};
use anyhow::{Context as _, Result};
use aya::maps::HashMap as BpfMap;

use super::model::{SlotId, UnixSocket};
use crate::load::{Loaded, Plain};

/// The descriptors of a process that has some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessFds {
    /// Process.
    pub pid: u32,
    /// Its program image.
    pub slot: SlotId,
    /// Open descriptors.
    pub open: u64,
    /// Soft limit.
    pub limit: u64,
}

/// When a process will reach its limit of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdForecast {
    /// Nanoseconds until then, if the growth goes on.
    pub left_ns: u64,
    /// Nanoseconds from one more descriptor to the next.
    pub each_ns: u64,
    /// Open now.
    pub open: u64,
    /// The limit.
    pub limit: u64,
    /// The process.
    pub pid: u32,
}

impl FdForecast {
    /// The one that comes true first.
    #[must_use]
    pub fn first(a: Option<Self>, b: Option<Self>) -> Option<Self> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.left_ns < a.left_ns { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

/// An open descriptor whose opening was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Process.
    pub pid: u32,
    /// Its number.
    pub fd: u32,
    /// Whose.
    pub slot: SlotId,
    /// Id of the stack.
    pub id: u64,
    /// When it was opened, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// What it refers to.
    pub kind: FdKind,
    /// One of how many openings was sampled.
    pub every: u32,
    /// Ticks that it has outlived.
    pub ticks: u32,
}

/// What `fd_harvest` wrote: processes, and connections over Unix sockets.
pub(super) fn visited(bytes: &[u8]) -> (Vec<ProcessFds>, Vec<UnixSocket>) {
    let (mut processes, mut sockets) = (Vec::new(), Vec::new());
    for record in bytes.chunks_exact(size_of::<FdProcess>()) {
        // SAFETY: a plain record whose every bit pattern is valid, and as long as it is to be.
        let process: FdProcess = unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) };
        if process.pid != 0 {
            processes.push(ProcessFds {
                pid: process.pid,
                slot: SlotId(process.slot),
                open: process.open.into(),
                limit: process.limit,
            });
            continue;
        }
        // SAFETY: likewise, and of the same length.
        let end: UnixEnd = unsafe { std::ptr::read_unaligned(record.as_ptr().cast()) };
        if let Some(direction) = Direction::from_index(end.direction) {
            sockets.push(UnixSocket {
                id: end.socket,
                inode: end.inode,
                peer: end.peer,
                slot: SlotId(end.slot),
                direction,
                client: (end.client != SLOT_NONE).then_some(SlotId(end.client)),
            });
        }
    }
    (processes, sockets)
}

/// What became of a descriptor by the harvest `round`; `None` while it is not known, or when it was closed.
fn fate(key: &OpenerKey, known: &OpenerFd, round: u32) -> (bool, Option<Sampled>) {
    // Opened after the harvest began, which may have come past already.
    if known.round >= round {
        return (true, None);
    }
    let kind = (known.kind != FD_UNVISITED)
        .then(|| FdKind::from_index(known.kind))
        .flatten();
    match kind {
        Some(kind) if known.seen == round => {
            let sampled = Sampled {
                pid: key.pid,
                fd: key.fd,
                slot: SlotId(known.slot),
                id: known.id,
                at_ns: known.at,
                kind,
                every: known.every.max(1),
                ticks: known.seen - known.round - 1,
            };
            (true, Some(sampled))
        }
        _ => (false, None),
    }
}

/// Those still open after the last harvest; the kernel side forgets the others.
pub fn sampled(loaded: &mut Loaded) -> Result<Vec<Sampled>> {
    let round = loaded.tuning().round;
    let map = loaded.maps().map_mut("OPENER_FDS");
    let mut map: BpfMap<_, Plain<OpenerKey>, Plain<OpenerFd>> =
        BpfMap::try_from(map.context("the object has no map OPENER_FDS")?)?;
    let (mut open, mut gone) = (Vec::new(), Vec::new());
    for entry in &map {
        let (Plain(key), Plain(known)) = entry?;
        let (stays, sampled) = fate(&key, &known, round);
        open.extend(sampled);
        if !stays {
            gone.push(key);
        }
    }
    for key in gone {
        // Its process may have opened another one under the number since, which is then not sampled.
        let _gone = map.remove(&Plain(key));
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_open_while_each_harvest_finds_it() {
        let key = OpenerKey { pid: 7, fd: 3 };
        let known = |round, seen| OpenerFd {
            file: 1,
            id: 2,
            at: 5,
            slot: 9,
            round,
            seen,
            every: 4,
            kind: FdKind::Pipe as u32,
            pad: 0,
        };
        let ticks = |round, seen, now| fate(&key, &known(round, seen), now).1.map(|fd| fd.ticks);
        assert_eq!(ticks(10, 11, 11), Some(0));
        assert_eq!(ticks(10, 14, 14), Some(3));
        assert_eq!(fate(&key, &known(10, 13), 14), (false, None), "closed");
        assert_eq!(fate(&key, &known(14, 0), 14), (true, None), "too new to say");
    }

    #[test]
    fn the_forecast_of_a_service_is_that_of_its_first_process() {
        let at = |left_ns| {
            Some(FdForecast {
                left_ns,
                each_ns: 1,
                open: 1,
                limit: 2,
                pid: 3,
            })
        };
        assert_eq!(FdForecast::first(at(5), at(4)), at(4));
        assert_eq!(FdForecast::first(at(4), None), at(4));
        assert_eq!(FdForecast::first(None, None), None);
    }
}
