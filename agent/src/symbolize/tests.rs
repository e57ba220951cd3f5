//! Real processes: this one, and small C programs compiled for the purpose. No root needed.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;

const LINE: u32 = line!() + 2;
#[inline(never)]
fn a_function_with_a_name() -> u64 {
    std::hint::black_box(7)
}

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
        detail: StackDetail::Wait(Cause::Lock, Some(202)),
        weight: 5.0,
        user,
        kernel: Vec::new(),
        truncated: false,
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

#[test]
fn own_function_with_its_line() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        max_image_bytes: 1 << 30,
        max_images_bytes: 1 << 30,
        max_file_bytes: 1 << 31,
        ..SymbolizerConfig::default()
    });
    let address = a_function_with_a_name as fn() -> u64 as usize as u64;
    let stack = resolve(&mut symbolizer, std::process::id(), vec![address]);
    assert_eq!(
        functions(&stack),
        ["tieback::symbolize::tests::a_function_with_a_name"]
    );
    let frame = &stack.frames[0];
    assert!(
        frame.file.as_deref().unwrap().ends_with("symbolize/tests.rs"),
        "{frame:?}"
    );
    assert_eq!(frame.line, LINE, "{frame:?}");
    assert_eq!(
        frame.module,
        std::env::current_exe().unwrap().to_string_lossy().into()
    );
    assert_eq!(
        (&*stack.owner.file, symbolizer.stats().count(Outcome::Ok)),
        ("tests.rs", 1)
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
    let all = symbolizer.resolve_batch(batch);
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
    let stack = resolve(&mut symbolizer, std::process::id(), vec![0x10, 0x20]);
    assert_eq!(functions(&stack), ["?", "?"]);
    assert_eq!(&*stack.frames[0].module, "[unknown]");
    resolve(&mut symbolizer, u32::MAX >> 1, vec![0x10]);
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
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = u64::from_str_radix(line.trim().trim_start_matches("0x"), 16).unwrap();
    (child, address)
}

fn stop(child: &mut Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn inlined_functions_and_lines() {
    let dir = tempfile::tempdir().unwrap();
    for options in [&["-g"][..], &["-g", "-gz=zlib"], &["-gdwarf-4"]] {
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
fn a_process_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    symbolizer.note_process(SlotId(1), child.id());
    let pid = child.id();
    stop(&mut child);
    let stack = resolve(&mut symbolizer, pid, vec![address]);
    assert_eq!(functions(&stack), ["shop_load"]);
    assert_eq!(
        (&*stack.owner.function, &*stack.owner.file),
        ("shop_load", "shop.c")
    );
    // Its file is replaced: no wrong name, and the module is still told.
    let (mut child, address) = start(dir.path(), &["-g"]);
    let pid = child.id();
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    symbolizer.note_process(SlotId(1), pid);
    stop(&mut child);
    std::fs::rename(dir.path().join("shop"), dir.path().join("old")).unwrap();
    std::fs::write(dir.path().join("shop"), "something else").unwrap();
    let stack = resolve(&mut symbolizer, pid, vec![address]);
    assert_eq!((functions(&stack), &*stack.owner.file), (vec!["?"], "shop"));
    assert_eq!(symbolizer.stats().count(Outcome::ProcessGone), 1);
}

#[test]
fn stripped_programs_keep_their_module() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-s"]);
    let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
    let stack = resolve(&mut symbolizer, child.id(), vec![address]);
    stop(&mut child);
    assert_eq!((functions(&stack), &*stack.owner.file), (vec!["?"], "shop"));
    assert_eq!(symbolizer.stats().count(Outcome::NoSymbol), 1);
}

#[test]
fn debug_information_over_the_limit_leaves_the_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, address) = start(dir.path(), &["-g"]);
    let config = SymbolizerConfig {
        max_image_bytes: 4000,
        ..SymbolizerConfig::default()
    };
    let mut symbolizer = Symbolizer::new(config);
    let stack = resolve(&mut symbolizer, child.id(), vec![address]);
    assert_eq!((functions(&stack), stack.frames[0].line), (vec!["shop_load"], 0));
    assert_eq!(symbolizer.stats().debug_skipped, 1);
    let config = SymbolizerConfig {
        max_file_bytes: 100,
        ..SymbolizerConfig::default()
    };
    let mut symbolizer = Symbolizer::new(config);
    resolve(&mut symbolizer, child.id(), vec![address]);
    assert_eq!(symbolizer.stats().count(Outcome::TooLarge), 1);
    stop(&mut child);
}

#[test]
fn a_file_cut_short_while_it_runs_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("shop");
    let (mut child, address) = start(dir.path(), &["-g"]);
    let whole = std::fs::read(&program).unwrap();
    // Same inode as the mapping, another content: what a careless upgrade of a shared library does.
    let pid = child.id();
    stop(&mut child);
    let maps = format!(
        "{:x}-{:x} r-xp 00000000 fe:01 {} {}\n",
        address,
        address + 4096,
        inode(&program),
        program.display()
    );
    let proc = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/proc/self", proc.path().join("self")).unwrap();
    let process = proc.path().join(pid.to_string());
    std::fs::create_dir(&process).unwrap();
    std::fs::write(
        process.join("stat"),
        format!("{pid} (shop) S{} 5 0", " 0".repeat(18)),
    )
    .unwrap();
    std::fs::write(process.join("maps"), maps).unwrap();
    std::os::unix::fs::symlink("/", process.join("root")).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 60) {
        std::fs::write(&program, &whole[..cut]).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = SymbolizerConfig {
            proc: proc.path().into(),
            ..SymbolizerConfig::default()
        };
        let mut symbolizer = Symbolizer::new(config);
        let stack = resolve(&mut symbolizer, pid, vec![address + 16]);
        assert_eq!(
            (stack.frames.len(), &*stack.frames[0].module),
            (1, &*program.to_string_lossy())
        );
        assert_eq!(symbolizer.stats().count(Outcome::Panic), 0, "cut at {cut}");
    }
}

fn inode(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
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
