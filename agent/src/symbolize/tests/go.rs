//! Go's own table of functions, made to do harm. That it is read right is compared in `addr2line.rs`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use agent_ebpf::wire::unwind::{CFA_NONE, CFA_UNSUPPORTED};

use super::programs::GO;
use super::separate::{run, text};
use crate::host::damage::Random;
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
    let whole = look_up(1).unwrap();
    assert!(whole >= 195, "{whole} of 200 addresses have a name");

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut fewer, mut slowest) = (0, 0, Duration::ZERO);
    for round in 0..400 {
        // The header is small and decides most.
        let part = if round % 2 == 0 { 72 } else { table.size };
        let mut damage = Vec::new();
        for _ in 0..1 + round / 20 {
            let at = table.offset + random.below(usize::try_from(part).unwrap()) as u64;
            let mut before = [0; 4];
            file.read_exact_at(&mut before, at).unwrap();
            damage.push((at, before));
            let new = [[0; 4], [0xff; 4], [0xff, 0xff, 0xff, 0x7f], [0x80; 4]][random.below(4)];
            file.write_all_at(&new[..1 + random.below(4)], at).unwrap();
        }
        let began = Instant::now();
        match look_up(round + 1) {
            None => refused += 1,
            Some(named) => fewer += usize::from(named < 150),
        }
        slowest = slowest.max(began.elapsed());
        for (at, before) in damage.iter().rev() {
            file.write_all_at(before, *at).unwrap();
        }
    }
    assert!(
        refused > 20 && fewer > 0,
        "{refused} refused, {fewer} with fewer names"
    );
    // Two hundred look-ups in 2 MB, most of them nothing to what debug information costs.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    assert_eq!(look_up(1), Some(whole));
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
