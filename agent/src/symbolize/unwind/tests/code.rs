//! Rules read from instructions: against the call frame information of the same code, and code that must not be believed.

use agent_ebpf::wire::unwind::{CFA_END, CFA_SP, FP_AT_CFA};
use gimli::UnwindSection as _;
use object::{Object as _, ObjectSection as _};

use super::super::code::functions;
use super::super::{Rules, build};
use super::{LONG, late};

/// Functions understood, those not, and the places compared, of all functions of a file that have information. Without branch
/// tables or endless loops they are understood; where one is, each rule must be the compiler's.
fn compare(path: &str) -> (usize, usize, usize) {
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let mut rules = Rules::default();
    let built = build(&std::fs::File::open(path).unwrap(), &mut rules, LONG).unwrap();
    let section = file.section_by_name(".eh_frame").unwrap();
    let text = file.section_by_name(".text").unwrap();
    let frame = gimli::EhFrame::new(section.data().unwrap(), gimli::LittleEndian);
    let bases = gimli::BaseAddresses::default().set_eh_frame(section.address());
    let (mut understood, mut not, mut compared) = (0, 0, 0);
    let mut entries = frame.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let gimli::CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial.parse(gimli::EhFrame::cie_from_offset).unwrap();
        let Ok(Some(code)) = text.data_range(fde.initial_address(), fde.len()) else {
            continue;
        };
        let Some(function) = functions(code, fde.initial_address(), &[], late())
            .functions
            .into_iter()
            .find(|function| function.start == fde.initial_address())
        else {
            not += 1;
            continue;
        };
        // A part that was moved away begins with the frame of the part that jumps to it.
        let number = built.table.find(function.start).unwrap();
        if rules.all()[usize::from(number)].cfa_offset != 8 {
            not += 1;
            continue;
        }
        understood += 1;
        for (address, rule) in &function.rows {
            let truth = rules.all()[usize::from(built.table.find(*address).unwrap())];
            // The compiler may tell the same by the frame pointer, and does not say that a popped one is back.
            if truth.cfa == CFA_SP && rule.cfa == CFA_SP {
                assert_eq!(rule.cfa_offset, truth.cfa_offset, "{path} {address:x}");
                compared += 1;
            }
            if rule.fp == FP_AT_CFA {
                assert_eq!(
                    (rule.fp, rule.fp_offset),
                    (truth.fp, truth.fp_offset),
                    "{path} {address:x}"
                );
            }
        }
    }
    (understood, not, compared)
}

#[test]
fn instructions_say_what_compilers_say() {
    for path in ["/bin/bash", "/usr/bin/perl"] {
        let (understood, not, compared) = compare(path);
        println!("{path}: {understood} functions understood, {not} not, {compared} rows compared");
        assert!(
            compared > 1000 && understood > not,
            "{path}: {understood} {not} {compared}"
        );
    }
}

/// Of a whole program without any other information: places compared, and those where the instructions were misunderstood.
fn compare_blindly(path: &str) -> (usize, usize) {
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let mut rules = Rules::default();
    let built = build(&std::fs::File::open(path).unwrap(), &mut rules, LONG).unwrap();
    let text = file.section_by_name(".text").unwrap();
    let found = functions(text.data().unwrap(), text.address(), &[], late());
    let (mut compared, mut wrong) = (0, 0);
    for (address, rule) in found.functions.iter().flat_map(|function| &function.rows) {
        let truth = rules.all()[usize::from(built.table.find(*address).unwrap())];
        if truth.cfa == CFA_SP && rule.cfa == CFA_SP {
            compared += 1;
            wrong += usize::from(truth.cfa_offset != rule.cfa_offset);
        }
    }
    (compared, wrong)
}

