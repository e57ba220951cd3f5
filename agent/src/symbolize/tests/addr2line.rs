//! Stripped programs of several languages with their debug files, address by address against binutils' `addr2line`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::programs::{C, CPP, GO, RUST};
use super::separate::{build_id, config, run, text};
use super::{read_address, resolve, stop};
use crate::symbolize::{DebugFile, Stack, Symbolizer};

/// Functions in a program: address and size, by `nm`.
fn symbols(program: &Path) -> Vec<(u64, u64, String)> {
    let output = Command::new("nm")
        .args(["-S", "--defined-only"])
        .arg(program)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let of = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [at, size, "t" | "T" | "W", name] => Some((hex(at), hex(size), name.to_owned())),
        _ => None,
    };
    output.lines().filter_map(of).collect()
}

/// What `addr2line` says, innermost first: function, base name of the file, line.
type Frames = Vec<(String, String, u32)>;

/// It knows the names of C++; those of Rust are left to Rust's own library.
fn addr2line(program: &Path, addresses: &[u64], cpp: bool) -> Vec<Frames> {
    let mut child = Command::new("addr2line")
        .args(["-a", "-f", if cpp { "-iC" } else { "-i" }, "-e", text(program)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let asked: Vec<String> = addresses.iter().map(|a| format!("{a:x}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(asked.concat().as_bytes()).unwrap());
    let mut found: Vec<Frames> = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.starts_with("0x") {
            found.push(Vec::new());
            continue;
        }
        let place = lines.next().unwrap().unwrap();
        let place = place.split(" (").next().unwrap();
        let (file, number) = place.rsplit_once(':').unwrap();
        let file = file.rsplit('/').next().unwrap().to_owned();
        found
            .last_mut()
            .unwrap()
            .push((line, file, number.parse().unwrap_or(0)));
    }
    writer.join().unwrap();
    child.wait().unwrap();
    found
}

fn frames(stack: &Stack) -> Frames {
    let of = |frame: &crate::symbolize::Frame| {
        let file = frame.file.as_deref().unwrap_or("??");
        (
            frame.function.as_deref().unwrap_or("??").to_owned(),
            file.rsplit('/').next().unwrap().to_owned(),
            frame.line,
        )
    };
    stack.frames.iter().map(|frame| of(frame)).collect()
}

/// The agent cuts very long names. Of those of C++, parameters and arguments of templates are left out: demanglers differ in
/// them (`cpp_demangle` forgets the first parameter of a constructor that is a template).
fn same_function(ours: &str, theirs: &str, cpp: bool) -> bool {
    let theirs = match rustc_demangle::try_demangle(theirs) {
        Ok(name) => format!("{name:#}"),
        Err(_) => theirs.to_owned(),
    };
    let outside = |name: &str| {
        let mut depth = 0;
        let of = |c: &char| {
            depth += i32::from(cpp && "(<".contains(*c));
            let outside = depth <= 0 && !c.is_whitespace();
            depth -= i32::from(cpp && ")>".contains(*c));
            outside
        };
        name.chars().filter(of).collect::<String>()
    };
    // Of names that the agent's demangler cannot read, the beginning; `addr2line` also says what they return.
    if cpp && ours.ends_with("<…>") {
        return outside(&theirs).contains(&outside(ours));
    }
    match ours.strip_suffix('…') {
        Some(cut) => outside(&theirs).starts_with(&outside(cut)),
        None => outside(ours) == outside(&theirs),
    }
}

/// Compiles, strips, and compares at each address of each function that DWARF describes; without its debug file where the program
/// is to be read by Go's own table.
fn compare(language: &str, compile: &[&str], name: &str, source: &str, least: usize) {
    let by_table = language == "Go, by its table";
    let is_go = language.starts_with("Go");
    let lines_in_source = u32::try_from(source.lines().count()).unwrap();
    let cpp = language == "C++";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at(name), source).unwrap();
    let (compiler, options) = compile.split_first().unwrap();
    let whole = at("whole");
    let mut all = options.to_vec();
    let source = at(name);
    all.extend(["-o", text(&whole), text(&source)]);
    run(compiler, &all);
    run(
        "objcopy",
        &["--only-keep-debug", text(&whole), text(&at("shop.debug"))],
    );
    run("strip", &["-o", text(&at("shop")), text(&whole)]);
    if !by_table {
        let link = format!("--add-gnu-debuglink={}", at("shop.debug").display());
        run("objcopy", &[&link, text(&at("shop"))]);
    }

    let mut symbols = symbols(&whole);
    symbols.sort_by_key(|(_, _, symbol)| {
        !["shop", "checkout", "main"]
            .iter()
            .any(|own| symbol.contains(own))
    });
    let of = |name: &str| symbols.iter().find(|(_, _, n)| n == name).unwrap().0;
    let addresses: Vec<u64> = symbols
        .iter()
        .flat_map(|(at, size, _)| (*at..at + size).step_by(3))
        .take(6_000)
        .collect();
    let expected = addr2line(&whole, &addresses, cpp);
    assert_eq!(expected.len(), addresses.len());
    let mut child = Command::new(at("shop"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bias = read_address(&mut child) - of(if is_go { "main.checkout" } else { "checkout" });
    let mut symbolizer = Symbolizer::new(config(Path::new("/nowhere")));
    let (mut compared, mut inlined) = (0, 0);
    let mut different = Vec::new();
    for (address, expected) in addresses.iter().zip(&expected) {
        // Without lines there is nothing to compare. And binutils 2.40 names the source itself where the lines are those of a
        // header.
        let beyond = |file: &str, line: u32| file == name && line > lines_in_source;
        let wrong =
            |(_, file, line): &(String, String, u32)| file == "??" || *line == 0 || beyond(file, *line);
        if expected.iter().any(wrong) {
            continue;
        }
        let found = frames(&resolve(&mut symbolizer, child.id(), vec![address + bias]));
        compared += 1;
        inlined += usize::from(expected.len() > 1);
        let same = found.len() == expected.len()
            && found.iter().zip(expected).enumerate().all(|(index, (a, b))| {
                // Where Go inlines, binutils 2.40 gives the innermost function the name of the outermost.
                let misnamed = is_go && index == 0 && expected.last().is_some_and(|last| last.0 == b.0);
                a.1 == b.1 && a.2 == b.2 && (misnamed || same_function(&a.0, &b.0, cpp))
            });
        if !same {
            different.push(format!("{address:#x}\n  {found:?}\n  {expected:?}"));
        }
    }
    stop(&mut child);
    eprintln!(
        "{language}: {compared} addresses, {inlined} of them inlined, {} different",
        different.len()
    );
    assert!(compared >= least && inlined > 0, "{compared} {inlined}");
    assert!(
        different.is_empty(),
        "{}: {}",
        different.len(),
        different[..different.len().min(9)].join("\n")
    );
    let by = if by_table {
        DebugFile::GoTable
    } else {
        DebugFile::DebugLink
    };
    assert_eq!(symbolizer.stats().debug_files(by), 1);
}

#[test]
fn c() {
    compare("C", &["gcc", "-O2", "-g"], "shop.c", C, 100);
    compare(
        "C, DWARF 4",
        &["gcc", "-O2", "-gdwarf-4", "-gz=zlib"],
        "shop.c",
        C,
        100,
    );
}

#[test]
fn cpp() {
    compare(
        "C++",
        &["g++", "-std=c++17", "-O2", "-g", "-rdynamic"],
        "shop.cc",
        CPP,
        1000,
    );
}

#[test]
fn rust() {
    for names in ["legacy", "v0"] {
        // The old names need an option that new compilers take only so.
        let mangling = format!("-Csymbol-mangling-version={names}");
        let compile = [
            "env",
            "RUSTC_BOOTSTRAP=1",
            "rustc",
            "-Awarnings",
            "-Zunstable-options",
            &mangling,
        ];
        let compile = [&compile[..], &["-Copt-level=2", "-g"]].concat();
        compare(names, &compile, "shop.rs", RUST, 1000);
    }
}

#[test]
fn go() {
    if Command::new("go").arg("version").output().is_err() {
        return;
    }
    let compile = ["env", "CGO_ENABLED=0", "GO111MODULE=off", "go", "build"];
    compare("Go", &compile, "shop.go", GO, 1000);
    compare("Go, by its table", &compile, "shop.go", GO, 1000);
    // Anywhere in memory, so that the table and what points to it are relocated.
    let anywhere = [&compile[..], &["-buildmode=pie"]].concat();
    compare("Go, by its table", &anywhere, "shop.go", GO, 1000);
}

/// The C library with the debug file that the distribution ships for it, where that is installed.
#[test]
fn the_c_library_of_the_host() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let library = maps
        .lines()
        .find_map(|line| line.split_whitespace().nth(5).filter(|p| p.contains("libc.so")));
    let id = build_id(Path::new(library.unwrap()));
    let (first, rest) = id.split_at(2);
    let debug = format!("/usr/lib/debug/.build-id/{first}/{rest}.debug");
    let debug = Path::new(&debug);
    if !debug.exists() {
        return;
    }
    let symbols = symbols(debug);
    let getppid = libc::getppid as unsafe extern "C" fn() -> i32 as usize as u64;
    let bias = getppid - symbols.iter().find(|(_, _, name)| name == "getppid").unwrap().0;
    let addresses: Vec<u64> = symbols
        .iter()
        .flat_map(|(at, size, _)| (*at..at + size).step_by(37))
        .collect();
    let expected = addr2line(debug, &addresses, false);
    let mut symbolizer = Symbolizer::new(config(Path::new("/")));
    let mut different = Vec::new();
    for (address, expected) in addresses.iter().zip(&expected) {
        let found = frames(&resolve(
            &mut symbolizer,
            std::process::id(),
            vec![address + bias],
        ));
        // Functions of this library have many names each, and binutils 2.40 names the source itself where it includes another.
        let lines = |frames: &Frames| -> Vec<_> { frames.iter().map(|f| f.2).collect() };
        if lines(&found) != lines(expected) {
            different.push(format!("{address:#x}\n  {found:?}\n  {expected:?}"));
        }
    }
    let stats = symbolizer.stats();
    eprintln!(
        "libc: {} addresses, {} different",
        addresses.len(),
        different.len()
    );
    assert_eq!(stats.debug_files(DebugFile::BuildId), 1);
    assert!(
        different.len() * 1000 < addresses.len(),
        "{}",
        different[..9].join("\n")
    );
}
