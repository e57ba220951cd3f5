//! `.gnu_debuglink`: the name of a debug file and the checksum of its contents.

use std::fs::File;
use std::io::Read;

use super::section;
use crate::symbolize::Outcome;
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;

/// Largest file whose contents are compared: all of it has to be read.
const MOST_COMPARED: u64 = 512 << 20;

/// What a file says about its debug file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// A name in a directory, never a path.
    pub(super) name: String,
    checksum: u32,
}

impl Link {
    pub(super) fn read(file: &File, headers: &Headers) -> Option<Self> {
        Self::parse(&section(file, headers, ".gnu_debuglink", 512)?)
    }

    /// The name, zeros up to a multiple of four, the checksum.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        if name.is_empty() || name.len() > 255 || name == "." || name == ".." || name.contains('/') {
            return None;
        }
        let at = (end + 1).next_multiple_of(4);
        let checksum = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(Self {
            name: name.to_owned(),
            checksum: u32::from_le_bytes(checksum),
        })
    }

    /// Whether the contents of a file are the ones meant.
    pub(super) fn is(&self, mut file: &File, until: CpuTime) -> Result<bool, Outcome> {
        if file.metadata().map_err(|_| Outcome::ElfError)?.len() > MOST_COMPARED {
            return Err(Outcome::TooLarge);
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let got = file.read(&mut buffer).map_err(|_| Outcome::ElfError)?;
            if got == 0 {
                return Ok(hasher.finalize() == self.checksum);
            }
            if CpuTime::now() > until {
                return Err(Outcome::TooSlow);
            }
            hasher.update(&buffer[..got]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::damage::{Bounds, harmless};

    fn name(bytes: &[u8]) -> Option<String> {
        Link::parse(bytes).map(|link| link.name)
    }

    #[test]
    fn a_link_is_a_name_in_a_directory() {
        let link = Link::parse(b"shop.debug\0\0\x01\x02\x03\x04").unwrap();
        assert_eq!((&*link.name, link.checksum), ("shop.debug", 0x0403_0201));
        assert_eq!(name(b"abc\0\x01\x02\x03\x04"), Some("abc".into()));
        for bad in [
            &b"/etc/shadow\0\x01\x02\x03\x04"[..],
            b"../x.debug\0\0\x01\x02\x03\x04",
            b"..\0\0\x01\x02\x03\x04",
            b"\0\0\0\0\x01\x02\x03\x04",
            b"abc\0\x01\x02\x03",
            b"abc",
            b"a\xffc\0\x01\x02\x03\x04",
            b"",
        ] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
        let mut long = vec![b'x'; 256];
        long.extend([0; 8]);
        assert_eq!(name(&long), None);
    }

    #[test]
    fn damaged_links_name_no_path() {
        let bounds = Bounds {
            bytes: 100,
            allocations: 2,
        };
        let good = b"shop.debug\0\0\x01\x02\x03\x04/../";
        harmless(5_000, good, &[], bounds, |damaged| {
            let name = name(damaged);
            assert!(
                name.iter().all(|name| !name.contains('/') && name != ".."),
                "{name:?}"
            );
            name.is_some()
        })
        .both_often();
    }
}
