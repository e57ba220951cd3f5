//! Against interpreters: those that there are, `co_positions` and `traceback` being the other opinion.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use super::super::unwind::Files;
use super::super::{SlotId, SymbolizerConfig};
use super::*;

/// Debian's interpreter, and what pyenv built, with their minor versions.
fn all_interpreters() -> Vec<(PathBuf, u16)> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    let built = home.and_then(|home| std::fs::read_dir(home).ok());
    let built = built
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path());
    let all = built
        .map(|path| path.join("bin/python3"))
        .chain([PathBuf::from("/usr/bin/python3")]);
    let minor = |path: &PathBuf| {
        let code = "import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else 0)";
        let output = Command::new(path).args(["-c", code]).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    all.filter_map(|path| {
        let minor = minor(&path)?;
        Some((path, minor))
    })
    .collect()
}

/// Those whose frames are known.
fn interpreters() -> Vec<(PathBuf, u16)> {
    let mut known = all_interpreters();
    known.retain(|(_, minor)| layout::of(*minor).is_some());
    assert!(
        !known.is_empty(),
        "no python3 of 3.11 or later: cargo xtask setup --tests"
    );
    known
}

struct Python {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Python {
    fn start(path: &Path, code: &str) -> Self {
        let mut process = Command::new(path)
            .args(["-c", code])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self { process, lines }
    }

