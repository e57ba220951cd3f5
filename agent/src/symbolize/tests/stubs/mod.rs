//! Stubs of linkers against what binutils say of them, and sections in which symbols end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::separate::{run, text};
use super::{functions, resolve, start_program, stop};
use crate::symbolize::{OwnerRule, Symbolizer, SymbolizerConfig};

mod damaged;

/// Calls by stubs of all sections: `abs` and `malloc` are also used by their address, which makes a slot of another kind.
const CALLS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __cplusplus
#include <string>
#endif
int main(int count, char **arguments) {
    int (*volatile chosen)(int) = abs;
    void *(*volatile give)(size_t) = malloc;
#ifdef __cplusplus
    std::string name(arguments[0]);
    delete new int(name.compare("shop"));
#endif
    printf("%p\n", (void *)main);
    fflush(stdout);
    free(give(abs(count)));
    free(malloc(atoi(arguments[0]) + strlen(arguments[0])));
    char c;
    return (int)read(0, &c, 1) + chosen(0);
}
"#;

struct Program {
    _dir: tempfile::TempDir,
    whole: PathBuf,
    stripped: PathBuf,
}

fn build(compiler: &str, options: &[&str]) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("shop.c"), CALLS).unwrap();
    let mut all = vec!["-O0", "-fno-builtin", "-o"];
    let (source, whole, stripped) = (at("shop.c"), at("whole"), at("stripped"));
    all.extend([text(&whole), text(&source)]);
    all.extend(options);
    run(compiler, &all);
    run("strip", &["-o", text(&stripped), text(&whole)]);
    Program {
        _dir: dir,
        whole,
        stripped,
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// Addresses of the functions of a program by `nm`.
fn symbols(program: &Path) -> BTreeMap<u64, Vec<String>> {
    let mut symbols = BTreeMap::<u64, Vec<String>>::new();
    for line in output("nm", &["--defined-only", text(program)]).lines() {
        let mut words = line.split(' ');
        let (at, _, name) = (words.next().unwrap(), words.next(), words.next().unwrap());
        symbols.entry(hex(at)).or_default().push(name.to_owned());
    }
    symbols
}

fn address_of(program: &Path, function: &str) -> u64 {
    let symbols = symbols(program);
    let mut found = symbols
        .iter()
        .filter(|(_, names)| names.iter().any(|name| name == function));
    *found.next().unwrap().0
}

/// Name and range of the sections with stubs, by `readelf`.
fn sections(program: &Path) -> Vec<(String, std::ops::Range<u64>)> {
    let headers = output("readelf", &["-SW", text(program)]);
    let of = |line: &str| {
        let words: Vec<_> = line.split_once("] ")?.1.split_whitespace().collect();
        let at = words.first()?.starts_with(".plt").then(|| hex(words[2]))?;
        Some((words[0].to_owned(), at..at + hex(words[4])))
    };
    headers.lines().filter_map(of).collect()
}

/// What each instruction of a section is in by `objdump`: `NAME@plt`, or nothing where no stub of a function's is. Stubs that ask the
/// linker to bind one have no label; `readelf` tells of which relocation they push the number.
fn truth(program: &Path, section: &str) -> Vec<(u64, Option<String>)> {
    let relocations = output("readelf", &["-rW", text(program)]);
    let numbered: Vec<_> = relocations
        .lines()
        .skip_while(|line| !line.contains("'.rela.plt'"))
        .filter_map(|line| line.split_once("JUMP_SLO")?.1.split_whitespace().nth(2))
        .map(|name| format!("{}@plt", name.split('@').next().unwrap()))
        .collect();
    let disassembled = output("objdump", &["-dCw", "-j", section, text(program)]);
    let mut label = None;
    let instruction = |line: &str| {
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            label = name.ends_with("@plt").then(|| name.to_owned());
        }
        let (at, code) = line.split_once(":\t")?;
        Some((hex(at.trim()), code.to_owned(), label.clone()))
    };
    let code: Vec<_> = disassembled.lines().filter_map(instruction).collect();
    let pushed = |at: usize| {
        let number = code.get(at)?.1.split_once("push   $")?.1;
        numbered.get(usize::try_from(hex(number.trim())).unwrap())
    };
    let mut unlabelled = None;
    let all = code.iter().enumerate().map(|(index, (at, code, label))| {
        if code.contains("endbr64") {
            unlabelled = pushed(index + 1).cloned();
        }
        (*at, label.clone().or_else(|| unlabelled.clone()))
    });
    all.collect()
}

