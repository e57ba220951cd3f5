//! Real processes: this one, and small C programs compiled for the purpose. No root needed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;

mod addr2line;
mod captured;
mod damaged;
mod debuginfod;
mod files;
mod go;
mod hostile;
mod owned;
mod programs;
mod reading;
mod separate;
mod stubs;

// On one line: with optimization, the first instruction is of the body.
const LINE: u32 = line!() + 3;
#[inline(never)]
#[rustfmt::skip]
fn a_function_with_a_name() -> u64 { std::hint::black_box(7) }

fn sample(pid: u32, user: Vec<u64>) -> (StackSample, Arc<Service>) {
    let service = Service {
        name: "shop".into(),
        namespace: String::new(),
        version: String::new(),
    };
    let sample = StackSample {
        slot: SlotId(1),
        pid,
        tid: pid,
        kind: StackKind::Wait,
        detail: StackDetail::wait(Cause::Lock, Some(202)),
        weight: 5.0,
        own: 0.0,
        user,
        interrupted: 0,
        unfolded: false,
        kernel: Vec::new(),
        python: PythonStack::default(),
        unwind: UnwindResult::Complete,
    };
    (sample, Arc::new(service))
}

fn resolve(symbolizer: &mut Symbolizer, pid: u32, user: Vec<u64>) -> SharedStack {
    let (sample, service) = sample(pid, user);
    symbolizer.resolve(&sample, service).stack
}

fn functions(stack: &Stack) -> Vec<&str> {
    stack
        .frames
        .iter()
        .map(|frame| frame.function.as_deref().unwrap_or("?"))
        .collect()
}

/// A frame that a signal interrupted at the first instruction of a function is in that function, a return address there is in
/// the one before.
#[test]
fn an_interrupted_frame_is_where_it_stopped() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        max_image_bytes: 1 << 30,
        max_parse: std::time::Duration::from_secs(600),
        ..SymbolizerConfig::default()
    });
    let entry = a_function_with_a_name as fn() -> u64 as usize as u64;
    let (mut sample, service) = sample(std::process::id(), vec![entry, entry]);
    for (interrupted, there) in [(0b10, true), (0, false)] {
        sample.interrupted = interrupted;
        let stack = symbolizer.resolve(&sample, Arc::clone(&service)).stack;
        let function = stack.frames.last().and_then(|frame| frame.function.as_deref());
        let named = function.is_some_and(|name| name.ends_with("a_function_with_a_name"));
        assert_eq!(named, there, "{interrupted:b}: {function:?}");
    }
}

#[test]
fn own_function_with_its_line() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        max_image_bytes: 1 << 30,
        max_images_bytes: 1 << 30,
        max_file_bytes: 1 << 31,
        max_parse: std::time::Duration::from_secs(300),
        ..SymbolizerConfig::default()
    });
    let address = a_function_with_a_name as fn() -> u64 as usize as u64;
    let stack = resolve(&mut symbolizer, std::process::id(), vec![address]);
    // With optimization, what it calls may be part of it.
    assert_eq!(
        functions(&stack).last(),
        Some(&"tieback::symbolize::tests::a_function_with_a_name")
    );
    let frame = stack.frames.last().unwrap();
    assert!(
        frame.file.as_deref().unwrap().ends_with("symbolize/tests/mod.rs"),
        "{frame:?}"
    );
    assert_eq!(frame.line, LINE, "{frame:?}");
    assert_eq!(
        frame.module,
        std::env::current_exe().unwrap().to_string_lossy().into()
    );
    assert_eq!(
        (&*stack.owner.file, symbolizer.stats().count(Outcome::Ok)),
        ("mod.rs", 1)
    );
}

