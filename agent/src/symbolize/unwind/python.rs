//! CPython's trampolines. With `-X perf` each Python function is called through a copy of a few instructions of its own, so
//! that tools can tell functions apart by their return addresses. No file describes the copies, and they keep no frame pointer.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use agent_ebpf::wire::unwind::{CFA_SP, FP_SAME, RA_AT_CFA, Rule};

use super::super::maps::Mapping;
use super::functions::Row;
use super::rules::NONE;
use super::{Rules, Table};

/// `sub $8, %rsp; call *%rcx; add $8, %rsp; ret` (Python/asm_trampoline.S of 3.12 and 3.13).
const CODE: [u8; 11] = [0x48, 0x83, 0xec, 8, 0xff, 0xd1, 0x48, 0x83, 0xc4, 8, 0xc3];
/// Where the first instruction ends, and the third one.
const LOWERED: u64 = 4;
const RAISED: u64 = 10;
/// From one copy to the next (Python/perf_trampoline.c).
const EACH: u64 = 16;
/// Bytes of copies, one after the other, that are described: those of 16,384 functions.
const DESCRIBED: u64 = 256 << 10;

/// Whether a mapping of a process begins with a trampoline.
pub(super) fn is_trampolines(proc: &Path, pid: u32, mapping: &Mapping) -> bool {
    if !mapping.path.is_empty() {
        return false;
    }
    let mut code = [0; CODE.len()];
    let memory = File::open(proc.join(pid.to_string()).join("mem"));
    memory.is_ok_and(|memory| memory.read_exact_at(&mut code, mapping.range.start).is_ok()) && code == CODE
}

/// The table of all such mappings, the first address being 0.
pub(super) fn table(rules: &mut Rules) -> Option<Table> {
    let rule = |cfa_offset| Rule {
        cfa: CFA_SP,
        fp: FP_SAME,
        ra: RA_AT_CFA,
        cfa_offset,
        ra_offset: -8,
        ..NONE
    };
    let (outside, inside) = (rules.number(rule(8)), rules.number(rule(16)));
    let rows: Vec<Row> = (0..DESCRIBED / EACH)
        .flat_map(|copy| {
            [(0, outside), (LOWERED, inside), (RAISED, outside)]
                .map(|(at, rule)| Row::new(copy * EACH + at, rule))
        })
        .collect();
    Table::pack(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_of_every_copy_knows_its_return_address() {
        let mut rules = Rules::default();
        let table = table(&mut rules).unwrap();
        let cfa = |address| {
            let rule = rules.all()[usize::from(table.find(address)?)];
            Some(rule.cfa_offset)
        };
        for copy in [0, 16, 0xfff0, 0x1_0000, DESCRIBED - EACH] {
            let found = [0, 4, 6, 10].map(|at| cfa(copy + at));
            assert_eq!(found, [Some(8), Some(16), Some(16), Some(8)], "{copy:#x}");
        }
        assert_eq!(cfa(DESCRIBED), None);
    }

    #[test]
    fn code_is_what_tells_them() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir(proc.path().join("7")).unwrap();
        let write =
            |code: &[u8]| std::fs::write(proc.path().join("7/mem"), [&[0; 32], code].concat()).unwrap();
        let at = |path: &str| {
            let mapping = Mapping {
                range: 32..0x1000,
                offset: 0,
                device: "00:00".into(),
                inode: 0,
                path: path.into(),
                found: None,
            };
            is_trampolines(proc.path(), 7, &mapping)
        };
        write(&CODE);
        assert!(at("") && !at("[heap]"));
        write(&[0x55; 16]);
        assert!(!at(""));
        write(&CODE[..5]);
        assert!(!at(""));
    }
}
