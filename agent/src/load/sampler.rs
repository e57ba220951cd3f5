//! The program that samples open connections, run whenever the agent wants to know them.

use std::os::fd::{AsFd as _, OwnedFd};
use std::ptr::{self, NonNull};

use agent_ebpf::wire::{CONN_SAMPLES, ConnPart, ConnSample, ConnSamples};
use anyhow::{Context as _, Result};
use aya::{Ebpf, programs::RawTracePoint};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{attach, maps, sys};

/// Parts are not made smaller when there are so many: it is far more than all connections that the kernel side knows need.
const MAX_PARTS: u64 = 256;
/// Connections for which a part is meant; there is room for some more.
const PER_PART: u64 = CONN_SAMPLES as u64 * 7 / 8;

/// The program and what it writes.
pub(super) struct Sampler {
    program: OwnedFd,
    written: Mapped,
    /// Parts in which all connections are read.
    parts: u64,
}

/// The program's map, mapped.
struct Mapped(NonNull<ConnSamples>);

// SAFETY: the memory belongs to the process, not to a thread.
unsafe impl Send for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and no reference to it is left.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), size_of::<ConnSamples>()) };
    }
}

impl Mapped {
    fn new(ebpf: &Ebpf, map: &str) -> Result<Self> {
        let data = ebpf.map(map).and_then(maps::data);
        let data = data.with_context(|| format!("the object has no map {map}"))?;
        // SAFETY: a new mapping that overlaps nothing.
        let at = unsafe {
            mmap(
                ptr::null_mut(),
                size_of::<ConnSamples>(),
                ProtFlags::READ,
                MapFlags::SHARED,
                data.fd(),
                0,
            )
        }
        .with_context(|| format!("map {map}"))?;
        Ok(Self(NonNull::new(at.cast()).context("mapped at 0")?))
    }

    /// How many connections the last run found.
    fn count(&self) -> u64 {
        // SAFETY: it is mapped, and the program writes only while it is run.
        unsafe { (&raw const (*self.0.as_ptr()).count).read_volatile() }
    }

    fn copy(&self, count: usize, samples: &mut Vec<ConnSample>) {
        let count = count.min(CONN_SAMPLES);
        samples.reserve(count);
        // SAFETY: as in `count`; every bit pattern is a valid record; there is room for that many.
        unsafe {
            let from = (&raw const (*self.0.as_ptr()).samples).cast::<ConnSample>();
            ptr::copy_nonoverlapping(from, samples.as_mut_ptr().add(samples.len()), count);
            samples.set_len(samples.len() + count);
        }
    }
}

impl Sampler {
    pub(super) fn new(ebpf: &mut Ebpf, program: &str, map: &str) -> Result<Self> {
        let written = Mapped::new(ebpf, map)?;
        let program: &mut RawTracePoint = attach::program(ebpf, program)?.try_into()?;
        let mut sampler = Self {
            program: program.fd()?.as_fd().try_clone_to_owned()?,
            written,
            parts: 1,
        };
        // Once, so that a host where it cannot be run is known as such.
        sampler.read(&mut Vec::new())?;
        Ok(sampler)
    }

    /// Adds a record of each open connection and returns how many were left out.
    pub(super) fn read(&mut self, samples: &mut Vec<ConnSample>) -> Result<u64> {
        let (mut found, mut left_out) = (0, 0);
        let of = self.parts;
        let mut parts: Vec<ConnPart> = (0..of).map(|index| ConnPart { index, of }).collect();
        while let Some(part) = parts.pop() {
            sys::run(self.program.as_fd(), [part.index, part.of]).context("run pool_sample")?;
            let count = self.written.count();
            let over = count.saturating_sub(CONN_SAMPLES as u64);
            if over > 0 && part.of < MAX_PARTS {
                parts.extend(halves(part));
                continue;
            }
            self.written.copy((count - over) as usize, samples);
            found += count;
            left_out += over;
        }
        self.parts = found.div_ceil(PER_PART).clamp(1, MAX_PARTS);
        Ok(left_out)
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