#[test]
fn whole_programs_are_understood_without_any_information() {
    for path in ["/bin/bash", "/usr/bin/perl"] {
        let (compared, wrong) = compare_blindly(path);
        println!("{path}: {compared} rows compared, {wrong} wrong");
        assert!(
            compared > 10_000 && wrong * 1000 < compared,
            "{path}: {wrong} of {compared}"
        );
    }
}

/// The offset of each row; the end of the stack is 0.
fn offsets(code: &[u8]) -> Vec<Vec<(u64, i32)>> {
    let offset = |(at, rule): &(u64, agent_ebpf::wire::unwind::Rule)| match rule.cfa {
        CFA_SP => (*at, rule.cfa_offset),
        CFA_END => (*at, 0),
        _ => (*at, -1),
    };
    let stretch = functions(code, 0x1000, &[], late());
    stretch
        .functions
        .iter()
        .map(|function| function.rows.iter().map(offset).collect())
        .collect()
}

#[test]
fn the_main_of_rust_without_unwinding() {
    // push rax; mov rdi,rsi; call 0; pop rcx; ret, then padding, then: ret
    let code = [
        0x50, 0x48, 0x89, 0xf7, 0xe8, 0, 0, 0, 0, 0x59, 0xc3, 0x66, 0x0f, 0x1f, 0x44, 0, 0, 0xc3,
    ];
    assert_eq!(
        offsets(&code),
        [vec![(0x1000, 8), (0x1001, 16), (0x100a, 8)], vec![(0x1011, 8)]]
    );
}

#[test]
fn where_nobody_called_the_stack_ends() {
    // xor ebp,ebp; mov rdi,rsp; and rsp,-16; call 0; hlt
    let code = [
        0x31, 0xed, 0x48, 0x89, 0xe7, 0x48, 0x83, 0xe4, 0xf0, 0xe8, 0, 0, 0, 0, 0xf4,
    ];
    assert_eq!(offsets(&code), [vec![(0x1000, 8), (0x1002, 0)]]);
}

#[test]
fn what_does_not_return_ends_where_the_next_function_is_known_to_begin() {
    // push rax; test al,al; je +2; pop rax; ret; call 0, then right behind: pop rax; ret
    let code = [
        0x50, 0x84, 0xc0, 0x74, 2, 0x58, 0xc3, 0xe8, 0, 0, 0, 0, 0x58, 0xc3,
    ];
    let starts = |known: &[u64]| -> Vec<(u64, u64)> {
        let found = functions(&code, 0x1000, known, late()).functions;
        found
            .iter()
            .map(|function| (function.start, function.end))
            .collect()
    };
    assert_eq!(starts(&[]), [(0x1000, 0x100e)]);
    assert_eq!(starts(&[0x1000, 0x100c]), [(0x1000, 0x100c)]);
}

#[test]
fn what_is_not_proven_is_not_believed() {
    // push rax; ret: returns to what it pushed.
    assert!(offsets(&[0x50, 0xc3]).is_empty());
    // push rax; jmp to itself: no way out that would show the frame to be right.
    assert!(offsets(&[0x50, 0xeb, 0xfe]).is_empty());
    // test al,al; je +1; push rax; nop; pop rax; ret: two ways with different frames.
    assert!(offsets(&[0x84, 0xc0, 0x74, 1, 0x50, 0x90, 0x58, 0xc3]).is_empty());
    // mov rsp,[rdi]; ret: a switch of stacks.
    assert!(offsets(&[0x48, 0x8b, 0x27, 0xc3]).is_empty());
    // No instruction at all, and none to the end.
    assert!(offsets(&[0x06, 0x06]).is_empty() && offsets(&[0x48]).is_empty() && offsets(&[]).is_empty());
}

#[test]
fn any_bytes_end_soon() {
    let mut seed = 7u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    };
    for _ in 0..200 {
        let code: Vec<u8> = (0..4096).map(|_| next()).collect();
        for function in functions(&code, u64::MAX >> 17, &[], late()).functions {
            assert!(function.start < function.end && !function.rows.is_empty());
        }
    }
}
