//! Processes whose memory map nobody read: what came with their samples names them, or nothing does.

use std::collections::HashMap;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{functions, resolve, start, start_program, stop};
use crate::host::open_by_number;
use crate::symbolize::{
    CapturedCode, CapturedFile, CapturedModule, Outcome, SharedStack, SlotId, Symbolizer, SymbolizerConfig,
    maps,
};

/// A process that never was.
const GONE: u32 = u32::MAX >> 1;

/// What the kernel side says of the mapping at an address of a process that lives.
fn capture(pid: u32, address: u64) -> (CapturedModule, CapturedFile) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mapping = maps::find(&maps::parse(&maps), address).unwrap().clone();
    let file = std::fs::File::open(&*mapping.path).unwrap();
    let about = file.metadata().unwrap();
    let mut generation = 0u32;
    // SAFETY: the request writes a number. (It says long, but all filesystems write an int.)
    let failed = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETVERSION, &raw mut generation) };
    let (major, minor) = mapping.device.split_once(':').unwrap();
    let hex = |digits| u32::from_str_radix(digits, 16).unwrap();
    let file = CapturedFile {
        device: (hex(major), hex(minor)),
        inode: mapping.inode,
        generation: if failed == 0 { generation } else { 0 },
        size: about.len(),
        mtime: (about.mtime(), about.mtime_nsec()),
    };
    let module = CapturedModule {
        start: mapping.range.start,
        end: mapping.range.end,
        offset: mapping.offset,
        code: CapturedCode::File(file),
        executable: true,
    };
    (module, file)
}

/// A symbolizer that knows these processes.
fn symbolizer(known: &[u32]) -> Symbolizer {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    for pid in known {
        symbolizer.note_process(SlotId(2), *pid);
    }
    symbolizer
}

/// The stack of a process that is gone, of which this was captured.
fn resolve_gone(symbolizer: &mut Symbolizer, module: CapturedModule, address: u64) -> SharedStack {
    symbolizer.captured(HashMap::from([((SlotId(1), GONE), vec![module])]));
    resolve(symbolizer, GONE, vec![address])
}

fn is_nameless(stack: &SharedStack, symbolizer: &Symbolizer) {
    assert_eq!(
        (functions(stack), &*stack.frames[0].module),
        (vec!["?"], "[unknown]")
    );
    assert_eq!(symbolizer.stats().count(Outcome::ProcessGone), 1);
}

#[test]
fn a_file_is_found_through_another_process_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, _) = start(dir.path(), &["-g"]);
    let (mut other, address) = start_program(&dir.path().join("shop"));
    let (module, _) = capture(other.id(), address);
    stop(&mut other);
    let mut known = symbolizer(&[one.id()]);
    let stack = resolve_gone(&mut known, module, address);
    assert_eq!(functions(&stack), ["shop_load"]);
    assert_eq!(
        (&*stack.owner.function, &*stack.owner.file),
        ("shop_load", "shop.c")
    );
    // An address outside of what was captured is none of it.
    let stack = resolve(&mut known, GONE, vec![module.end, module.start - 1]);
    assert_eq!(functions(&stack), ["?", "?"]);
    // Also when that process is gone, too, and its map is all that is left of it.
    let mut known = symbolizer(&[one.id()]);
    stop(&mut one);
    let stack = resolve_gone(&mut known, module, address);
    assert_eq!(functions(&stack), ["shop_load"]);
}

