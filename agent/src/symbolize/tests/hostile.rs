//! Debug information made to do harm.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use object::{Object as _, ObjectSection as _};

use super::separate::{Built, config, lines, run, text};
use super::{PROGRAM, functions, resolve, start_program, stop};
use crate::host::damage::{Bounds, harmless};
use crate::symbolize::{Outcome, Symbolizer, SymbolizerConfig};

/// A function `shop_load` in which `depth` functions are inlined, each in the one before.
fn nested(depth: u32) -> String {
    format!(
        r#"
        .file 1 "nest.s"
        .text
        .globl shop_load
        .type shop_load, @function
        shop_load:
        .loc 1 7
        nop
        ret
        .size shop_load, . - shop_load
        .section .debug_abbrev,"",@progbits
        .byte 1,0x11,1, 0x10,0x17, 0x11,0x01, 0x12,0x07, 0,0
        .byte 2,0x2e,1, 0x03,0x08, 0x11,0x01, 0x12,0x07, 0,0
        .byte 3,0x1d,1, 0,0
        .byte 0
        .section .debug_info,"",@progbits
        .long 9f - 8f
        8: .short 4
        .long 0
        .byte 8
        .byte 1
        .long 0
        .quad shop_load
        .quad 2
        .byte 2
        .string "described"
        .quad shop_load
        .quad 2
        .rept {depth}
        .byte 3
        .endr
        .rept {depth}
        .byte 0
        .endr
        .byte 0, 0
        9:
        .section .note.GNU-stack,"",@progbits
        "#
    )
}

#[test]
fn endless_nesting_does_not_overflow_the_stack() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("shop.c");
    let (before, after) = PROGRAM
        .split_once("__attribute__((noinline)) int shop_load")
        .unwrap();
    let (_, after) = after.split_once("}").unwrap();
    std::fs::write(&source, format!("{before} int shop_load(int x); {after}")).unwrap();
    // What is as deep as real code is read; what is deeper than any is not.
    for (depth, name) in [(200, "described"), (257, "shop_load"), (1_000_000, "shop_load")] {
        let nest = dir.path().join("nest.s");
        std::fs::write(&nest, nested(depth)).unwrap();
        let program = dir.path().join("shop");
        let built = Command::new("gcc")
            .args(["-O1", "-o"])
            .args([&program, &source, &nest])
            .status()
            .unwrap();
        assert!(built.success());
        let (mut child, address) = start_program(&program);
        let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
        let stack = resolve(&mut symbolizer, child.id(), vec![address]);
        stop(&mut child);
        assert_eq!(functions(&stack).last(), Some(&name), "{depth}");
        assert_eq!(
            stack.frames.last().unwrap().line,
            if depth > 256 { 0 } else { 7 },
            "{depth}"
        );
        assert_eq!(
            symbolizer.stats().debug_skipped,
            u64::from(depth > 256),
            "{depth}"
        );
    }
}

#[test]
fn damaged_debug_files_harm_nobody() {
    for options in [&["-gdwarf-5"][..], &["-gdwarf-4", "-gz=zlib"]] {
        let built = Built::new(options);
        let root = tempfile::tempdir().unwrap();
        let (first, rest) = built.id.split_at(2);
        let place = root
            .path()
            .join(format!("usr/lib/debug/.build-id/{first}/{rest}.debug"));
        built.put(&place);
        let whole = std::fs::read(&place).unwrap();
        let (mut child, address) = start_program(&built.program);
        let sections = object::File::parse(&*whole).unwrap();
        let weak = sections.sections().filter_map(|section| {
            let (at, size) = section.file_range()?;
            (section.name().unwrap().starts_with(".debug") && size > 0)
                .then(|| at as usize..(at + size) as usize)
        });
        let weak: Vec<_> = weak.collect();
        // The copy is no memory of the heap; what is made from it is limited by the size of the file.
        let bounds = Bounds {
            bytes: 8 << 20,
            allocations: 20_000,
        };
        let mut outcomes = [0u64; Outcome::ALL.len()];
        let ends = harmless(600, &whole, &weak, bounds, |damaged| {
            std::fs::write(&place, damaged).unwrap();
            let mut lines = 0;
            let mut symbolizer = Symbolizer::new(config(root.path()));
            for at in 0..8 {
                let stack = resolve(&mut symbolizer, child.id(), vec![address + at]);
                assert!(!stack.frames.is_empty());
                lines += stack.frames[0].line;
            }
            for outcome in Outcome::ALL {
                outcomes[outcome as usize] += symbolizer.stats().count(outcome);
            }
            lines > 0
        });
        stop(&mut child);
        eprintln!("{options:?} {outcomes:?}");
        assert_eq!(outcomes.iter().sum::<u64>(), (ends.read + ends.refused) * 8);
        ends.both_often();
        // Some damage is survived, and some is not: both are put to the test.
        assert!(outcomes[Outcome::Ok as usize] > 100 && outcomes[Outcome::NoSymbol as usize] > 100);
        assert_eq!(
            outcomes[Outcome::Panic as usize],
            0,
            "nor does a panic cost the symbols"
        );
    }
}