#[test]
fn libc_and_vdso_have_names() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let getppid = libc::getppid as unsafe extern "C" fn() -> i32 as usize as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let vdso = maps::parse(&maps)
        .into_iter()
        .find(|mapping| &*mapping.path == "[vdso]")
        .unwrap();
    // Where a function of the vDSO is differs by kernel: look at every 16th byte.
    let addresses: Vec<_> = (vdso.range.start..vdso.range.end).step_by(16).collect();
    let stack = resolve(&mut symbolizer, std::process::id(), addresses);
    assert!(
        functions(&stack)
            .iter()
            .any(|function| function.ends_with("clock_gettime"))
    );
    let stack = resolve(&mut symbolizer, std::process::id(), vec![getppid]);
    assert!(functions(&stack)[0].ends_with("getppid"), "{stack:?}");
    assert!(stack.frames[0].module.contains("libc"));
    assert!(stack.frames[0].build_id.as_ref().is_some_and(|id| id.len() == 40));
}

#[test]
fn a_hot_stack_costs_no_second_look_up() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let getpid = libc::getpid as unsafe extern "C" fn() -> i32 as usize as u64;
    let first = resolve(&mut symbolizer, std::process::id(), vec![getpid]);
    let batch = vec![sample(std::process::id(), vec![getpid]); 50];
    let all = symbolizer.resolve_batch(batch, || None);
    assert!(
        all.iter()
            .all(|sample| Arc::ptr_eq(&sample.stack, &first) && sample.weight == 5.0)
    );
    let stats = symbolizer.stats();
    assert_eq!(
        (stats.stack_hits, stats.stack_misses, stats.address_misses),
        (50, 1, 1)
    );
    assert_eq!((stats.count(Outcome::Ok), stats.maps_read), (51, 1));
}

#[test]
fn what_cannot_be_resolved_is_counted() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    // Before another process of its slot is known.
    resolve(&mut symbolizer, u32::MAX >> 1, vec![0x10]);
    let stack = resolve(&mut symbolizer, std::process::id(), vec![0x10, 0x20]);
    assert_eq!(functions(&stack), ["?", "?"]);
    assert_eq!(&*stack.frames[0].module, "[unknown]");
    let stats = symbolizer.stats();
    assert_eq!(
        (stats.count(Outcome::NoModule), stats.count(Outcome::ProcessGone)),
        (2, 1)
    );
}

const PROGRAM: &str = r#"
#include <stdio.h>
#include <unistd.h>
static inline __attribute__((always_inline)) int inner(int x) {
    __asm__ volatile("nop; nop" : "+r"(x)); /* line 5 */
    return x;
}
__attribute__((noinline)) int shop_load(int x) {
    return inner(x + 1) + 1; /* line 9 */
}
int main(void) {
    printf("%p\n", (void *)shop_load);
    fflush(stdout);
    char c;
    return (int)read(0, &c, 1) + shop_load(1) * 0;
}
"#;

/// Compiles the program, starts it and gives the address of `shop_load` in it.
fn start(dir: &Path, options: &[&str]) -> (Child, u64) {
    let (source, program) = (dir.join("shop.c"), dir.join("shop"));
    std::fs::write(&source, PROGRAM).unwrap();
    let status = Command::new("gcc")
        .args(options)
        .arg("-O1")
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status()
        .unwrap();
    assert!(status.success());
    start_program(&program)
}

/// Starts a program that writes an address and waits for its input to end.
fn start_program(program: &Path) -> (Child, u64) {
    let mut command = Command::new(program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = loop {
        // Another test that started a program just when this file was written holds it open until it calls exec.
        match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            other => break other.unwrap(),
        }
    };
    let address = read_address(&mut child);
    (child, address)
}

fn read_address(child: &mut Child) -> u64 {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    u64::from_str_radix(line.trim().trim_start_matches("0x"), 16).unwrap()
}

