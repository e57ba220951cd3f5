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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::host::damage::{Bounds, harmless};

    /// A file with the symbols of a real one packed in it, and where these are.
    fn packed(dir: &std::path::Path) -> (Vec<u8>, std::ops::Range<usize>) {
        let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
        std::fs::write(
            at("a.c"),
            "int shop_load(int x) { return x; }\nint main(void) { return shop_load(0); }\n",
        )
        .unwrap();
        let run = |words: &[&str]| {
            let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
            assert!(status.success(), "{words:?}");
        };
        run(&["gcc", "-o", &at("a"), &at("a.c")]);
        run(&[
            "objcopy",
            "-S",
            "--keep-symbol=main",
            "--keep-symbol=shop_load",
            &at("a"),
            &at("mini"),
        ]);
        // Without a checksum, so that damage is not noticed before it is unpacked.
        run(&["xz", "-k", "--check=none", &at("mini")]);
        run(&["strip", &at("a")]);
        run(&[
            "objcopy",
            &format!("--add-section=.gnu_debugdata={}", at("mini.xz")),
            &at("a"),
        ]);
        let whole = std::fs::read(at("a")).unwrap();
        let packed = std::fs::read(at("mini.xz")).unwrap();
        let begin = whole
            .windows(packed.len())
            .position(|part| part == packed)
            .unwrap();
        (whole, begin..begin + packed.len())
    }

    #[test]
    fn damaged_archives_are_unpacked_within_limits() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, archive) = packed(dir.path());
        let config = SymbolizerConfig {
            max_image_bytes: 1 << 20,
            ..SymbolizerConfig::default()
        };
        let until = || CpuTime::now() + Duration::from_secs(60);
        let unpacked = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let headers = Headers::read(&file)?;
            read(&config, &file, &headers, until())
        };
        assert!(unpacked(&whole).unwrap().is_some());
        let bounds = Bounds {
            bytes: (MAX_MEMORY as usize) << 10,
            allocations: 1_000,
        };
        // Only what is in the archive is damaged; its header and the place of its end are the least of it.
        let good = &whole[archive.clone()];
        let ends = harmless(1_500, good, &[0..24, 24..200], bounds, |damaged| {
            let mut file = whole.clone();
            file[archive.start..archive.start + damaged.len()].copy_from_slice(damaged);
            match unpacked(&file) {
                Ok(image) => {
                    assert!(image.is_none_or(|image| image.bytes <= 2 << 20));
                    true
                }
                Err(why) => {
                    assert_ne!(why, Outcome::Panic);
                    false
                }
            }
        });
        assert!(ends.refused > 1_000, "{ends:?}");
    }
}