#[test]
fn what_takes_too_long_is_given_up_step_by_step() {
    let built = Built::new(&[]);
    let mut impatient = config(Path::new("/nowhere"));
    let (mut child, address) = start_program(&built.whole);
    let addresses = |symbolizer: &mut Symbolizer| {
        let names = (0..3).map(|at| lines(&resolve(symbolizer, child.id(), vec![address + at])));
        names.collect::<Vec<_>>()
    };
    // No time at all for debug information when it is loaded.
    impatient.max_parse = Duration::ZERO;
    let mut symbolizer = Symbolizer::new(impatient);
    let names = addresses(&mut symbolizer);
    stop(&mut child);
    assert_eq!(names[..2], ["shop_load ?:0", "shop_load ?:0"]);
    assert_eq!(names[2], "? ?:0");
    assert_eq!(symbolizer.stats().count(Outcome::TooSlow), 1);
}

#[test]
fn files_with_shared_parts_give_what_they_hold() {
    if Command::new("dwz").arg("--version").output().is_err() {
        return;
    }
    let (one, two) = (Built::new(&[]), Built::new(&["-DOTHER=1", "-O2"]));
    let shared = one.dir.path().join("shared");
    let name = format!("--multifile={}", shared.display());
    run("dwz", &[&name, text(&one.debug), text(&two.debug)]);
    let root = tempfile::tempdir().unwrap();
    let (first, rest) = one.id.split_at(2);
    one.put(
        &root
            .path()
            .join(format!("usr/lib/debug/.build-id/{first}/{rest}.debug")),
    );
    let (frames, stats) = one.look_up(root.path());
    // The symbols are there in any case, and so are the lines.
    let expected = format!("shop_load {}:9", one.dir.path().join("shop.c").display());
    assert!(frames.iter().all(|frame| *frame == expected), "{frames:?}");
    assert_eq!(stats.count(Outcome::Ok), 8);
}

#[test]
fn one_list_of_ranges_for_every_function_does_not_fill_the_memory() {
    // 100,000 ranges times 10,000 functions would be 24 GB.
    for (functions, refused) in [(1, 0), (10_000, 1)] {
        let crafted = format!(
            r#"
            .section .debug_abbrev,"",@progbits
            .byte 1,0x11,1, 0x11,0x01, 0x12,0x07, 0,0
            .byte 2,0x2e,0, 0x55,0x17, 0,0
            .byte 0
            .section .debug_rnglists,"",@progbits
            .long 7f - 6f
            6: .short 5
            .byte 8, 0
            .long 0
            .rept 100000
            .byte 4, 0, 1
            .endr
            .byte 0
            7:
            .section .debug_info,"",@progbits
            .long 9f - 8f
            8: .short 5
            .byte 1, 8
            .long 0
            .byte 1
            .quad main
            .quad 64
            .rept {functions}
            .byte 2
            .long 12
            .endr
            .byte 0
            9:
            .section .note.GNU-stack,"",@progbits
            "#
        );
        let dir = tempfile::tempdir().unwrap();
        let (source, crafted_source, program) = (
            dir.path().join("shop.c"),
            dir.path().join("list.s"),
            dir.path().join("shop"),
        );
        std::fs::write(&source, PROGRAM).unwrap();
        std::fs::write(&crafted_source, crafted).unwrap();
        run(
            "gcc",
            &["-O1", "-o", text(&program), text(&source), text(&crafted_source)],
        );
        let (frames, stats) = super::separate::look_up(&program, config(Path::new("/nowhere")));
        assert_eq!(stats.debug_skipped, refused, "{functions}");
        assert!(
            frames.iter().all(|frame| frame.starts_with("shop_load ")),
            "{frames:?}"
        );
    }
}
