//! Executables made to do harm: they cost a count, not the agent.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent_ebpf::wire::unwind::MAX_PAGES;
use gimli::{BaseAddresses, CieOrFde, EhFrame, LittleEndian, UnwindSection as _};
use object::{Object as _, ObjectSection as _};

use super::super::rules::NONE;
use super::super::{Refused, Rules, build};
use super::{LONG, late};
use crate::host::damage::{Bounds, harmless};

const PROGRAM: &str = r#"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
__attribute__((noinline)) int sum(int n, int *of) {
    char *room = __builtin_alloca((size_t)n);
    memset(room, n, (size_t)n);
    qsort(of, (size_t)n, sizeof *of, compare);
    return of[0] + room[n - 1];
}
int main(int count, char **arguments) {
    int numbers[3] = {3, count, 1};
    signal(SIGUSR1, SIG_IGN);
    return sum(3, numbers) + (int)strlen(arguments[0]);
}
"#;

fn compile(dir: &Path, options: &[&str]) -> Vec<u8> {
    let (source, program) = (dir.join("shop.c"), dir.join("shop"));
    std::fs::write(&source, PROGRAM).unwrap();
    let built = Command::new("cc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .args(options)
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    std::fs::read(program).unwrap()
}

/// The parts of a file that decide most: its headers, call frame information, and code.
fn weak(program: &[u8]) -> Vec<Range<usize>> {
    let file = object::File::parse(program).unwrap();
    let sections = file.sections().filter(|section| {
        matches!(
            section.name(),
            Ok(".eh_frame" | ".eh_frame_hdr" | ".debug_frame" | ".text")
        )
    });
    let ranges = sections
        .filter_map(|section| section.file_range())
        .map(|(at, size)| at as usize..(at + size) as usize);
    let table = u64::from_le_bytes(program[40..48].try_into().unwrap()) as usize;
    [0..64, 64..800, table..program.len()]
        .into_iter()
        .filter(|range| !range.is_empty())
        .chain(ranges)
        .collect()
}

#[test]
fn damaged_executables_cost_a_count() {
    let dir = tempfile::tempdir().unwrap();
    let none = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    let kinds = [
        compile(dir.path(), &[]),
        compile(dir.path(), &[none[0], none[1], "-g"]),
        compile(dir.path(), &[none[0], none[1], "-g", "-gz"]),
        compile(dir.path(), &[none[0], none[1], "-s"]),
        compile(dir.path(), &["-fcf-protection", "-fno-plt", "-no-pie"]),
    ];
    let mut without_sections = kinds[0].clone();
    without_sections[40..48].fill(0);
    without_sections[58..64].fill(0);
    let mut rules = Rules::default();
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for program in kinds.iter().chain([&without_sections]) {
        let weak = if program == &without_sections {
            vec![0..64, 64..800]
        } else {
            weak(program)
        };
        // A word for each page between the first and the last function, of which there are 65,536 at most.
        let bounds = Bounds {
            bytes: 64 * program.len() + (4 << 20),
            allocations: 4 * program.len(),
        };
        harmless(400, program, &weak, bounds, |damaged| {
            let file = tempfile::tempfile_in(dir.path()).unwrap();
            file.write_all_at(damaged, 0).unwrap();
            let built = build(&file, &mut rules, LONG);
            let there = built.is_ok();
            if let Ok(built) = &built {
                let table = &built.table;
                assert!(table.pages.len() <= MAX_PAGES as usize);
                assert!(table.words(0..table.pages.len()).len() < 1 << 20);
                // Found or not, nothing is asked that is not there.
                for address in [0, table.base, table.base + damaged.len() as u64, u64::MAX] {
                    let rule = table.find(address).unwrap_or(0);
                    assert!(usize::from(rule) < rules.all().len());
                }
            }
            *ends
                .entry(built.map_or_else(Refused::as_str, |_| "built"))
                .or_default() += 1;
            there
        })
        .both_often();
    }
    eprintln!("{ends:?}");
    assert_eq!(ends.get("panic"), None, "{ends:?}");
    assert_eq!(ends.get("too_slow"), None, "{ends:?}");
    assert!(ends["built"] > 200 && ends["malformed"] > 200, "{ends:?}");
}

/// An entry whose instructions cannot be read is a count and a stretch without rules; all others are as they were.
#[test]
fn one_broken_entry_costs_one_function() {
    let dir = tempfile::tempdir().unwrap();
    let good = compile(dir.path(), &[]);
    let parsed = object::File::parse(&*good).unwrap();
    let section = parsed.section_by_name(".eh_frame").unwrap();
    let frame = EhFrame::new(section.data().unwrap(), LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(section.address());
    let mut entries = frame.entries(&bases);
    let mut functions = Vec::new();
    while let Some(entry) = entries.next().unwrap() {
        if let CieOrFde::Fde(partial) = entry {
            let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
            // The length is before what it counts.
            let last = fde.offset() + 4 + fde.entry_len() - 1;
            functions.push((
                fde.initial_address(),
                section.file_range().unwrap().0 as usize + last,
            ));
        }
    }
    // One that is filled up with instructions that do nothing; the last of them becomes one that nobody knows.
    let &(broken, last) = functions.iter().find(|(_, last)| good[*last] == 0).unwrap();
    let mut damaged = good.clone();
    damaged[last] = 0x3f;
    let built = |program: &[u8]| {
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        file.write_all_at(program, 0).unwrap();
        let mut rules = Rules::default();
        let built = build(&file, &mut rules, LONG).unwrap();
        let rule = |address| {
            built
                .table
                .find(address)
                .map(|number| rules.all()[usize::from(number)])
        };
        let found: Vec<_> = functions.iter().map(|(address, _)| rule(*address)).collect();
        (built.functions, built.broken, found)
    };
    let (whole, one_less) = (built(&good), built(&damaged));
    assert_eq!((whole.1, one_less.0, one_less.1), (0, whole.0 - 1, 1));
    for ((address, _), (before, after)) in functions.iter().zip(whole.2.iter().zip(&one_less.2)) {
        let wanted = if *address == broken { Some(NONE) } else { *before };
        assert_eq!(*after, wanted, "{address:#x}");
        assert_ne!(*before, Some(NONE), "{address:#x}");
    }
}

#[test]
fn functions_at_both_ends_of_the_address_space_do_not_fill_the_memory() {
    let dir = tempfile::tempdir().unwrap();
    // All pages between the two would be 2 billion.
    let section = r#"__attribute__((section(".far"))) int far(int n) { return n + 1; }"#;
    std::fs::write(dir.path().join("far.c"), section).unwrap();
    let far = dir.path().join("far.c");
    let program = compile(
        dir.path(),
        &[
            far.to_str().unwrap(),
            "-no-pie",
            "-Wl,--section-start=.far=0x7f0000000000",
            "-mcmodel=large",
            "-fno-asynchronous-unwind-tables",
            "-g",
        ],
    );
    let path = dir.path().join("crafted");
    std::fs::write(&path, program).unwrap();
    let built = build(&File::open(&path).unwrap(), &mut Rules::default(), LONG);
    assert_eq!(built.map(|built| built.functions).unwrap_err(), Refused::TooLarge);
}

#[test]
fn more_than_the_limit_is_neither_read_nor_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &[]);
    let file = tempfile::tempfile_in(dir.path()).unwrap();
    file.write_all_at(&program, 0).unwrap();
    let mut rules = Rules::default();
    assert_eq!(
        build(&file, &mut rules, Duration::ZERO).unwrap_err(),
        Refused::TooSlow
    );
    assert!(build(&file, &mut rules, LONG).is_ok());
    // A symbol table of 200 MB, most of which is a hole in the file.
    file.set_len(300 << 20).unwrap();
    let table = u64::from_le_bytes(program[40..48].try_into().unwrap());
    let count = u16::from_le_bytes(program[60..62].try_into().unwrap());
    for header in (0..u64::from(count)).map(|section| table + 64 * section) {
        let kind = &program[header as usize + 4..header as usize + 8];
        if kind == object::elf::SHT_DYNSYM.to_le_bytes() {
            let size: u64 = (200 << 20) / 24 * 24;
            file.write_all_at(&size.to_le_bytes(), header + 32).unwrap();
        }
    }
    assert_eq!(build(&file, &mut rules, LONG).unwrap_err(), Refused::TooLarge);
}

#[test]
fn code_that_takes_long_is_given_up() {
    use super::super::code::functions;
    use crate::symbolize::cpu_time::CpuTime;

    // push rax; pop rax; ret, again and again.
    let code = [0x50, 0x58, 0xc3].repeat(1000);
    assert_eq!(functions(&code, 0, &[], late()).functions.len(), 1000);
    assert_eq!(functions(&code, 0, &[], CpuTime::now()).functions.len(), 0);
}
