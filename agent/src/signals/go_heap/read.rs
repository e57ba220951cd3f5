//! Reads the buckets.

use std::time::{Duration, Instant};

use super::layout::{KNOWN, minor};
use super::{Bucket, GoHeap, Layout, Refused};
use crate::host::{Host, ProcessMemory};

/// Buckets at most: a large program has some ten thousand.
const MAX_BUCKETS: usize = 100_000;
/// Time for one profile at most; a bucket takes about a microsecond.
const MAX_TIME: Duration = Duration::from_millis(200);
/// Frames of a stack at most (`GODEBUG=profstackdepth`).
const MAX_STACK: usize = 1024;
/// Frames of all stacks together at most (16 MiB): two hundred a bucket of a large program.
const MAX_FRAMES: usize = 2 << 20;
/// Frames that are read at once with their bucket.
const USUAL_STACK: usize = 32;

/// Words of `bucket`: next, allnext, typ, hash, size, nstk; its stack follows, and then `memRecord`.
const HEAD: usize = 6;
/// Words of `memRecord`: the published counts, and those of three cycles to come. Up to Go 1.26 these are allocs, frees,
/// `alloc_bytes` and `free_bytes`; since Go 1.27 the bytes are left out, being the bucket's size times the counts.
const RECORD: usize = 16;
const RECORD_127: usize = 8;
/// `memProfile`.
const KIND: u64 = 1;

impl Layout {
    /// Reads the profile of a process that runs this executable.
    ///
    /// # Errors
    ///
    /// See [`Refused`].
    pub fn read(&self, host: &Host, pid: u32) -> Result<GoHeap, Refused> {
        let memory = host.memory(pid)?;
        let bias = host.entry(pid)?.wrapping_sub(self.entry);
        let at = |address: u64| address.wrapping_add(bias);
        let began_ns = match self.began {
            0 => 0,
            began => word(&memory, at(began))?,
        };
        if self.began != 0 && began_ns == 0 {
            return Err(Refused::Early);
        }
        let version = string(&memory, at(self.version))?;
        let minor = match minor(&version) {
            Some(minor) if KNOWN.contains(&minor) && self.cycle != 0 => minor,
            _ => return Err(Refused::Version(version)),
        };
        let record = if minor < 27 { RECORD } else { RECORD_127 };
        let rate = word(&memory, at(self.rate))?;
        let head = word(&memory, at(self.buckets))?;
        if self.left_out != 0 && word(&memory, at(self.left_out))? & 0xff != 0 {
            return Err(Refused::NotLinked);
        }
        if rate == 0 || i64::try_from(rate).is_err() {
            return Err(Refused::Off);
        }
        let cycle = || word(&memory, at(self.cycle)).map(|word| word & 0xffff_ffff);
        let before = cycle()?;
        let mut heap = records(&memory, record, head, before)?;
        if cycle()? >> 1 != before >> 1 {
            // A collection ended meanwhile and moved counts: once more, with what is true now.
            heap = records(&memory, record, word(&memory, at(self.buckets))?, cycle()?)?;
        }
        heap.version = version;
        heap.rate = rate;
        heap.began_ns = began_ns;
        Ok(heap)
    }
}

/// All buckets from the newest on, as `runtime.MemProfile` would say them in this cycle (above its lowest bit, which says that the
/// cycle's counts are published).
fn records(memory: &ProcessMemory, record: usize, head: u64, cycle: u64) -> Result<GoHeap, Refused> {
    let began = Instant::now();
    let mut heap = GoHeap {
        complete: true,
        ..GoHeap::default()
    };
    let mut futures = Vec::new();
    let (mut next, mut frames) = (head, 0);
    while next != 0 {
        if heap.buckets.len() >= MAX_BUCKETS || frames > MAX_FRAMES || began.elapsed() > MAX_TIME {
            heap.complete = false;
            break;
        }
        let (after, size, stack, counts) = bucket(memory, record, next)?;
        frames += stack.len();
        let counts = |part: usize| counts[part];
        let mut published = counts(0);
        if cycle & 1 == 0 {
            add(&mut published, counts(1 + (cycle >> 1) as usize % 3));
        }
        let mut future = [0; 4];
        for part in 1..4 {
            add(&mut future, counts(part));
        }
        let newer = future[0].wrapping_add(counts(0)[0]).wrapping_sub(published[0]);
        futures.push(future);
        heap.buckets.push(Bucket {
            address: next,
            size,
            newer,
            ..made(stack, published)
        });
        next = after;
    }
    if heap
        .buckets
        .iter()
        .all(|bucket| bucket.allocs == 0 && bucket.frees == 0)
    {
        // Nothing was collected yet: then all counts are taken as they are.
        for (bucket, future) in heap.buckets.iter_mut().zip(futures) {
            *bucket = Bucket {
                address: bucket.address,
                size: bucket.size,
                ..made(std::mem::take(&mut bucket.stack), future)
            };
        }
    }
    Ok(heap)
}

fn made(stack: Vec<u64>, [allocs, frees, alloc_bytes, free_bytes]: [u64; 4]) -> Bucket {
    Bucket {
        stack,
        allocs,
        frees,
        alloc_bytes,
        free_bytes,
        ..Bucket::default()
    }
}

fn add(sum: &mut [u64; 4], more: [u64; 4]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(more);
    }
}

/// Address of the next bucket, the size, the stack, and four groups of counts.
type Found = (u64, u64, Vec<u64>, [[u64; 4]; 4]);

/// Reads one bucket.
fn bucket(memory: &ProcessMemory, record: usize, address: u64) -> Result<Found, Refused> {
    let early = Refused::Malformed("a bucket ends early");
    let mut words = words(memory, address, HEAD + USUAL_STACK + record)?;
    let Some([_, next, kind, _, size, frames]) = words.first_chunk::<HEAD>().copied() else {
        return Err(early);
    };
    let frames = usize::try_from(frames).unwrap_or(usize::MAX);
    if kind != KIND || frames > MAX_STACK {
        return Err(Refused::Malformed("a bucket of another kind"));
    }
    let len = HEAD + frames + record;
    if words.len() < len {
        words = self::words(memory, address, len)?;
    }
    let Some((stack, counts)) = words.get(HEAD..len).map(|rest| rest.split_at(frames)) else {
        return Err(early);
    };
    let each = record / 4;
    let group = |at: usize| match counts[each * at..each * (at + 1)] {
        [allocs, frees, alloc_bytes, free_bytes] => [allocs, frees, alloc_bytes, free_bytes],
        [allocs, frees] => [allocs, frees, allocs.wrapping_mul(size), frees.wrapping_mul(size)],
        _ => [0; 4],
    };
    Ok((next, size, stack.to_vec(), std::array::from_fn(group)))
}

/// As many words as there are from an address on.
fn words(memory: &ProcessMemory, address: u64, count: usize) -> Result<Vec<u64>, Refused> {
    let mut bytes = vec![0; 8 * count];
    let read = memory.read(address, &mut bytes)?;
    let words = bytes[..read].as_chunks().0.iter();
    Ok(words.map(|word| u64::from_le_bytes(*word)).collect())
}

fn word(memory: &ProcessMemory, address: u64) -> Result<u64, Refused> {
    let words = words(memory, address, 1)?;
    words
        .first()
        .copied()
        .ok_or(Refused::Malformed("a variable is missing"))
}

/// A string of Go's: address and length.
fn string(memory: &ProcessMemory, address: u64) -> Result<String, Refused> {
    let mut bytes = vec![0; usize::try_from(word(memory, address + 8)?.min(64)).unwrap_or(0)];
    let read = memory.read(word(memory, address)?, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}
