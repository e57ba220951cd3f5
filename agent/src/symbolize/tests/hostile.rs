//! Debug information made to do harm.

use super::{PROGRAM, functions, resolve, start_program, stop};
use crate::symbolize::{Symbolizer, SymbolizerConfig};

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
        let built = std::process::Command::new("gcc")
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