fn stop(child: &mut Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn inlined_functions_and_lines() {
    let dir = tempfile::tempdir().unwrap();
    for options in [&["-g"][..], &["-g", "-gz=zlib"]] {
        let (mut child, address) = start(dir.path(), options);
        let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
        // Some instruction of the function is of the inlined one.
        let mut seen = Vec::new();
        for at in 0..12 {
            let stack = resolve(&mut symbolizer, child.id(), vec![address + at]);
            let frames: Vec<_> = stack
                .frames
                .iter()
                .map(|f| (f.function.clone().unwrap(), f.line, f.inlined))
                .collect();
            seen.push(frames);
        }
        stop(&mut child);
        let inner = |line| ("inner".into(), line, true);
        let outer = |line| ("shop_load".into(), line, false);
        assert!(
            seen.iter()
                .any(|frames| *frames == [inner(5), outer(9)] || *frames == [inner(6), outer(9)]),
            "{options:?} {seen:?}"
        );
        assert!(
            seen.iter()
                .any(|frames| frames.len() == 1 && frames[0].0 == "shop_load".into()),
            "{seen:?}"
        );
    }
}

#[test]
fn cpp_is_demangled_and_rust_has_no_hash() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("shop.cc");
    let mangled = "_ZN4shop6orders4load17h0123456789abcdefE";
    let text = format!(
        "#include <cstdio>\n#include <unistd.h>\n#include <string>\n\
         namespace shop {{ struct Cart {{ __attribute__((noinline)) static int add(const std::string &, int n) {{ return n; }} }}; }}\n\
         extern \"C\" __attribute__((noinline)) int legacy(int n) __asm__(\"{mangled}\");\n\
         extern \"C\" int legacy(int n) {{ return n + 1; }}\n\
         extern \"C\" __attribute__((noinline)) int v0(int n) __asm__(\"_RNvNtCs1234_4shop6orders4save\");\n\
         extern \"C\" int v0(int n) {{ return n + 2; }}\n\
         int main() {{ printf(\"%p %p %p\\n\", (void *)shop::Cart::add, (void *)legacy, (void *)v0);\n\
         fflush(stdout); char c; return read(0, &c, 1); }}\n"
    );
    std::fs::write(&source, text).unwrap();
    let program = dir.path().join("shop");
    for debug in ["-g0", "-g"] {
        let status = Command::new("g++")
            .args(["-O0", debug])
            .arg(&source)
            .arg("-o")
            .arg(&program)
            .status()
            .unwrap();
        assert!(status.success());
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
        // All but the first are return addresses, which point behind the call.
        let addresses = line
            .split_whitespace()
            .enumerate()
            .map(|(i, a)| hex(a) + u64::from(i > 0))
            .collect();
        let stack = resolve(
            &mut Symbolizer::new(SymbolizerConfig::default()),
            child.id(),
            addresses,
        );
        stop(&mut child);
        let found = functions(&stack);
        assert!(found[0].starts_with("shop::Cart::add(std::"), "{debug} {found:?}");
        // With debug information the language is known to be C++, and no name is taken for Rust.
        if debug == "-g0" {
            assert_eq!(found[1..], ["shop::orders::load", "shop::orders::save"]);
        }
    }
}

#[test]
fn stacks_share_their_frames() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let own = a_function_with_a_name as fn() -> u64 as usize as u64;
    let getpid = libc::getpid as unsafe extern "C" fn() -> i32 as usize as u64;
    let mut outermost = |user| {
        let stack = resolve(&mut symbolizer, std::process::id(), user);
        Arc::clone(stack.frames.last().unwrap())
    };
    let (one, other) = (
        outermost(vec![getpid, own + 1]),
        outermost(vec![own, getpid + 1, own + 1]),
    );
    assert!(Arc::ptr_eq(&one, &other));
}

#[test]
fn memory_is_bounded_and_let_go() {
    let config = SymbolizerConfig {
        image_idle: std::time::Duration::ZERO,
        ..SymbolizerConfig::default()
    };
    let mut symbolizer = Symbolizer::new(config);
    let getpid = libc::getpid as unsafe extern "C" fn() -> i32 as usize as u64;
    resolve(&mut symbolizer, std::process::id(), vec![getpid]);
    assert!(symbolizer.stats().image_bytes > 0);
    // The next batch finds nothing to look up, and lets the file go.
    let stack = resolve(&mut symbolizer, std::process::id(), vec![getpid]);
    assert!(functions(&stack)[0].ends_with("getpid"));
    assert_eq!(
        (symbolizer.stats().image_bytes, symbolizer.stats().address_misses),
        (0, 1)
    );
}
