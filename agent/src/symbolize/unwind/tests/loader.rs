//! The loader on this process, with the maps of the kernel side kept here.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent_ebpf::wire::unwind::{SpaceKey, UnwindResult};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::super::super::headers::Headers;
use super::super::files::FileKey;
use super::super::functions::Row;
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

/// Makes the tables that take long.
fn finish(loader: &mut Loader<Maps>) {
    while let Some(job) = loader.job() {
        loader.made(job.make()).unwrap();
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
    finish(&mut loader);
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

#[test]
fn who_found_too_many_waiting_is_looked_at_again() {
    let mut loader = loader(64 << 20);
    let libc = libc::getpid as unsafe extern "C" fn() -> libc::pid_t as usize as u64;
    (loader.large_from, loader.large.most) = (100 << 10, 1);
    for there_now in [[true, false], [true, true]] {
        loader.look(SLOT, std::process::id()).unwrap();
        finish(&mut loader);
        assert_eq!(there(&loader, SLOT, libc), there_now);
    }
    let all = loader.stats();
    loader.look(SLOT, std::process::id()).unwrap();
    assert!(!loader.is_waiting());
    assert_eq!(loader.stats().built, all.built);
}

/// A slot's stacks in this program and in the C library, as tables are there for both.
fn there(loader: &Loader<Maps>, slot: SlotId, libc: u64) -> [bool; 2] {
    let here = there as fn(&Loader<Maps>, SlotId, u64) -> [bool; 2] as usize as u64;
    [here, libc].map(|ip| loader.sink.module(key(slot), ip).is_some())
}

#[test]
fn tables_that_take_long_come_later_and_hold_up_nobody() {
    let mut loader = loader(64 << 20);
    // This program is larger than the C library by far; both are large ones here, and nothing else is.
    let libc = libc::getpid as unsafe extern "C" fn() -> libc::pid_t as usize as u64;
    let pid = std::process::id();
    loader.large_from = 100 << 10;
    loader.sampled(SLOT, pid, UnwindResult::FramePointers).unwrap();
    assert!(loader.stats().built > 0 && loader.is_waiting());
    assert_eq!(there(&loader, SLOT, libc), [false, false]);
    let first = loader.job().unwrap();
    assert!(loader.job().is_none());
    // Who comes while it is being made has all that is there, and waits for the same.
    let slot = SlotId(8);
    loader.sampled(slot, pid, UnwindResult::FramePointers).unwrap();
    loader.made(first.make()).unwrap();
    assert_eq!(
        [SLOT, slot].map(|slot| there(&loader, slot, libc)),
        [[false, true]; 2]
    );
    // It ends before the second is there.
    loader.closed(slot).unwrap();
    let second = loader.job().unwrap();
    loader.made(second.make()).unwrap();
    assert!(!loader.is_waiting());
    assert_eq!(there(&loader, SLOT, libc), [true, true]);
    assert!(!loader.sink.spaces.contains_key(&key(slot)));
    // The same tables as those that were made at once, as far as the rules go.
    let mut at_once = Loader::new(SymbolizerConfig::default(), Maps::default(), 64 << 20);
    at_once.large_from = u64::MAX;
    at_once.sampled(SLOT, pid, UnwindResult::FramePointers).unwrap();
    assert_eq!(at_once.stats().built, loader.stats().built);
    for ip in (libc - 0x1_0000..libc + 0x1_0000).step_by(3) {
        let [later, at_once] = [&loader, &at_once].map(|loader| loader.sink.rule_of(key(SLOT), ip));
        assert_eq!(later, at_once, "{ip:#x}");
    }
    // Nobody has them mapped: they go like all others.
    loader.closed(SLOT).unwrap();
    for _ in 0..=62 {
        loader.turn().unwrap();
    }
    assert_eq!(loader.stats().row_bytes, 0);
}

#[test]
fn an_interpreter_that_cannot_be_read_is_looked_at_again() {
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", "input(print(flush=True))"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It has mapped everything by then.
    let said = python.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
    assert_eq!(said, 1);
    let pid = python.id();
    let proc = tempfile::tempdir().unwrap();
    let theirs = proc.path().join(pid.to_string());
    std::fs::create_dir(&theirs).unwrap();
    let show = |file: &str| symlink(format!("/proc/{pid}/{file}"), theirs.join(file)).unwrap();
    symlink("/proc/self", proc.path().join("self")).unwrap();
    show("maps");
    show("root");
    let config = SymbolizerConfig {
        proc: proc.path().to_owned(),
        ..SymbolizerConfig::default()
    };
    let mut loader = Loader::new(config, Maps::default(), 64 << 20);
    loader.look(SLOT, pid).unwrap();
    assert_eq!(loader.stats().interpreters, [("memory", 1)].into());
    show("mem");
    loader.look(SLOT, pid).unwrap();
    assert_eq!(loader.stats().interpreters, [("memory", 1), ("walked", 1)].into());
    // It is found, and not looked for any more.
    loader.look(SlotId(8), pid).unwrap();
    loader.look(SLOT, pid).unwrap();
    assert_eq!(loader.stats().interpreters["walked"], 2);
    python.kill().unwrap();
    python.wait().unwrap();
}