#[test]
fn a_file_that_is_another_one_names_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let (module, file) = capture(child.id(), address);
    let (seconds, nanoseconds) = file.mtime;
    for lie in [
        CapturedFile {
            size: file.size + 1,
            ..file
        },
        CapturedFile {
            mtime: (seconds - 1, nanoseconds),
            ..file
        },
        CapturedFile {
            mtime: (seconds, nanoseconds ^ 1),
            ..file
        },
        CapturedFile {
            inode: file.inode + 1_000_000_000_000,
            ..file
        },
    ] {
        let mut known = symbolizer(&[child.id()]);
        let module = CapturedModule {
            code: CapturedCode::File(lie),
            ..module
        };
        let stack = resolve_gone(&mut known, module, address);
        is_nameless(&stack, &known);
    }
    // The device alone is no lie: overlayfs and btrfs show one of their own.
    let mut known = symbolizer(&[child.id()]);
    let elsewhere = CapturedModule {
        code: CapturedCode::File(CapturedFile {
            device: (4000, 4000),
            ..file
        }),
        ..module
    };
    let stack = resolve_gone(&mut known, elsewhere, address);
    assert_eq!(functions(&stack), ["shop_load"]);
    // An offset that is in no segment is told with the module, and has no name.
    let mut known = symbolizer(&[child.id()]);
    let beyond = CapturedModule {
        offset: 1 << 40,
        ..module
    };
    let stack = resolve_gone(&mut known, beyond, address);
    assert_eq!(functions(&stack), ["?"]);
    assert_eq!(known.stats().count(Outcome::NoSymbol), 1);
    stop(&mut child);
    // The file is replaced: by one with its path, or by other contents of its own.
    let mut known = symbolizer(&[]);
    std::fs::write(dir.path().join("shop"), "something else").unwrap();
    let stack = resolve_gone(&mut known, module, address);
    is_nameless(&stack, &known);
}

#[test]
fn a_file_that_nobody_has_is_found_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let (module, file) = capture(child.id(), address);
    stop(&mut child);
    // Not on each filesystem, and not for each user.
    let proc = Path::new("/proc");
    let able = open_by_number(proc, file.device, file.inode, file.generation).is_ok();
    let mut known = symbolizer(&[]);
    let stack = resolve_gone(&mut known, module, address);
    let path = dir.path().join("shop");
    if able {
        let module = &*stack.frames[0].module;
        assert_eq!(
            (functions(&stack), module),
            (vec!["shop_load"], &*path.to_string_lossy())
        );
    } else {
        is_nameless(&stack, &known);
    }
    // Of another generation it is another file.
    let mut known = symbolizer(&[]);
    let generation = file.generation.wrapping_add(1);
    let code = CapturedCode::File(CapturedFile { generation, ..file });
    let stack = resolve_gone(&mut known, CapturedModule { code, ..module }, address);
    is_nameless(&stack, &known);
}

#[test]
fn the_map_of_a_process_counts_if_it_is_of_the_same_program() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let (module, _) = capture(child.id(), address);
    let process = (SlotId(1), child.id());
    let mut known = symbolizer(&[child.id()]);
    known.captured(HashMap::from([(process, vec![module])]));
    let stack = resolve(&mut known, child.id(), vec![address]);
    assert_eq!(functions(&stack), ["shop_load"]);
    // It was another program when the sample was taken: at the address was what is not there now.
    let mut known = symbolizer(&[child.id()]);
    let (start, length) = (0x10_0000_0000, module.end - module.start);
    let before = CapturedModule {
        start,
        end: start + length,
        ..module
    };
    known.captured(HashMap::from([(process, vec![before])]));
    let stack = resolve(
        &mut known,
        child.id(),
        vec![address, start + address - module.start + 1],
    );
    stop(&mut child);
    assert_eq!(functions(&stack), ["?", "shop_load"]);
}

#[test]
fn what_was_mapped_after_the_map_was_read_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let (module, _) = capture(child.id(), address);
    let process = (SlotId(1), child.id());
    let mut known = symbolizer(&[child.id()]);
    let (start, length) = (0x10_0000_0000, module.end - module.start);
    let later = CapturedModule {
        start,
        end: start + length,
        ..module
    };
    stop(&mut child);
    known.captured(HashMap::from([(process, vec![module, later])]));
    let stack = resolve(
        &mut known,
        child.id(),
        vec![address, start + address - module.start + 1],
    );
    assert_eq!(functions(&stack), ["shop_load", "shop_load"]);
}

#[test]
fn a_process_that_lives_is_not_given_up_for_a_stack_of_generated_code() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let process = (SlotId(1), child.id());
    let mut known = symbolizer(&[]);
    known.note_process(process.0, process.1);
    let generated = CapturedModule {
        start: 0x10_0000_0000,
        end: 0x10_0000_1000,
        offset: 0x10_0000,
        code: CapturedCode::Memory,
        executable: false,
    };
    known.captured(HashMap::from([(process, vec![generated])]));
    let stack = resolve(&mut known, child.id(), vec![address]);
    stop(&mut child);
    assert_eq!(functions(&stack), ["shop_load"]);
}
