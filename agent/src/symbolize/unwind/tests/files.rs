//! Tables of real files, against what readelf says.

use std::fs::File;
use std::process::Command;

use agent_ebpf::wire::unwind::{
    CFA_AT_FP, CFA_END, CFA_FP, CFA_NONE, CFA_PLT, CFA_SP, CFA_UNSUPPORTED, FP_AT_CFA, FP_SAME, Rule,
};

use super::super::{Refused, Rules, build};
use super::LONG;

/// A row of `readelf --debug-dump=frames-interp`: address, rule of the CFA, of the frame pointer, of the return address.
struct Line {
    address: u64,
    cfa: String,
    fp: String,
    ra: String,
}

/// Rows by function, each with where the function ends.
fn readelf(path: &str) -> Vec<(u64, Vec<Line>)> {
    let out = Command::new("readelf")
        .args(["--wide", "--debug-dump=frames-interp", path])
        .output()
        .expect("readelf (binutils)");
    let text = String::from_utf8_lossy(&out.stdout);
    let (mut functions, mut columns, mut end) = (Vec::new(), Vec::new(), None);
    for line in text.lines() {
        if let Some((_, range)) = line
            .split_once(" FDE ")
            .and_then(|(_, rest)| rest.split_once("pc="))
        {
            let (_, to) = range.split_once("..").expect("a range");
            end = Some(u64::from_str_radix(to.trim(), 16).expect("an address"));
            functions.push((end.unwrap_or_default(), Vec::new()));
        } else if line.contains(" CIE ") {
            end = None;
        } else if line.trim_start().starts_with("LOC") {
            columns = line.split_whitespace().map(str::to_owned).collect();
        } else if end.is_some() && !line.trim().is_empty() {
            // A register is told by its number, and by its name in parentheses.
            let cells = line.split_whitespace().filter(|cell| !cell.starts_with('('));
            let cells: Vec<&str> = cells.collect();
            // Offsets of the section have eight digits.
            let Some(address) = Some(cells[0])
                .filter(|cell| cell.len() == 16)
                .and_then(|cell| u64::from_str_radix(cell, 16).ok())
            else {
                continue;
            };
            let cell = |name: &str| {
                let at = columns.iter().position(|column| column == name);
                at.and_then(|at| cells.get(at))
                    .map_or("u", |cell| cell)
                    .to_owned()
            };
            let line = Line {
                address,
                cfa: cell("CFA"),
                fp: cell("rbp"),
                ra: cell("ra"),
            };
            functions.last_mut().expect("a function").1.push(line);
        }
    }
    functions
}

/// A rule as readelf writes it.
fn written(rule: Rule) -> (String, String) {
    let cfa = match rule.cfa {
        CFA_SP => format!("rsp{:+}", rule.cfa_offset),
        CFA_FP => format!("rbp{:+}", rule.cfa_offset),
        CFA_AT_FP | CFA_PLT => "exp".to_owned(),
        other => format!("kind {other}"),
    };
    let fp = match rule.fp {
        FP_SAME => "u".to_owned(),
        FP_AT_CFA => format!("c{:+}", rule.fp_offset),
        _ => "exp".to_owned(),
    };
    (cfa, fp)
}

fn compare(path: &str) -> usize {
    let mut rules = Rules::default();
    let built = build(&File::open(path).unwrap(), &mut rules, LONG).unwrap();
    let rule = |address| {
        built
            .table
            .find(address)
            .map(|number| rules.all()[usize::from(number)])
    };
    let mut compared = 0;
    for (end, lines) in readelf(path) {
        for (line, until) in lines
            .iter()
            .zip(lines.iter().skip(1).map(|line| line.address).chain([end]))
        {
            // The first and the last byte that the row is for.
            for address in [line.address, until - 1] {
                let rule = rule(address).unwrap_or_else(|| panic!("{path}: no rule at {address:#x}"));
                if line.ra == "u" {
                    assert_eq!(rule.cfa, CFA_END, "{path}: {address:#x}");
                    continue;
                }
                let fp = if line.fp == "s" { "u" } else { &line.fp };
                if line.cfa == "exp" && rule.cfa != CFA_AT_FP && rule.cfa != CFA_PLT {
                    // The way back from a signal, and nothing else that these files hold.
                    assert!(rule.flags != 0, "{path}: {address:#x} {rule:?}");
                    continue;
                }
                // Registers that hold neither a stack nor a frame pointer are not followed by the kernel side.
                if !["rsp", "rbp", "exp"]
                    .iter()
                    .any(|known| line.cfa.starts_with(known))
                {
                    assert_eq!(rule.cfa, CFA_UNSUPPORTED, "{path}: {address:#x}");
                    continue;
                }
                assert_eq!(
                    written(rule),
                    (line.cfa.clone(), fp.to_owned()),
                    "{path}: {address:#x}"
                );
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn the_tables_of_distribution_binaries_are_what_readelf_prints() {
    let libc = "/lib/x86_64-linux-gnu/libc.so.6";
    assert!(compare(libc) > 20_000);
    assert!(compare("/bin/bash") > 10_000);
    assert!(compare("/usr/bin/perl") > 10_000);
}

#[test]
fn between_functions_there_is_no_rule() {
    let path = "/bin/bash";
    let mut rules = Rules::default();
    let built = build(&File::open(path).unwrap(), &mut rules, LONG).unwrap();
    let last = readelf(path).into_iter().map(|(end, _)| end).max().unwrap();
    let number = built.table.find(last).unwrap_or(0);
    assert_eq!(rules.all()[usize::from(number)].cfa, CFA_NONE);
}

#[test]
fn what_is_no_executable_is_refused_by_name() {
    let mut rules = Rules::default();
    let mut refused = |bytes: &[u8]| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        build(file.as_file(), &mut rules, LONG).unwrap_err()
    };
    assert_eq!(refused(b""), Refused::Malformed);
    assert_eq!(refused(b"#!/bin/sh\n"), Refused::Malformed);
    let mut elf = std::fs::read("/bin/true").unwrap();
    elf[18] = 183;
    assert_eq!(refused(&elf), Refused::Machine);
    elf[18] = 62;
    assert_eq!(refused(&elf[..elf.len() / 4]), Refused::Malformed);
}