    fn says(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).ok()
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _status = self.process.wait();
    }
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap().as_bytes();
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.chunks(2).map(byte).collect()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// Each instruction of all functions of some hundred modules of the standard library, comprehensions, generators, long
/// functions and code without lines among them.
const TABLES: &str = r#"
import glob, json, os, sys
def tell(code):
    lines = [line or 0 for line, *_ in code.co_positions()]
    print(json.dumps([code.co_linetable.hex(), code.co_firstlineno, lines]))
    for const in code.co_consts:
        if hasattr(const, "co_code"):
            tell(const)
lib = os.path.dirname(os.__file__)
for path in sorted(glob.glob(lib + "/[a-f]*.py")):
    tell(compile(open(path, "rb").read(), path, "exec"))
    tell(compile("\n" * 3000 + "x = (\n\n\n1 +\n\n" + "\n" * 500 + "f(2)\n)\n", path, "exec"))
"#;

#[test]
fn lines_are_those_that_each_interpreter_says_itself() {
    for (path, minor) in interpreters() {
        let mut python = Python::start(&path, TABLES);
        let (mut codes, mut instructions) = (0, 0);
        while let Some(told) = python.says() {
            let table = hex(&told[0]);
            let first = u32::try_from(number(&told[1])).unwrap();
            let lines = told[2].as_array().unwrap();
            for (at, expected) in (0u32..).zip(lines) {
                let found = lines::line(&table, first, at).unwrap_or(0);
                assert_eq!(u64::from(found), number(expected), "3.{minor}: {at} of {told}");
            }
            let end = u32::try_from(lines.len()).unwrap();
            assert_eq!(lines::line(&table, first, end), None);
            (codes, instructions) = (codes + 1, instructions + lines.len());
        }
        assert!(codes > 1_000 && instructions > 60_000, "{codes} {instructions}");
    }
}

#[test]
fn a_damaged_table_harms_nobody() {
    let whole = [0x80, 0, 0xd1, 9, 9, 0xe9, 0x41, 0x02, 0xf2, 4, 1, 2, 3, 0xf8];
    let end = 20;
    for cut in 0..whole.len() {
        for at in 0..end {
            let _any = lines::line(&whole[..cut], 7, at);
        }
    }
    // Lines beyond all bounds, and numbers that do not end.
    assert_eq!(
        lines::line(&[0xe8, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x3f], 7, 0),
        None
    );
    assert_eq!(lines::line(&[0xe8; 64], 7, 0), None);
    assert_eq!(lines::line(&[0x7f; 64], 7, 0), None);
    assert_eq!(lines::line(&[0xe8, 17], 7, 0), None, "a negative line");
}

/// Says where its code objects are, in names of each kind, and where in them functions are that wait.
const OBJECTS: &str = r#"
import json, sys
class Café:
    def naïve(self): pass
    def Ωmega(self): pass
def 𝔘nicode():
    def inner():
        lines = (
            1,
            sys._getframe(),
        )
        return lines[1]
    return inner()
frame = 𝔘nicode()
codes = [Café.naïve.__code__, Café.Ωmega.__code__, 𝔘nicode.__code__, frame.f_code]
tell = [[id(code), code.co_qualname, code.co_filename, 0xffffffff, code.co_firstlineno] for code in codes]
tell.append([id(frame.f_code), frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lasti // 2,
             list(frame.f_code.co_positions())[frame.f_lasti // 2][0]])
renamed = codes[0].replace(co_name="no" + "t", co_filename="/srv/ü.py", co_firstlineno=70_000)
renamed = renamed.replace(co_qualname="Café.other")
tell.append([id(renamed), "Café.other", "/srv/ü.py", 0xffffffff, 70_000])
print(json.dumps([tell, id(frame), id("text"), id(Café)]), flush=True)
sys.stdin.read()
"#;

#[test]
fn code_objects_are_read_as_their_interpreter_says() {
    let proc = SymbolizerConfig::default().proc;
    for (path, minor) in interpreters() {
        let mut python = Python::start(&path, OBJECTS);
        let told = python.says().unwrap();
        let key = (SlotId(5), python.process.id());
        let (mut codes, mut names) = (Codes::default(), Names::default());
        let source = Source::new(&proc, key, true);
        let stack = |code, instruction| PythonStack {
            minor,
            whole: true,
            returned: false,
            frames: vec![PythonFrame {
                code,
                instruction,
                entry: true,
            }],
        };
        let all = told[0].as_array().unwrap();
        for one in all {
            let at = u32::try_from(number(&one[3])).unwrap();
            let (runs, named) = codes.runs(&source, &mut names, &stack(number(&one[0]), at), 1);
            let frame = &runs.runs[0][0];
            let said = (frame.function.as_deref(), frame.file.as_deref(), frame.line);
            let line = u32::try_from(number(&one[4])).unwrap();
            assert_eq!(said, (one[1].as_str(), one[2].as_str(), line), "3.{minor}");
            assert!(named && &*frame.module == MODULE);
        }
        // What is none, and what is nowhere.
        let others = [
            number(&told[1]),
            number(&told[2]),
            number(&told[3]),
            0,
            8,
            u64::MAX,
        ];
        for other in others {
            let (runs, named) = codes.runs(&source, &mut names, &stack(other, 0), 1);
            assert!(!named && runs.cut && runs.runs == [[]], "3.{minor}: {other:#x}");
        }
        // What was read is known after the end of the process, and nothing else.
        let first = stack(number(&all[0][0]), u32::MAX);
        assert_eq!(codes.version(&source, &first, 2), 0);
        drop(python);
        let source = Source::new(&proc, key, false);
        assert_eq!(codes.version(&source, &first, 3), 0);
        let (runs, named) = codes.runs(&source, &mut names, &first, 3);
        assert!(named && runs.runs[0][0].function.as_deref() == all[0][1].as_str());
        let known = codes.known.len();
        assert_eq!(known, 5, "the frame's code object is one with the function's");
    }
}

/// Says what tells its threads apart, of two of them.
const THREADS: &str = r#"
import json, sys, threading
thread = threading.Thread(target=sys.stdin.read)
thread.start()
print(json.dumps([threading.get_ident(), thread.ident]), flush=True)
thread.join()
"#;

#[test]
fn an_interpreter_is_found_with_its_threads_or_refused_by_its_version() {
    let config = SymbolizerConfig::default();
    let mut files = Files::new(config.clone());
    for (path, minor) in all_interpreters().into_iter().filter(|(_, minor)| *minor >= 7) {
        let mut python = Python::start(&path, THREADS);
        let told = python.says().unwrap();
        let pid = python.process.id();
        let mut interpreters = Interpreters::default();
        let mappings = files.mappings(pid).unwrap();
        let mut named = mappings.iter().filter(|mapping| mapping.path.contains("python"));
        let found = named.find_map(|mapping| interpreters.interpreter(&mut files, pid, mapping));
        if layout::of(minor).is_none() {
            assert_eq!(found, Some(Err(NoFrames::Old)), "3.{minor}");
            continue;
        }
        let process = found.unwrap().unwrap();
        assert_eq!(process.minor, minor);
        let memory = Memory::open(&config.proc, pid).unwrap();
        let at = |base: u64, offset: u16| memory.word(base + u64::from(offset)).unwrap();
        let mut threads = Vec::new();
        let mut thread = at(at(process.head, 0), process.interpreter_threads);
        while thread != 0 {
            threads.push(at(thread, process.thread_id));
            thread = at(thread, process.thread_next);
        }
        let mut expected: Vec<u64> = told.as_array().unwrap().iter().map(number).collect();
        threads.sort_unstable();
        expected.sort_unstable();
        assert_eq!(threads, expected, "3.{minor}");
    }
}

fn frame(module: &str, function: &str) -> Frame {
    Frame {
        function: Some(function.into()),
        ..bare(&module.into(), 0)
    }
}

/// Merges runs with the native frames of as many addresses, and says which frames there are; `...` where it is cut off.
fn merged(runs: &[&[&str]], cut: bool, native: &[&[&str]], truncated: bool, entering: bool) -> String {
    let file = |name: &str| name.starts_with("py").then(|| "/srv/shop.py".into());
    let frames = |names: &[&str]| -> Vec<Frame> {
        let module = |name: &str| if name.starts_with("py") { MODULE } else { "python3" };
        let each = |name: &&str| match name.split_once('@') {
            // A perf map's.
            Some((name, _)) => Frame {
                file: file(name),
                ..frame("[jit]", name)
            },
            None if *name == "?" => bare(&MODULE.into(), 0),
            None => Frame {
                file: file(name),
                ..frame(module(name), name)
            },
        };
        names.iter().map(each).collect()
    };
    let runs = Runs {
        runs: runs.iter().map(|run| frames(run)).collect(),
        cut,
    };
    let native = native.iter().map(|here| frames(here)).collect();
    let merged = runs.merge(native, truncated, entering);
    let names = merged.frames.iter().map(|(_, frame)| match &frame.function {
        Some(name) if &**name == merge::LOOP => "LOOP",
        Some(name) => name,
        None => "?",
    });
    names
        .chain(merged.cut.then_some("..."))
        .collect::<Vec<_>>()
        .join(" ")
}

const LOOP: &[&str] = &["call_function", merge::LOOP];

#[test]
fn each_run_takes_the_place_of_one_frame_of_the_loop() {
    let runs: &[&[&str]] = &[&["py_load"], &["py_handle", "py_worker"]];
    let native: &[&[&str]] = &[&["open64"], LOOP, &["map_next"], LOOP, &["start_thread"]];
    let whole = merged(runs, false, native, false, false);
    assert_eq!(whole, "open64 py_load map_next py_handle py_worker start_thread");
    // With `-X perf`, a function's own code calls the loop for it. One that has not begun is in no list.
    let own: &[&str] = &["py_load@"];
    let native: &[&[&str]] = &[LOOP, own, &["map_next"], LOOP, &["py_worker@"], &["py_other@"]];
    let perf = merged(runs, false, native, false, false);
    assert_eq!(perf, "py_load map_next py_handle py_worker py_other");
    // A loop that has no name there is further out than its function.
    let perf = merged(runs, false, &native[1..], false, false);
    assert_eq!(perf, "map_next py_load py_other py_handle py_worker");
}

#[test]
fn a_loop_that_begins_or_ends_leaves_the_others_their_places() {
    let native: &[&[&str]] = &[&["free"], LOOP, &["map_next"], LOOP, &["start_thread"]];
    let (one, two): (&[&[&str]], &[&[&str]]) = (&[&["py_worker"]], &[&["py_before"], &["py_worker"]]);
    let kept = "free call_function LOOP map_next py_worker start_thread";
    assert_eq!(merged(one, false, native, false, false), kept);
    // Where the native walk broke off nothing can be counted from the outermost one, but since 3.12 the list may say so.
    let returned: &[&[&str]] = &[&[], &["py_worker"]];
    for (whole, truncated) in [(native, false), (&native[..4], true), (&native[..3], true)] {
        let tail = if truncated { "" } else { " start_thread" };
        let kept = format!("free call_function LOOP map_next py_worker{tail}");
        assert_eq!(merged(returned, false, whole, truncated, false), kept);
    }
    // In the first instructions of the loop, what is in the list may be of an earlier call.
    let native = &native[1..];
    assert_eq!(merged(two, false, native, false, true), kept[5..]);
    assert_eq!(merged(one, false, native, false, true), kept[5..]);
    assert_eq!(
        merged(&[], false, native, false, true),
        "call_function LOOP map_next call_function LOOP start_thread"
    );
}

#[test]
fn what_is_not_whole_is_told() {
    let native: &[&[&str]] = &[&["free"], LOOP, &["map_next"], LOOP, &["start_thread"]];
    let deep: &[&[&str]] = &[&["py_deep", "py_deep"]];
    assert_eq!(
        merged(deep, true, native, false, false),
        "free py_deep py_deep ..."
    );
    let garbage: &[&[&str]] = &[&["py_load"], &[]];
    let found = merged(garbage, true, native, false, false);
    assert_eq!(found, "free py_load map_next call_function LOOP ...");
    // The native walk broke off: Python's functions are its callers all the same.
    let runs: &[&[&str]] = &[&["py_load"], &["py_worker"]];
    assert_eq!(
        merged(runs, false, &native[..1], true, false),
        "free py_load py_worker"
    );
    assert_eq!(
        merged(runs, false, &native[..2], true, false),
        "free py_load py_worker"
    );
    // The process was gone before names were read.
    let nameless: &[&[&str]] = &[&["?"], &["?", "py_worker"]];
    let found = merged(nameless, false, native, false, false);
    assert_eq!(found, "free call_function LOOP map_next ? py_worker start_thread");
}

#[test]
fn an_interpreter_that_tells_its_layout_has_to_agree() {
    let layout = layout::of(13).unwrap();
    let told = [0; layout::TOLD];
    assert!(!layout::agrees(layout, &told));
    assert!(layout::of(10).is_none() && layout::of(14).is_none());
}
