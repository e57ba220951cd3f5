//! `.gnu_debugdata`: the symbols that a distribution took out of a file, packed and put back (Fedora's "minidebuginfo").

use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};

use lzma_rust2::XzReader;
use rustix::fs::{MemfdFlags, memfd_create};

use super::unpack::{Part, copy};
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;
use crate::symbolize::image::Image;
use crate::symbolize::{Outcome, SymbolizerConfig};

/// Largest packed section; that of Fedora's LLVM, a library of 130 MB, is below 2 MB.
const MAX_PACKED: u64 = 16 << 20;
/// What unpacking may take, in KiB. `xz -6`, which the distributions' tools use, needs 9 MiB.
const MAX_MEMORY: u32 = 40 << 10;

/// The symbols packed in a file, `None` where there are none.
pub(super) fn read(
    config: &SymbolizerConfig,
    file: &File,
    headers: &Headers,
    until: CpuTime,
) -> Result<Option<Image>, Outcome> {
    let Some((at, left)) = headers.range(".gnu_debugdata").filter(|(_, size)| *size > 0) else {
        return Ok(None);
    };
    if left > MAX_PACKED {
        return Err(Outcome::TooLarge);
    }
    let out: File = memfd_create("tieback-symbols", MemfdFlags::CLOEXEC)
        .map_err(|_| Outcome::ElfError)?
        .into();
    let unpacked = catch_unwind(AssertUnwindSafe(|| {
        let packed = BufReader::new(Part { file, at, left });
        let reader = XzReader::new_mem_limit(packed, false, MAX_MEMORY);
        copy(reader, &out, 0, config.max_image_bytes, || CpuTime::now() > until)
    }));
    let size = unpacked.unwrap_or(Err(Outcome::Panic))?;
    // A copy of it, too: it is as foreign as the file that it came from.
    Headers::read(&out)?
        .copy(&out, size, config.max_image_bytes, until)
        .map(Some)
}