fn named(symbolizer: &mut Symbolizer, pid: u32, address: u64) -> Option<String> {
    let stack = resolve(symbolizer, pid, vec![address]);
    let frame = stack.frames.first().unwrap();
    frame.function.as_deref().map(str::to_owned)
}

fn compare(program: &Program, wanted: &[&str]) {
    let main = address_of(&program.whole, "main");
    for file in [&program.whole, &program.stripped] {
        let (mut child, address) = start_program(file);
        let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
        let mut seen = Vec::new();
        for (section, range) in sections(file) {
            let truth = truth(&program.whole, &section);
            assert!(truth.iter().any(|(_, name)| name.is_some()), "{section}");
            for (at, expected) in truth {
                let found = named(&mut symbolizer, child.id(), at + (address - main));
                assert_eq!(found, expected, "{section} {at:x} of {}", file.display());
                assert!(range.contains(&at));
                seen.extend(expected.map(|name| format!("{section} {name}")));
            }
        }
        stop(&mut child);
        for wanted in wanted {
            assert!(seen.iter().any(|seen| seen == wanted), "{wanted}: {seen:?}");
        }
    }
}

#[test]
fn stubs_are_named_as_by_objdump() {
    let got = [".plt.got abs@plt", ".plt.got malloc@plt"];
    let lazy = [".plt atoi@plt", ".plt printf@plt", ".plt free@plt"];
    for options in [&["-Wl,-z,lazy"][..], &["-Wl,-z,now"], &["-no-pie"]] {
        compare(&build("gcc", options), &[&got[..], &lazy].concat());
    }
    let protected = [".plt.sec atoi@plt", ".plt.sec free@plt"];
    for bound in ["-Wl,-z,lazy", "-Wl,-z,now"] {
        let options = [bound, "-fcf-protection=full", "-Wl,-z,ibtplt"];
        compare(&build("gcc", &options), &[&got[..], &protected, &lazy].concat());
    }
    compare(&build("gcc", &["-fuse-ld=gold"]), &lazy);
    let cpp = [".plt operator new(unsigned long)@plt"];
    compare(&build("g++", &[]), &[&got[..1], &lazy, &cpp].concat());
}

#[test]
fn a_debugger_agrees() {
    let program = build("gcc", &[]);
    let (_, range) = sections(&program.whole)
        .into_iter()
        .find(|(section, _)| section == ".plt.got")
        .unwrap();
    let asked: Vec<_> = range.clone().map(|at| format!("info symbol {at:#x}")).collect();
    let mut arguments = vec!["-batch", text(&program.whole)];
    arguments.extend(asked.iter().flat_map(|asked| ["-ex", asked]));
    let said = output("gdb", &arguments);
    let said: Vec<_> = said.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(said.len() as u64, range.end - range.start);
    let main = address_of(&program.whole, "main");
    let (mut child, address) = start_program(&program.stripped);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    for (at, said) in range.zip(said) {
        let found = named(&mut symbolizer, child.id(), at + (address - main));
        assert_eq!(found.as_deref(), Some(said), "{at:x}");
    }
    stop(&mut child);
}

