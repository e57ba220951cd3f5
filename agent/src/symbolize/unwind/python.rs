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
/// Bytes from one copy to the next: 11 in 3.12.1, 16 in 3.13.0.
const APART: [u8; 2] = [CODE.len() as u8, 16];
/// Bytes of copies that are mapped at once, one after the other (Python/perf_trampoline.c); the next ones are mapped below
/// these, so that they may be one mapping.
const ARENA: u64 = 64 << 10;
/// As many are described: the copies of 16,384 functions at least.
const ARENAS: u64 = 4;

/// How far the trampolines with which a mapping of a process begins are apart, once there are two.
pub(super) fn trampolines(proc: &Path, pid: u32, mapping: &Mapping) -> Option<u8> {
    if !mapping.path.is_empty() {
        return None;
    }
    let mut code = [0; 32];
    let memory = File::open(proc.join(pid.to_string()).join("mem")).ok()?;
    memory.read_exact_at(&mut code, mapping.range.start).ok()?;
    let second = |apart: &u8| {
        code.get(usize::from(*apart)..)
            .is_some_and(|code| code.starts_with(&CODE))
    };
    APART.into_iter().find(second).filter(|_| code.starts_with(&CODE))
}

/// The table of all such mappings whose copies are so far apart, the first address being 0.
pub(super) fn table(rules: &mut Rules, apart: u8) -> Option<Table> {
    let rule = |cfa_offset| Rule {
        cfa: CFA_SP,
        fp: FP_SAME,
        ra: RA_AT_CFA,
        cfa_offset,
        ra_offset: -8,
        ..NONE
    };
    let (outside, inside) = (rules.number(rule(8)), rules.number(rule(16)));
    let rows: Vec<Row> = (0..ARENAS)
        .flat_map(|arena| {
            (0..ARENA / u64::from(apart)).map(move |copy| arena * ARENA + copy * u64::from(apart))
        })
        .flat_map(|copy| {
            [(0, outside), (LOWERED, inside), (RAISED, outside)].map(|(at, rule)| Row::new(copy + at, rule))
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
        for (apart, copies) in [
            (16, [0, 16, 0xfff0, 0x1_0000, 0x3_fff0]),
            (11, [0, 11, 0xffec, 0x1_0000, 0x3_ffec]),
        ] {
            let table = table(&mut rules, apart).unwrap();
            let cfa = |address| {
                let rule = rules.all()[usize::from(table.find(address)?)];
                Some(rule.cfa_offset)
            };
            for copy in copies {
                let found = [0, 4, 6, 10].map(|at| cfa(copy + at));
                assert_eq!(
                    found,
                    [Some(8), Some(16), Some(16), Some(8)],
                    "{apart}: {copy:#x}"
                );
            }
            assert_eq!(cfa(ARENAS * ARENA), None);
        }
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
            trampolines(proc.path(), 7, &mapping)
        };
        let apart = |zeros: usize| [&CODE[..], &vec![0; zeros], &CODE, &[0; 16]].concat();
        write(&apart(5));
        assert_eq!((at(""), at("[heap]")), (Some(16), None));
        write(&apart(0));
        assert_eq!(at(""), Some(11));
        for none in [&apart(3)[..], &[&CODE[..], &[0; 32]].concat(), &[0x55; 32], &CODE] {
            write(none);
            assert_eq!(at(""), None);
        }
    }
}
