//! Heap profiles and executables made to do harm. A real profile is copied out of a Go program, damaged, and read as memory.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};

use super::super::{Layout, Refused};
use super::{Running, build};
use crate::host::Host;
use crate::host::damage::{Bounds, harmless};

/// A host on which process 7 has this memory, auxiliary vector and executable.
fn host(root: &Path, memory: &File, auxv: &[u8], exe: &Path) -> Host {
    let process = root.join("proc/7");
    std::fs::create_dir_all(&process).unwrap();
    symlink(
        format!("/proc/self/fd/{}", memory.as_raw_fd()),
        process.join("mem"),
    )
    .unwrap();
    symlink(exe, process.join("exe")).unwrap();
    std::fs::write(process.join("auxv"), auxv).unwrap();
    Host::new(root)
}

/// A file as large as memory, most of which is a hole.
fn memory() -> File {
    memfd_create("tieback-test", MemfdFlags::CLOEXEC).unwrap().into()
}

const PAGE: u64 = 4096;

/// The pages of a process that its profile is read from, with what is in them.
fn pages(host: &Host, pid: u32, layout: &Layout) -> Vec<(u64, Vec<u8>)> {
    let memory = host.memory(pid).unwrap();
    let word = |address: u64| {
        let mut bytes = [0; 8];
        assert_eq!(memory.read(address, &mut bytes).unwrap(), 8);
        u64::from_le_bytes(bytes)
    };
    let bias = host.entry(pid).unwrap().wrapping_sub(layout.entry);
    let variables = [
        layout.version,
        layout.rate,
        layout.buckets,
        layout.cycle,
        layout.began,
        layout.left_out,
    ];
    let mut addresses: Vec<u64> = variables
        .iter()
        .filter(|address| **address != 0)
        .map(|address| address.wrapping_add(bias))
        .collect();
    addresses.push(word(addresses[0]));
    let mut next = word(addresses[2]);
    while next != 0 {
        addresses.extend([next, next + 1024]);
        next = word(next + 8);
    }
    let mut pages: Vec<u64> = addresses.iter().map(|address| address / PAGE * PAGE).collect();
    pages.sort_unstable();
    pages.dedup();
    let read = |page: u64| {
        let mut bytes = vec![0; PAGE as usize];
        let read = memory.read(page, &mut bytes).unwrap();
        bytes.truncate(read);
        (page, bytes)
    };
    pages.into_iter().map(read).collect()
}

#[test]
fn damaged_profiles_are_refused_or_have_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = build(dir.path(), &[]) else {
        return;
    };
    let running = Running::start(&program, 524_288, true);
    let (real, pid) = (Host::new("/"), running.pid());
    let layout = Layout::find(&real, pid).unwrap();
    let truth = layout.read(&real, pid).unwrap();
    let pages = pages(&real, pid, &layout);
    let auxv = std::fs::read(format!("/proc/{pid}/auxv")).unwrap();
    let copy = memory();
    let host = host(&dir.path().join("root"), &copy, &auxv, &program);
    let good: Vec<u8> = pages.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let write = |bytes: &[u8]| {
        let mut rest = bytes;
        for (page, len) in pages.iter().map(|(page, bytes)| (page, bytes.len())) {
            let (here, after) = rest.split_at(len.min(rest.len()));
            copy.write_all_at(here, *page).unwrap();
            rest = after;
        }
    };
    write(&good);
    assert_eq!(layout.read(&host, 7).unwrap(), truth);
    let bounds = Bounds {
        // A list may lead back into itself: then as much is read as is read at most.
        bytes: 40 << 20,
        allocations: 1 << 20,
    };
    harmless(300, &good, &[], bounds, |damaged| {
        write(damaged);
        let found = layout.read(&host, 7);
        write(&good);
        if let Ok(found) = &found {
            assert!(found.buckets.len() <= 100_000);
            assert!(found.version.len() <= 3 * 64 && found.rate > 0);
            for bucket in &found.buckets {
                let _any = (bucket.allocated(found.rate), bucket.in_use(found.rate));
            }
        }
        found.is_ok()
    })
    .both_often();
}

/// The shortest list without an end, with the longest stacks there can be.
#[test]
fn a_list_that_leads_back_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let copy = memory();
    let put = |address: u64, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        copy.write_all_at(&bytes, address).unwrap();
    };
    put(0x1000, &[0x1100, 8]);
    copy.write_all_at(b"go1.24.1", 0x1100).unwrap();
    put(0x1200, &[1, 1, 0x2000]);
    put(0x2000, &[0, 0x2000, 1, 0, 16, 1024]);
    put(0x6000, &[0]);
    let exe = Path::new("/proc/self/exe");
    let auxv = [9u64, 0].map(u64::to_le_bytes).concat();
    let host = host(dir.path(), &copy, &auxv, exe);
    let layout = Layout {
        entry: 0,
        buckets: 0x1210,
        cycle: 0x1208,
        rate: 0x1200,
        version: 0x1000,
        began: 0,
        left_out: 0,
    };
    let bounds = Bounds {
        bytes: 20 << 20,
        allocations: 1 << 14,
    };
    harmless(1, b"one round", &[], bounds, |_| {
        let found = layout.read(&host, 7).unwrap();
        assert!(!found.complete && !found.buckets.is_empty());
        true
    });
}

const NAMED: &str = r#"
#include <stdint.h>
#define VARIABLE(name) __asm__(".globl " name "\n.type " name ", @object\n.size " name ", 8\n.data\n" name ": .quad 1\n.text")
VARIABLE("runtime.mbuckets");
VARIABLE("runtime.mProfCycle");
VARIABLE("runtime.MemProfileRate");
VARIABLE("runtime.buildVersion");
__asm__(".section .gopclntab, \"a\"\n.quad 1\n.text");
int main(void) { return 0; }
"#;

#[test]
fn damaged_executables_have_a_layout_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("named.c"), NAMED).unwrap();
    let built = Command::new("cc")
        .arg("-o")
        .args([at("named"), at("named.c")])
        .status()
        .unwrap();
    assert!(built.success());
    let good = std::fs::read(at("named")).unwrap();
    let table = u64::from_le_bytes(good[40..48].try_into().unwrap()) as usize;
    let symbols = good
        .windows(16)
        .rposition(|name| name == b"runtime.mbuckets")
        .unwrap();
    let exe = at("shop");
    let host = host(dir.path(), &memory(), &[], &exe);
    let mut put = File::create(&exe).unwrap();
    put.write_all(&good).unwrap();
    assert!(Layout::find(&host, 7).is_ok());
    let bounds = Bounds {
        bytes: 4 * good.len(),
        allocations: 1_000,
    };
    harmless(
        2_000,
        &good,
        &[0..64, table..good.len(), symbols - 1024..symbols + 64],
        bounds,
        |damaged| {
            put.set_len(0).unwrap();
            put.write_all_at(damaged, 0).unwrap();
            match Layout::find(&host, 7) {
                Ok(layout) => layout.buckets != 0,
                Err(Refused::NotGo | Refused::NoSymbols | Refused::Io(_)) => false,
                Err(other) => panic!("{other}"),
            }
        },
    )
    .both_often();
}
