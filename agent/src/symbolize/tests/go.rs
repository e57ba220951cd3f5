//! Go's own table of functions, made to do harm. That it is read right is compared in `addr2line.rs`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use agent_ebpf::wire::unwind::{CFA_NONE, CFA_UNSUPPORTED};

use super::programs::GO;
use super::separate::{run, text};
use crate::host::damage::{Bounds, Random, harmless};
use crate::symbolize::go::GoTable;
use crate::symbolize::headers::Headers;
use crate::symbolize::name::Names;
use crate::symbolize::unwind::{Built, Rules, build as build_table};

const MAX: u64 = 64 << 20;

#[test]
fn damaged_tables_harm_nobody() {
    if Command::new("go").arg("version").output().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("shop.go"), dir.path().join("shop"));
    std::fs::write(&source, GO).unwrap();
    let build = [
        "CGO_ENABLED=0",
        "GO111MODULE=off",
        "go",
        "build",
        "-ldflags=-s -w",
        "-o",
    ];
    run("env", &[&build[..], &[text(&program), text(&source)]].concat());
    let whole = std::fs::read(&program).unwrap();
    let file = File::options().read(true).write(true).open(&program).unwrap();
    let headers = Headers::read(&file).unwrap();
    let table = headers.place(".gopclntab").unwrap();
    let code = headers.place(".text").unwrap();
    let mut names = Names::default();
    let mut look_up = |seed: u64| {
        let Ok(Some(found)) = GoTable::read(&file, &headers, MAX) else {
            return None;
        };
        let mut random = Random(seed);
        let mut at = || code.address + random.below(usize::try_from(code.size).unwrap()) as u64;
        let named = (0..200).filter(|_| found.look_up(&mut names, at()).is_some());
        Some(named.count())
    };
    let named = look_up(1).unwrap();
    assert!(named >= 195, "{named} of 200 addresses have a name");

    let place = table.offset as usize..(table.offset + table.size) as usize;
    // The table is copied once, and so is what is inlined; names are as long as the table has them, and not longer than 4 KiB.
    let bounds = Bounds {
        bytes: 2 * whole.len() + (4 << 20),
        allocations: 200_000,
    };
    let mut fewer = 0;
    // The header is small and decides most.
    let ends = harmless(400, &whole[place.clone()], &[0..8, 8..72], bounds, |damaged| {
        file.write_all_at(damaged, table.offset).unwrap();
        let found = look_up(1);
        file.write_all_at(&whole[place.clone()], table.offset).unwrap();
        fewer += u64::from(found.is_some_and(|named| named < 150));
        found.is_some()
    });
    ends.both_often();
    assert!(fewer > 0, "{ends:?}");
    assert_eq!(look_up(1), Some(named));
}

#[test]
fn frames_of_the_table_are_those_of_call_frame_information() {
    if Command::new("go").arg("version").output().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("shop.go"), GO).unwrap();
    for mode in ["-buildmode=exe", "-buildmode=pie"] {
        let build = ["CGO_ENABLED=0", "GO111MODULE=off", "go", "build", mode, "-o"];
        run(
            "env",
            &[&build[..], &[text(&at("whole")), text(&at("shop.go"))]].concat(),
        );
        run("strip", &["-o", text(&at("shop")), text(&at("whole"))]);
        let mut rules = Rules::default();
        let mut table = |name: &str| {
            build_table(
                &File::open(at(name)).unwrap(),
                &mut rules,
                Duration::from_secs(60),
            )
            .unwrap()
        };
        let (whole, stripped) = (table("whole"), table("shop"));
        let code = Headers::read(&File::open(at("shop")).unwrap())
            .unwrap()
            .place(".text")
            .unwrap();
        let (mut compared, mut more, mut different) = (0, 0, Vec::new());
        for address in code.address..code.address + code.size {
            let rule = |table: &Built| {
                table
                    .table
                    .find(address)
                    .map(|rule| rules.all()[usize::from(rule)])
            };
            match (rule(&whole), rule(&stripped)) {
                (Some(a), Some(b)) if a.cfa != CFA_NONE && a == b => compared += 1,
                // A function that takes its own return address from the stack (Go 1.24 has one): nothing is where it says.
                (Some(a), Some(b)) if a.cfa_offset < 8 && b.cfa == CFA_UNSUPPORTED => {}
                // Padding between functions is no code.
                (a, Some(b)) if a.is_none_or(|a| a.cfa == CFA_NONE) && b.cfa != CFA_NONE => more += 1,
                (Some(a), b) if a.cfa != CFA_NONE => different.push((address, a, b)),
                _ => {}
            }
        }
        eprintln!("{mode}: {compared} bytes of code the same, {more} only in the table");
        assert!(compared > 300_000, "{compared}");
        assert!(
            different.is_empty(),
            "{}: {:x?}",
            different.len(),
            &different[..different.len().min(5)]
        );
    }
}
