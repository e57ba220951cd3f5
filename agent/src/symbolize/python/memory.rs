//! What is read of a process: a little at a time, and nothing of it believed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::layout::Layout;

/// Longest name that is read, in characters.
const MAX_TEXT: u64 = 1024;
/// Largest table of lines that is read, in bytes: 64 KB are those of a function of some ten thousand lines.
const MAX_TABLE: u64 = 256 << 10;
/// `PyTypeObject.tp_name`.
const TYPE_NAME: u64 = 24;
/// `PyVarObject.ob_size`, and where the bytes of a `PyBytesObject` begin.
const SIZE: u64 = 16;
const BYTES: u64 = 32;

/// The memory of a process.
#[derive(Debug)]
pub(super) struct Memory(File);

impl Memory {
    pub(super) fn open(proc: &Path, pid: u32) -> Option<Self> {
        File::open(proc.join(pid.to_string()).join("mem")).ok().map(Self)
    }

    pub(super) fn read<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(address, &mut bytes)?;
        Some(bytes)
    }

    fn fill(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        // Page 0, and what is no user address, is not there.
        (address >= 4096 && address >> 47 == 0).then_some(())?;
        self.0.read_exact_at(bytes, address).ok()
    }

    pub(super) fn word(&self, address: u64) -> Option<u64> {
        self.read(address).map(u64::from_ne_bytes)
    }

    /// Whether an address is that of the type of code objects.
    pub(super) fn is_type_of_code(&self, address: u64) -> bool {
        let name = self.word(address.wrapping_add(TYPE_NAME));
        name.and_then(|name| self.read::<5>(name)).as_ref() == Some(b"code\0")
    }

    /// The bytes of a `PyBytesObject`.
    pub(super) fn bytes(&self, object: u64) -> Option<Vec<u8>> {
        let size = self.word(object.wrapping_add(SIZE))?;
        self.several(object.wrapping_add(BYTES), size, MAX_TABLE)
    }

    fn several(&self, address: u64, size: u64, most: u64) -> Option<Vec<u8>> {
        let size = usize::try_from(Some(size).filter(|size| *size <= most)?).ok()?;
        let mut bytes = vec![0; size];
        self.fill(address, &mut bytes)?;
        Some(bytes)
    }

    /// The text of a `str`, cut off where it is very long.
    pub(super) fn text(&self, object: u64, layout: &Layout) -> Option<String> {
        let head: [u8; 36] = self.read(object)?;
        let number = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let length = u64::from(number(16)?) | u64::from(number(20)?) << 32;
        let state = number(32)?;
        let (width, compact, ascii) = (u64::from(state >> 2 & 7), state >> 5 & 1, state >> 6 & 1);
        if compact == 0 || !matches!(width, 1 | 2 | 4) {
            return None;
        }
        let begin = if ascii == 1 { layout.ascii } else { layout.compact };
        let size = length.min(MAX_TEXT) * width;
        let bytes = self.several(object.wrapping_add(begin), size, size)?;
        let units = bytes.chunks_exact(usize::try_from(width).ok()?);
        let code = |unit: &[u8]| unit.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
        let char = |unit| char::from_u32(code(unit)).unwrap_or(char::REPLACEMENT_CHARACTER);
        Some(units.map(char).collect())
    }
}