/// In a static program, the function that a stub leads to is chosen as the program starts.
#[test]
fn stubs_of_functions_that_are_chosen() {
    let program = build("gcc", &["-static"]);
    let symbols = symbols(&program.whole);
    let relocations = output("readelf", &["-rW", text(&program.whole)]);
    let chosen: BTreeMap<u64, u64> = relocations
        .lines()
        .filter_map(|line| line.split_once("R_X86_64_IRELATIV"))
        .map(|(slot, by)| {
            let by = by.split_whitespace().last().unwrap();
            (hex(slot.split(' ').next().unwrap()), hex(by))
        })
        .collect();
    let (mut child, _) = start_program(&program.whole);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let disassembled = output("objdump", &["-dw", "-j", ".plt", text(&program.whole)]);
    let stubs = disassembled.lines().filter_map(|line| {
        let (at, code) = line.split_once(":\t")?;
        let slot = code.split_once("# ")?.1.split(' ').next()?;
        Some((hex(at.trim()), hex(slot)))
    });
    let mut count = 0;
    for (at, slot) in stubs {
        let found = named(&mut symbolizer, child.id(), at).unwrap();
        let name = found.strip_suffix("@plt").unwrap();
        let names = &symbols[&chosen[&slot]];
        assert!(
            names.iter().any(|each| each == name),
            "{name} is none of {names:?}"
        );
        count += 1;
    }
    stop(&mut child);
    assert!(count > 10 && count == chosen.len(), "{count}");
}

#[test]
fn a_symbol_ends_with_its_section() {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("shop.s"), dir.path().join("shop"));
    let two = r#"
        .section .shop.named,"ax",@progbits
        shop_named: .fill 64, 1, 0x90
        .section .shop.other,"ax",@progbits
        .fill 64, 1, 0x90
        .section .shop.last,"ax",@progbits
        shop_last: .fill 8, 1, 0x90
        .globl shop_load
        .text
        .type shop_load, @function
        shop_load: ret
        .size shop_load, . - shop_load
        .section .note.GNU-stack,"",@progbits
    "#;
    std::fs::write(&source, two).unwrap();
    let main = dir.path().join("main.c");
    let text_of_main = super::PROGRAM.replace(
        "__attribute__((noinline)) int shop_load(int x) {\n    return inner(x + 1) + 1; /* line 9 */\n}",
        "int shop_load(int x);",
    );
    std::fs::write(&main, text_of_main).unwrap();
    run("gcc", &["-O1", "-o", text(&program), text(&main), text(&source)]);
    let at = |wanted| address_of(&program, wanted);
    let (mut child, address) = start_program(&program);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let base = address - at("shop_load");
    let mut name = |address| named(&mut symbolizer, child.id(), base + address);
    let begin = at("shop_named");
    assert_eq!(at("shop_last") - begin, 128);
    for offset in [0, 1, 63] {
        assert_eq!(name(begin + offset).as_deref(), Some("shop_named"));
        assert_eq!(name(begin + 64 + offset), None, "{offset}");
    }
    assert_eq!(name(begin + 128).as_deref(), Some("shop_last"));
    stop(&mut child);
}

#[test]
fn a_stub_is_its_callers() {
    let program = build("gcc", &[]);
    let (mut child, address) = start_program(&program.whole);
    let main = address_of(&program.whole, "main");
    let got = sections(&program.whole).pop().unwrap().1.start;
    // Whatever a rule says of the file.
    let own = OwnerRule {
        module: Some("*".into()),
        own: true,
        ..OwnerRule::default()
    };
    for owner_rules in [Vec::new(), vec![own]] {
        let mut symbolizer = Symbolizer::new(SymbolizerConfig {
            owner_rules,
            ..SymbolizerConfig::default()
        });
        let stack = resolve(
            &mut symbolizer,
            child.id(),
            vec![got + (address - main), address + 1],
        );
        assert_eq!(functions(&stack), ["abs@plt", "main"]);
        assert_eq!(&*stack.owner.function, "main");
    }
    // Nor is it an answer where all of the program is a runtime's.
    let runtime = OwnerRule {
        function: Some("main".into()),
        ..OwnerRule::default()
    };
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        owner_rules: vec![runtime],
        ..SymbolizerConfig::default()
    });
    let stack = resolve(
        &mut symbolizer,
        child.id(),
        vec![got + (address - main), address + 1],
    );
    assert_eq!(&*stack.owner.function, "main");
    stop(&mut child);
}
