//! The loader on this process, with the maps of the kernel side kept here.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_ebpf::wire::unwind::{SpaceKey, UnwindResult};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::super::super::headers::Headers;
use super::super::functions::Row;
use super::super::loader::FileKey;
use super::super::{Loader, Table};
use super::kernel::Maps;
use crate::attribute::SlotId;
use crate::symbolize::SymbolizerConfig;

const SLOT: SlotId = SlotId(7);

fn loader(max_bytes: u64) -> Loader<Maps> {
    Loader::new(SymbolizerConfig::default(), Maps::default(), max_bytes)
}

fn key(slot: SlotId) -> SpaceKey {
    SpaceKey {
        slot: slot.0,
        pid: std::process::id(),
    }
}

#[test]
fn a_program_has_its_tables_before_it_is_sampled() {
    let mut loader = loader(64 << 20);
    let start = Instant::now();
    loader.opened(SLOT, std::process::id(), start);
    loader.ahead(start).unwrap();
    assert!(loader.sink.spaces.is_empty());
    let due = loader.due().unwrap();
    loader.ahead(due).unwrap();
    assert!(loader.sink.spaces.contains_key(&key(SLOT)));
    assert!(loader.stats().built > 1);
    let here = a_program_has_its_tables_before_it_is_sampled as fn() as usize as u64;
    assert!(loader.sink.module(key(SLOT), here).is_some());
    // One that has ended meanwhile costs nothing.
    loader.opened(SlotId(8), std::process::id(), start);
    loader.closed(SlotId(8)).unwrap();
    loader.ahead(start + Duration::from_secs(5)).unwrap();
    assert!(!loader.sink.spaces.contains_key(&key(SlotId(8))));
}

#[test]
fn what_finds_no_room_is_not_built_for_each_process_again() {
    let mut loader = loader(1 << 20);
    // Less is left than the C library needs.
    let rows: Vec<Row> = (0..500_000).map(|i| Row::new(i * 3, (i % 2) as u16)).collect();
    let (table, file) = (Table::pack(&rows).unwrap(), FileKey::Build("full".to_owned()));
    assert!(loader.tables.place(&mut loader.sink, file, &table).unwrap());
    loader
        .sampled(SLOT, std::process::id(), UnwindResult::FramePointers)
        .unwrap();
    let first = loader.stats();
    assert!(first.full > 0, "{first:?}");
    loader
        .sampled(SlotId(8), std::process::id(), UnwindResult::FramePointers)
        .unwrap();
    let second = loader.stats();
    assert_eq!((second.built, second.full), (first.built, first.full));
    // The table that nobody uses has gone by then.
    for _ in 0..=60 {
        loader.turn().unwrap();
    }
    loader
        .sampled(SlotId(9), std::process::id(), UnwindResult::FramePointers)
        .unwrap();
    let third = loader.stats();
    assert!(third.built > first.built && third.full == first.full, "{third:?}");
}

#[test]
fn another_library_in_the_place_of_one_is_found_by_the_first_broken_stack() {
    let libraries = ["libm.so.6", "libc.so.6"].map(|name| {
        let folders = ["/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"];
        let mut paths = folders.iter().map(|folder| Path::new(folder).join(name));
        File::open(paths.find(|path| path.exists()).unwrap()).unwrap()
    });
    // Both at one address, the second as large as the first.
    let (mut at, size) = (std::ptr::null_mut::<std::ffi::c_void>(), 0x8000);
    let mut map = |file: &File| {
        let headers = Headers::read(file).unwrap();
        let code = headers.place(".text").unwrap().offset & !0xfff;
        let flags = if at.is_null() {
            MapFlags::PRIVATE
        } else {
            MapFlags::PRIVATE | MapFlags::FIXED
        };
        // SAFETY: the address is the kernel's choice, then that of what was there before and is gone.
        at = unsafe { mmap(at, size, ProtFlags::READ | ProtFlags::EXEC, flags, file, code).unwrap() };
        at as u64
    };
    let mut loader = loader(64 << 20);
    let first = map(&libraries[0]);
    loader
        .sampled(SLOT, std::process::id(), UnwindResult::FramePointers)
        .unwrap();
    let before = loader.sink.module(key(SLOT), first + 0x10).unwrap();
    let second = map(&libraries[1]);
    assert_eq!(first, second);
    // The least time between two looks.
    std::thread::sleep(Duration::from_millis(60));
    loader
        .sampled(SLOT, std::process::id(), UnwindResult::Complete)
        .unwrap();
    assert_eq!(loader.sink.module(key(SLOT), first + 0x10), Some(before));
    loader
        .sampled(SLOT, std::process::id(), UnwindResult::Disorder)
        .unwrap();
    let after = loader.sink.module(key(SLOT), first + 0x10).unwrap();
    assert_ne!(after, before);
    // SAFETY: what `map` mapped, and nobody uses.
    unsafe { munmap(at, size).unwrap() };
}
