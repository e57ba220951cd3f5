//! Compressed sections, unpacked within limits.
//!
//! What a section says of its size is a claim: a few kilobytes can become gigabytes. So the copy holds them unpacked, no
//! larger than they said, and no reader ever unpacks anything.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use super::super::Outcome;
use crate::symbolize::cpu_time::CpuTime;

/// `Elf64_Chdr`: kind, unused, size, alignment.
const HEADER: u64 = 24;
const ZLIB: u32 = 1;
const ZSTD: u32 = 2;
const CHUNK: usize = 64 << 10;

/// Writes a compressed section of `file` to `out` at `to`; the answer is its size there. The size that the section
/// claims is the limit, which the caller has checked.
pub(in super::super) fn unpack(
    file: &File,
    (offset, size): (u64, u64),
    out: &File,
    to: u64,
    until: CpuTime,
) -> Result<u64, Outcome> {
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, offset)
        .map_err(|_| Outcome::ElfError)?;
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let claimed = claimed(&header);
    let packed = Part {
        file,
        at: offset.saturating_add(HEADER),
        left: size.saturating_sub(HEADER),
    };
    let packed = BufReader::with_capacity(CHUNK, packed);
    let late = || CpuTime::now() > until;
    let written = match kind {
        ZLIB => copy(flate2::bufread::ZlibDecoder::new(packed), out, to, claimed, late)?,
        ZSTD => {
            let reader = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|_| Outcome::ElfError)?;
            copy(reader, out, to, claimed, late)?
        }
        _ => return Err(Outcome::ElfError),
    };
    // A reader would take what is missing for zeros.
    if written == claimed {
        Ok(written)
    } else {
        Err(Outcome::ElfError)
    }
}

/// The size that a compressed section says it has when unpacked.
pub(in super::super) fn claimed(header: &[u8; HEADER as usize]) -> u64 {
    let mut size = [0; 8];
    size.copy_from_slice(&header[8..16]);
    u64::from_le_bytes(size)
}

/// Copies a reader that nobody trusts: to `limit` bytes and until it is late, else it is an error.
pub(super) fn copy(
    mut reader: impl Read,
    out: &File,
    to: u64,
    limit: u64,
    late: impl Fn() -> bool,
) -> Result<u64, Outcome> {
    let mut buffer = vec![0; CHUNK];
    let mut written = 0u64;
    loop {
        let got = match reader.read(&mut buffer) {
            Ok(0) => return Ok(written),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(Outcome::ElfError),
        };
        if got as u64 > limit - written {
            return Err(Outcome::TooLarge);
        }
        if late() {
            return Err(Outcome::TooSlow);
        }
        out.write_all_at(&buffer[..got], to.saturating_add(written))
            .map_err(|_| Outcome::ElfError)?;
        written += got as u64;
    }
}

/// A part of a file, read by position.
pub(super) struct Part<'a> {
    pub(super) file: &'a File,
    pub(super) at: u64,
    pub(super) left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::host::damage::{Bounds, harmless};

    fn section(kind: u32, claimed: u64, packed: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&kind.to_le_bytes()).unwrap();
        file.write_all(&[0; 4]).unwrap();
        file.write_all(&claimed.to_le_bytes()).unwrap();
        file.write_all(&[0; 8]).unwrap();
        file.write_all(packed).unwrap();
        file
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn run(kind: u32, claimed: u64, packed: &[u8], until: CpuTime) -> (Result<u64, Outcome>, u64) {
        let out = tempfile::tempfile().unwrap();
        let file = section(kind, claimed, packed);
        let size = file.metadata().unwrap().len();
        let result = unpack(&file, (0, size), &out, 100, until);
        (result, out.metadata().unwrap().len())
    }

    #[test]
    fn a_section_is_as_large_as_it_said() {
        let soon = CpuTime::now() + Duration::from_secs(60);
        let packed = zlib(&[7; 300_000]);
        assert_eq!(run(ZLIB, 300_000, &packed, soon), (Ok(300_000), 300_100));
        // Said less: a bomb stops at what it said. Said more: the rest would be zeros.
        let (result, written) = run(ZLIB, 70_000, &packed, soon);
        assert_eq!(result, Err(Outcome::TooLarge));
        assert!(written <= 70_100, "{written}");
        assert_eq!(run(ZLIB, 300_001, &packed, soon).0, Err(Outcome::ElfError));
        assert_eq!(
            run(ZLIB, 300_000, &packed[..packed.len() / 2], soon).0,
            Err(Outcome::ElfError)
        );
        assert_eq!(run(9, 300_000, &packed, soon).0, Err(Outcome::ElfError));
        let past = CpuTime::now();
        assert_eq!(run(ZLIB, 300_000, &packed, past).0, Err(Outcome::TooSlow));
    }

    #[test]
    fn zstd_as_well() {
        let soon = CpuTime::now() + Duration::from_secs(60);
        let packed =
            ruzstd::encoding::compress_to_vec(&[5; 300_000][..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(run(ZSTD, 300_000, &packed, soon), (Ok(300_000), 300_100));
        assert_eq!(run(ZSTD, 1000, &packed, soon).0, Err(Outcome::TooLarge));
        assert_eq!(run(ZSTD, 300_000, &packed[..10], soon).0, Err(Outcome::ElfError));
    }

    #[test]
    fn damaged_sections_are_no_larger_than_they_said() {
        // Text as a table of names has it: both kinds of packing have much to say about it.
        let text: Vec<u8> = (0..3_000u32)
            .flat_map(|n| format!("_ZN4shop{}load{}Ev\0", n % 7, n * n).into_bytes())
            .collect();
        let zstd = ruzstd::encoding::compress_to_vec(&*text, ruzstd::encoding::CompressionLevel::Fastest);
        for (kind, packed) in [(ZLIB, zlib(&text)), (ZSTD, zstd)] {
            let claimed = text.len() as u64;
            // What the two need to unpack anything, and two copies of the text.
            let bounds = Bounds {
                bytes: (1 << 20) + 2 * text.len(),
                allocations: 1_000,
            };
            let soon = CpuTime::now() + Duration::from_secs(60);
            assert_eq!(run(kind, claimed, &packed, soon).0, Ok(claimed));
            harmless(1_000, &packed, &[0..4, 4..16], bounds, |damaged| {
                let (result, written) = run(kind, claimed, damaged, soon);
                assert!(written <= 100 + claimed, "{written}");
                result.is_ok()
            });
        }
    }
}
