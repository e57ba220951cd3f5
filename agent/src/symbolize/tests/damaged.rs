//! Headers of files made to do harm, and what is copied of such files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use super::separate::Built;
use crate::host::damage::{Bounds, harmless};
use crate::symbolize::Outcome;
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;

/// Bytes of a copy at most.
const MOST: u64 = 64 << 10;

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn late() -> CpuTime {
    CpuTime::now() + Duration::from_secs(60)
}

#[test]
fn damaged_headers_cost_no_more_than_the_file() {
    let built = Built::new(&["-gz=zlib"]);
    let whole = std::fs::read(&built.whole).unwrap();
    let table = u64::from_le_bytes(whole[40..48].try_into().unwrap()) as usize;
    let weak = [0..64, 64..1024, table..whole.len()];
    let bounds = Bounds {
        bytes: 8 * whole.len() + (256 << 10),
        allocations: 1_000,
    };
    harmless(4_000, &whole, &weak, bounds, |damaged| {
        let file = file(damaged);
        let Ok(headers) = Headers::read(&file) else {
            return false;
        };
        let id = headers.build_id.as_ref();
        assert!(id.is_none_or(|id| !id.is_empty() && id.len() <= 128));
        assert!(headers.names.len() == headers.sections.len() && headers.names.len() <= damaged.len() / 64);
        for address in [0, 0x1000, 0x4000, u64::MAX] {
            let _any = (headers.rest_of_section(address), headers.segments.delta(address));
        }
        let image = headers.copy(&file, damaged.len() as u64, MOST, late());
        // Beside what is limited: the file's header, the names of its sections and its program headers, each once.
        assert!(
            image
                .iter()
                .all(|image| image.bytes <= MOST + 2 * damaged.len() as u64)
        );
        image.is_ok()
    })
    .both_often();
}

/// A file with a hole of 1 GiB, whose table of program headers says that it is the whole file.
#[test]
fn program_headers_of_another_size_are_not_copied() {
    let built = Built::new(&[]);
    let whole = std::fs::read(&built.whole).unwrap();
    let crafted = file(&whole);
    let size = 1 << 30;
    crafted.set_len(size).unwrap();
    for (field, value) in [(54, u16::MAX), (56, u16::MAX)] {
        crafted.write_all_at(&value.to_le_bytes(), field).unwrap();
    }
    let headers = Headers::read(&crafted).unwrap();
    let image = headers.copy(&crafted, size, MOST, late()).unwrap();
    assert!(image.bytes <= MOST + whole.len() as u64, "{}", image.bytes);
    let copied = std::fs::metadata(image.path(Path::new("/proc"))).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&copied) * 512 <= 2 * MOST);
}

#[test]
fn a_table_longer_than_the_file_takes_no_memory() {
    let built = Built::new(&[]);
    let mut whole = std::fs::read(&built.whole).unwrap();
    // 65,535 sections are 4 MiB.
    whole[60..62].fill(0xff);
    let bounds = Bounds {
        bytes: 64 << 10,
        allocations: 20,
    };
    harmless(1, &whole, &[], bounds, |_| {
        assert_eq!(Headers::read(&file(&whole)).unwrap_err(), Outcome::ElfError);
        true
    });
}
