//! The programs that look at connections and listening sockets, run whenever the agent wants to know them.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::{io, slice};

use agent_ebpf::wire::{CONN_SAMPLES, Conn, ConnSample, ListenSample};
use anyhow::{Context as _, Result};
use aya::{Ebpf, programs::RawTracePoint};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{attach, maps, maps::Plain, sys};

/// A program and what it writes.
pub(super) struct Sampler {
    program: OwnedFd,
    written: Mapped,
}

/// A program's map, mapped: how many records it wrote, and the records.
struct Mapped {
    at: NonNull<u64>,
    len: usize,
}

// SAFETY: the memory belongs to the process, not to a thread.
unsafe impl Send for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference to it is left.
        let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
    }
}

impl Mapped {
    fn new(ebpf: &Ebpf, map: &str) -> Result<Self> {
        let data = ebpf.map(map).and_then(maps::data);
        let data = data.with_context(|| format!("the object has no map {map}"))?;
        let len = data.info()?.value_size() as usize;
        // SAFETY: a new mapping that overlaps nothing.
        let at = unsafe {
            mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                data.fd(),
                0,
            )
        }
        .with_context(|| format!("map {map}"))?;
        let at = NonNull::new(at.cast()).context("mapped at 0")?;
        Ok(Self { at, len })
    }

    /// How many records the last run had to write.
    fn count(&self) -> u64 {
        // SAFETY: it is mapped, and the program writes only while it is run.
        unsafe { self.at.as_ptr().read_volatile() }
    }

    /// The first records.
    ///
    /// # Safety
    /// They are what the program writes, every bit pattern is a valid one, and it is not run meanwhile.
    unsafe fn records<T: Copy>(&self, count: u64) -> &[T] {
        let most = (self.len - size_of::<u64>()) / size_of::<T>();
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(most);
        // SAFETY: inside of the mapping; the caller's promise.
        unsafe { slice::from_raw_parts(self.at.as_ptr().add(1).cast(), count) }
    }

    /// Writes the first word of each of the first records.
    fn name<T>(&mut self, words: &[u64]) {
        let most = (self.len - size_of::<u64>()) / size_of::<T>();
        for (at, word) in words.iter().take(most).enumerate() {
            // SAFETY: inside of the mapping, which nobody else uses.
            unsafe {
                self.at
                    .as_ptr()
                    .add(1)
                    .cast::<T>()
                    .add(at)
                    .cast::<u64>()
                    .write(*word);
            };
        }
    }
}

impl Sampler {
    pub(super) fn new(ebpf: &mut Ebpf, program: &str, map: &str) -> Result<Self> {
        let written = Mapped::new(ebpf, map)?;
        let program: &mut RawTracePoint = attach::program(ebpf, program)?.try_into()?;
        let sampler = Self {
            program: program.fd()?.as_fd().try_clone_to_owned()?,
            written,
        };
        // Once, so that a host where it cannot be run is known as such.
        sampler.run(0)?;
        Ok(sampler)
    }

    fn run(&self, count: usize) -> io::Result<u64> {
        sys::run(self.program.as_fd(), &[count as u64, 0])?;
        Ok(self.written.count())
    }

    /// Hands out a record of each open connection, as `pool_sample` writes them, some at a time.
    ///
    /// The sockets are listed by the map's own means: a program that visits all of it takes ten times as long where it is
    /// empty, and visits all of it again for each part of the connections that it has the time for.
    pub(super) fn connections(
        &mut self,
        conns: BorrowedFd<'_>,
        mut some: impl FnMut(&[ConnSample]),
    ) -> Result<()> {
        self.each::<ConnSample>(conns, |sampler, count| {
            let count = sampler.run(count)?;
            // SAFETY: plain numbers, written by `pool_sample`.
            some(unsafe { sampler.written.records(count) });
            Ok(())
        })
    }

    /// Has `conn_settle` add what each connection moved to the totals.
    pub(super) fn settle(&mut self, conns: BorrowedFd<'_>) -> Result<()> {
        self.each::<u64>(conns, |sampler, count| sampler.run(count).map(drop))
    }

    /// Names each socket to the program, as many at a time as it takes.
    fn each<T>(
        &mut self,
        conns: BorrowedFd<'_>,
        mut run: impl FnMut(&Self, usize) -> io::Result<()>,
    ) -> Result<()> {
        sys::lookup_batches(conns, |sockets: &[u64], _: &[Plain<Conn>]| {
            for sockets in sockets.chunks(CONN_SAMPLES) {
                self.written.name::<T>(sockets);
                run(self, sockets.len())?;
            }
            Ok(())
        })
        .context("look at connections")
    }

    /// Adds a record of each listening socket, as `listen_sample` writes them.
    pub(super) fn listeners(&self, samples: &mut Vec<ListenSample>) -> Result<()> {
        let count = self.run(0).context("look at listening sockets")?;
        // SAFETY: plain numbers, written by `listen_sample`.
        samples.extend_from_slice(unsafe { self.written.records(count) });
        Ok(())
    }
}
