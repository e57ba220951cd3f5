//! The programs that sample open connections and listening sockets, run whenever the agent wants to know them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr::{self, NonNull};

use agent_ebpf::wire::{CONN_SAMPLES, ConnPart, ConnSample, ListenSample};
use anyhow::{Context as _, Result};
use aya::{Ebpf, programs::RawTracePoint};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{attach, maps, sys};

/// Parts are not made smaller when there are so many: it is far more than all connections that the kernel side knows need.
const MAX_PARTS: u64 = 256;
/// Connections for which a part is meant; there is room for some more.
const PER_PART: u64 = CONN_SAMPLES as u64 * 7 / 8;

/// A program and what it writes.
pub(super) struct Sampler {
    program: OwnedFd,
    written: Mapped,
    /// Parts in which all connections are read.
    parts: u64,
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
                ProtFlags::READ,
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

    /// Adds the first records to `samples`.
    ///
    /// # Safety
    /// They are what the program writes, and every bit pattern is a valid one.
    unsafe fn copy<T: Copy>(&self, count: usize, samples: &mut Vec<T>) {
        let most = (self.len - size_of::<u64>()) / size_of::<T>();
        let count = count.min(most);
        samples.reserve(count);
        // SAFETY: as in `count`; the caller's promise; there is room for that many.
        unsafe {
            let from = self.at.as_ptr().add(1).cast::<T>();
            ptr::copy_nonoverlapping(from, samples.as_mut_ptr().add(samples.len()), count);
            samples.set_len(samples.len() + count);
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
            parts: 1,
        };
        // Once, so that a host where it cannot be run is known as such.
        sampler.run([0, 1])?;
        Ok(sampler)
    }

    fn run(&self, arguments: [u64; 2]) -> Result<u64> {
        sys::run(self.program.as_fd(), arguments).context("run the program")?;
        Ok(self.written.count())
    }

    /// Adds a record of each open connection, as `pool_sample` writes them, and returns how many were left out.
    pub(super) fn connections(&mut self, samples: &mut Vec<ConnSample>) -> Result<u64> {
        let (mut found, mut left_out) = (0, 0);
        let of = self.parts;
        let mut parts: Vec<ConnPart> = (0..of).map(|index| ConnPart { index, of }).collect();
        while let Some(part) = parts.pop() {
            let count = self.run([part.index, part.of])?;
            let over = count.saturating_sub(CONN_SAMPLES as u64);
            if over > 0 && part.of < MAX_PARTS {
                parts.extend(halves(part));
                continue;
            }
            // SAFETY: plain numbers, written by `pool_sample`.
            unsafe { self.written.copy((count - over) as usize, samples) };
            found += count;
            left_out += over;
        }
        self.parts = found.div_ceil(PER_PART).clamp(1, MAX_PARTS);
        Ok(left_out)
    }

    /// Adds a record of each listening socket, as `listen_sample` writes them.
    pub(super) fn listeners(&self, samples: &mut Vec<ListenSample>) -> Result<()> {
        let count = self.run([0, 1])?;
        // SAFETY: plain numbers, written by `listen_sample`.
        unsafe { self.written.copy(count as usize, samples) };
        Ok(())
    }
}

fn halves(part: ConnPart) -> [ConnPart; 2] {
    let of = part.of * 2;
    [0, 1].map(|half| ConnPart {
        index: part.index * 2 + half,
        of,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses as the allocator of sockets gives them out.
    fn sockets() -> impl Iterator<Item = u64> {
        (0..20_000).map(|i| 0xffff_8880_1234_0000 + i * 2432)
    }

    #[test]
    fn each_socket_is_in_one_part_and_one_half_of_it() {
        for of in [1, 2, 3, 19, MAX_PARTS] {
            let mut sizes = vec![0u64; of as usize];
            for socket in sockets() {
                let parts = || (0..of).map(|index| ConnPart { index, of });
                let held: Vec<_> = parts().filter(|part| part.holds(socket)).collect();
                assert_eq!(held.len(), 1, "{socket:#x} in {of} parts");
                sizes[held[0].index as usize] += 1;
                let split: Vec<_> = parts()
                    .flat_map(halves)
                    .filter(|part| part.holds(socket))
                    .collect();
                assert!(split.len() == 1 && halves(held[0]).contains(&split[0]));
            }
            let mean = 20_000 / of;
            assert!(
                sizes.iter().all(|size| size.abs_diff(mean) <= mean / 8 + 5),
                "{sizes:?}"
            );
        }
    }
}
