//! Files that are gone, replaced, stripped, too large or cut short.

use std::time::Duration;

use super::separate::Built;
use super::{functions, resolve, start, start_program, stop};
use crate::host::damage::{Bounds, harmless};
use crate::symbolize::unwind::{Rules, build};
use crate::symbolize::{Outcome, SlotId, Symbolizer, SymbolizerConfig, maps};

#[test]
fn a_process_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    symbolizer.note_process(SlotId(1), child.id());
    let pid = child.id();
    stop(&mut child);
    let stack = resolve(&mut symbolizer, pid, vec![address]);
    assert_eq!(functions(&stack), ["shop_load"]);
    assert_eq!(
        (&*stack.owner.function, &*stack.owner.file),
        ("shop_load", "shop.c")
    );
    // Its file is replaced: no wrong name, and the module is still told.
    let (mut child, address) = start(dir.path(), &["-g"]);
    let pid = child.id();
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    symbolizer.note_process(SlotId(1), pid);
    stop(&mut child);
    std::fs::rename(dir.path().join("shop"), dir.path().join("old")).unwrap();
    std::fs::write(dir.path().join("shop"), "something else").unwrap();
    let stack = resolve(&mut symbolizer, pid, vec![address]);
    assert_eq!((functions(&stack), &*stack.owner.file), (vec!["?"], "shop"));
    assert_eq!(symbolizer.stats().count(Outcome::ProcessGone), 1);
}

#[test]
fn a_deleted_executable_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    std::fs::remove_file(dir.path().join("shop")).unwrap();
    // Only `/proc/PID/map_files` still leads to it, which not every user may follow.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let range = maps::find(&maps::parse(&maps), address).unwrap().range.clone();
    let link = format!("/proc/{}/map_files/{:x}-{:x}", child.id(), range.start, range.end);
    let expected = if std::fs::File::open(link).is_ok() {
        "shop_load"
    } else {
        "?"
    };
    let stack = resolve(
        &mut Symbolizer::new(SymbolizerConfig::default()),
        child.id(),
        vec![address],
    );
    stop(&mut child);
    assert_eq!(
        (functions(&stack), &*stack.frames[0].module),
        (vec![expected], &*dir.path().join("shop").to_string_lossy())
    );
}

#[test]
fn stripped_programs_keep_their_module() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-s"]);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let stack = resolve(&mut symbolizer, child.id(), vec![address]);
    stop(&mut child);
    assert_eq!((functions(&stack), &*stack.owner.file), (vec!["?"], "shop"));
    assert_eq!(symbolizer.stats().count(Outcome::NoSymbol), 1);
}

#[test]
fn debug_information_over_the_limit_leaves_the_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let config = SymbolizerConfig {
        max_image_bytes: 4000,
        ..SymbolizerConfig::default()
    };
    let mut symbolizer = Symbolizer::new(config);
    let stack = resolve(&mut symbolizer, child.id(), vec![address]);
    assert_eq!((functions(&stack), stack.frames[0].line), (vec!["shop_load"], 0));
    assert_eq!(symbolizer.stats().debug_skipped, 1);
    let config = SymbolizerConfig {
        max_file_bytes: 100,
        ..SymbolizerConfig::default()
    };
    let mut symbolizer = Symbolizer::new(config);
    resolve(&mut symbolizer, child.id(), vec![address]);
    assert_eq!(symbolizer.stats().count(Outcome::TooLarge), 1);
    stop(&mut child);
}

/// A hole of 3 GiB at the end of the file: nobody reads it.
#[test]
fn a_file_of_gigabytes_costs_what_is_read_of_it() {
    let built = Built::new(&[]);
    let file = std::fs::File::options().write(true).open(&built.whole).unwrap();
    file.set_len(3 << 30).unwrap();
    drop(file);
    let (mut child, address) = start_program(&built.whole);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let bounds = Bounds {
        bytes: 4 << 20,
        allocations: 10_000,
    };
    harmless(1, b"one round", &[], bounds, |_| {
        let stack = resolve(&mut symbolizer, child.id(), vec![address]);
        assert_eq!(
            (functions(&stack), stack.frames[0].line > 0),
            (vec!["shop_load"], true)
        );
        let file = std::fs::File::open(&built.whole).unwrap();
        let table = build(&file, &mut Rules::default(), Duration::from_secs(60)).unwrap();
        table.functions > 5
    })
    .always();
    stop(&mut child);
}

#[test]
fn a_file_cut_short_or_damaged_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("shop");
    let (mut child, address) = start(dir.path(), &["-g"]);
    let whole = std::fs::read(&program).unwrap();
    // The same mapping and inode, another content: what a careless upgrade of a shared library does.
    let pid = child.id();
    let live = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    stop(&mut child);
    let mapping = maps::find(&maps::parse(&live), address).unwrap().clone();
    let maps = format!(
        "{:x}-{:x} r-xp {:08x} fe:01 {} {}\n",
        mapping.range.start,
        mapping.range.end,
        mapping.offset,
        mapping.inode,
        program.display()
    );
    let proc = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/proc/self", proc.path().join("self")).unwrap();
    let process = proc.path().join(pid.to_string());
    std::fs::create_dir(&process).unwrap();
    std::fs::write(
        process.join("stat"),
        format!("{pid} (shop) S{} 5 0", " 0".repeat(18)),
    )
    .unwrap();
    std::fs::write(process.join("maps"), maps).unwrap();
    std::os::unix::fs::symlink("/", process.join("root")).unwrap();
    let look_up = |content: &[u8]| {
        std::fs::write(&program, content).unwrap();
        let config = SymbolizerConfig {
            proc: proc.path().into(),
            ..SymbolizerConfig::default()
        };
        let mut symbolizer = Symbolizer::new(config);
        let stack = resolve(&mut symbolizer, pid, vec![address + 16]);
        assert_eq!(
            (stack.frames.len(), &*stack.frames[0].module),
            (1, &*program.to_string_lossy())
        );
        symbolizer.stats()
    };
    assert_eq!(look_up(&whole).count(Outcome::Ok), 1);
    for cut in (0..whole.len()).step_by(whole.len() / 60) {
        let stats = look_up(&whole[..cut]);
        assert_eq!(
            (stats.count(Outcome::ElfError), stats.count(Outcome::Panic)),
            (1, 0),
            "cut at {cut}"
        );
    }
    let bounds = Bounds {
        bytes: 4 << 20,
        allocations: 10_000,
    };
    harmless(400, &whole, &[0..64, 64..1024], bounds, |damaged| {
        look_up(damaged).count(Outcome::Ok) == 1
    })
    .both_often();
}
