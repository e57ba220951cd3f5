//! The memory of other processes: read, never written, without stopping them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::Host;

/// `/proc/PID/mem`.
#[derive(Debug)]
pub struct ProcessMemory(File);

impl ProcessMemory {
    /// Fills as much of `bytes` as can be read from an address on, and says how much.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<usize> {
        // Addresses of the kernel's half are negative for the system call.
        if i64::try_from(address).is_err() {
            return Ok(0);
        }
        self.0.read_at(bytes, address)
    }
}

/// `/proc/PID/pagemap`.
#[derive(Debug)]
pub struct Pages(File);

impl Pages {
    /// Whether the page of an address is anonymous memory of the process, in memory or swapped out.
    #[must_use]
    pub fn holds(&self, address: u64) -> bool {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const FILE_OR_SHARED: u64 = 1 << 61;
        let mut entry = [0; 8];
        let Ok(8) = self.0.read_at(&mut entry, address / 4096 * 8) else {
            return false;
        };
        let entry = u64::from_ne_bytes(entry);
        entry & (PRESENT | SWAPPED) != 0 && entry & FILE_OR_SHARED == 0
    }
}

impl Host {
    /// Where the program of a process begins to run (`AT_ENTRY` of its auxiliary vector).
    pub fn entry(&self, pid: u32) -> io::Result<u64> {
        const AT_ENTRY: u64 = 9;
        let vector = self.read(&format!("proc/{pid}/auxv"), 4096)?;
        let mut pairs = vector.as_chunks::<16>().0.iter().map(|pair| {
            let word = |at: usize| {
                pair[at..]
                    .first_chunk()
                    .map_or(0, |word| u64::from_ne_bytes(*word))
            };
            (word(0), word(8))
        });
        pairs
            .find_map(|(kind, value)| (kind == AT_ENTRY).then_some(value))
            .ok_or_else(|| io::Error::other("no entry point in the auxiliary vector"))
    }

    /// Opens the memory of a process.
    pub fn memory(&self, pid: u32) -> io::Result<ProcessMemory> {
        File::open(self.path(&format!("proc/{pid}/mem"))).map(ProcessMemory)
    }

    /// Opens the list of a process's pages.
    pub fn pages(&self, pid: u32) -> io::Result<Pages> {
        File::open(self.path(&format!("proc/{pid}/pagemap"))).map(Pages)
    }
}
