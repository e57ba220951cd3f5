//! Allocators made to do harm: they are not probed, or where code is.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use object::{Object as _, ObjectSection as _};

use super::code::{Text, sites};
use super::{AllocCall, Allocator};
use crate::host::damage::{Bounds, harmless};

const SOURCE: &str = r#"
#include <stddef.h>
#include <string.h>
static char room[1 << 16];
static size_t used;
void *malloc(size_t size) {
    if (used + size > sizeof room) return NULL;
    used += (size + 15) & ~15ul;
    return room + used;
}
void free(void *at) { if (at == room + used) used--; }
void *calloc(size_t count, size_t size) {
    void *at = malloc(count * size);
    return at ? memset(at, 0, count * size) : at;
}
void *realloc(void *at, size_t size) {
    if (!at) return malloc(size);
    void *to = malloc(size);
    for (size_t i = 0; to && i < size; i++) ((char *)to)[i] = ((char *)at)[i];
    return to;
}
int posix_memalign(void **at, size_t align, size_t size) {
    if (align & (align - 1)) return 22;
    *at = malloc(size);
    return *at ? 0 : 12;
}
"#;

fn library() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (source, library) = (dir.path().join("heap.c"), dir.path().join("heap.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc")
        .args(["-O2", "-fno-builtin", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status()
        .unwrap();
    assert!(built.success());
    std::fs::read(library).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn damaged_libraries_have_their_probes_inside_or_none() {
    let good = library();
    let allocator = Allocator::read(&file(&good)).unwrap().unwrap();
    assert!(allocator.functions.len() >= 3, "{allocator:?}");
    let parsed = object::File::parse(&*good).unwrap();
    let weak = parsed.sections().filter(|section| {
        matches!(
            section.name(),
            Ok(".dynsym" | ".dynstr" | ".symtab" | ".strtab" | ".rela.plt" | ".text")
        )
    });
    let weak = weak.filter_map(|section| section.file_range());
    let table = u64::from_le_bytes(good[40..48].try_into().unwrap()) as usize;
    let weak: Vec<_> = weak
        .map(|(at, size)| at as usize..(at + size) as usize)
        .chain([0..64, 64..800, table..good.len()])
        .collect();
    let bounds = Bounds {
        bytes: 32 * good.len(),
        allocations: 20_000,
    };
    let ends = harmless(3_000, &good, &weak, bounds, |damaged| {
        let Ok(Some(found)) = Allocator::read(&file(damaged)) else {
            return false;
        };
        for function in &found.functions {
            let sites = &function.sites;
            // One that begins outside of the file is not probed.
            for address in sites.returns.iter().chain([&sites.entry]) {
                let _any = found.offset(*address);
            }
        }
        for place in [0, 0x1000, u64::MAX] {
            let _any = (found.offset(place), found.bias(0x7f00_0000_0000, place));
        }
        !found.functions.is_empty()
    });
    ends.both_often();
}

/// As many symbols as a file of 24 MB can have, each of a function of its own.
#[test]
fn endless_functions_are_not_followed() {
    let good = library();
    let parsed = object::File::parse(&*good).unwrap();
    let crafted = file(&good);
    let names = parsed.section_by_name(".dynstr").unwrap().data().unwrap();
    let name = names.windows(8).position(|name| name == b"\0malloc\0").unwrap() as u32 + 1;
    let text = parsed.section_by_name(".text").unwrap().address();
    let table = parsed.section_by_name(".dynsym").unwrap();
    let count: u64 = 1 << 20;
    let mut symbols = Vec::new();
    for number in 0..count {
        symbols.extend_from_slice(&name.to_le_bytes());
        symbols.extend_from_slice(&[0x12, 0, 1, 0]);
        symbols.extend_from_slice(&(text + number).to_le_bytes());
        symbols.extend_from_slice(&[0; 8]);
    }
    let at = good.len().next_multiple_of(8) as u64;
    crafted.write_all_at(&symbols, at).unwrap();
    let headers = u64::from_le_bytes(good[40..48].try_into().unwrap());
    let header = headers + 64 * table.index().0 as u64;
    crafted.write_all_at(&at.to_le_bytes(), header + 24).unwrap();
    crafted
        .write_all_at(&(24 * count).to_le_bytes(), header + 32)
        .unwrap();
    assert_eq!(
        Allocator::read(&crafted).unwrap_err(),
        "its functions are too many"
    );
}

/// Code at address 0.
struct Bytes<'a>(&'a [u8]);

impl Text for Bytes<'_> {
    fn bytes(&self, address: u64, len: usize) -> &[u8] {
        let rest = usize::try_from(address).ok().and_then(|at| self.0.get(at..));
        let rest = rest.unwrap_or_default();
        &rest[..rest.len().min(len)]
    }
}

#[test]
fn damaged_code_has_its_places_inside_and_ends_soon() {
    // The code of the C library's allocator, as the agent finds it.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .find(|path| path.contains("libc.so"));
    let libc = File::open(path.unwrap()).unwrap();
    let allocator = Allocator::read(&libc).unwrap().unwrap();
    for function in &allocator.functions {
        let mut code = vec![0; 4096];
        libc.read_exact_at(&mut code, allocator.offset(function.sites.entry).unwrap())
            .unwrap();
        let bounds = Bounds {
            bytes: 1 << 20,
            allocations: 1_000,
        };
        harmless(200, &code, &[0..64, 0..512], bounds, |damaged| {
            let watched = BTreeSet::from([0, 0x100, 0x800]);
            let size = (damaged.len() / 2) as u64;
            let Ok(found) = sites(&Bytes(damaged), 0, size, AllocCall::Realloc, &watched) else {
                return false;
            };
            let inside = |at: &u64| *at < damaged.len() as u64;
            assert!(found.returns.iter().chain(&found.exits).all(inside));
            assert!(found.entry == 0 || (inside(&found.entry) && found.emulated));
            assert!(found.forwards.is_subset(&watched));
            true
        });
    }
}
