//! Debug files of their own: what they say is what the unstripped program says, wherever they are, and only theirs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{PROGRAM, read_address, resolve, start_program, stop};
use crate::host::damage::rounds;
use crate::symbolize::{DebugFile, SharedStack, SymbolizeStats, Symbolizer, SymbolizerConfig};

pub(super) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

/// A program, stripped, with its debug file beside it.
pub(super) struct Built {
    pub(super) dir: tempfile::TempDir,
    pub(super) program: PathBuf,
    pub(super) whole: PathBuf,
    pub(super) debug: PathBuf,
    pub(super) id: String,
}

impl Built {
    /// What it is stripped of stays in `shop.dbg`, which is no place where anybody looks.
    pub(super) fn new(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (source, whole) = (at("shop.c"), at("whole"));
        std::fs::write(&source, PROGRAM).unwrap();
        let mut all = vec!["-O1", "-g", text(&source), "-o", text(&whole)];
        all.extend(options);
        run("gcc", &all);
        let built = Self {
            program: at("shop"),
            debug: at("shop.dbg"),
            id: build_id(&whole),
            whole,
            dir,
        };
        run(
            "objcopy",
            &["--only-keep-debug", text(&built.whole), text(&built.debug)],
        );
        run("strip", &["-o", text(&built.program), text(&built.whole)]);
        built
    }

    /// Adds a link to a file that will be called `name` and is like the debug file.
    pub(super) fn link(&self, name: &str) {
        let named = self.dir.path().join(name);
        std::fs::rename(&self.debug, &named).unwrap();
        let link = format!("--add-gnu-debuglink={}", named.display());
        run("objcopy", &[&link, text(&self.program)]);
        std::fs::rename(&named, &self.debug).unwrap();
    }

    /// Puts the debug file somewhere.
    pub(super) fn put(&self, to: &Path) {
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&self.debug, to).unwrap();
    }

    /// Frames of the whole function, by the agent; the host's root is a directory.
    pub(super) fn look_up(&self, root: &Path) -> (Vec<String>, SymbolizeStats) {
        look_up(&self.program, config(root))
    }
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(super) fn build_id(file: &Path) -> String {
    let output = Command::new("readelf").arg("-n").arg(file).output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = output.split("Build ID: ").nth(1).unwrap_or_default();
    id.split_whitespace().next().unwrap_or_default().to_owned()
}

pub(super) fn config(root: &Path) -> SymbolizerConfig {
    SymbolizerConfig {
        root: root.into(),
        ..SymbolizerConfig::default()
    }
}

pub(super) fn look_up(program: &Path, config: SymbolizerConfig) -> (Vec<String>, SymbolizeStats) {
    let (mut child, address) = start_program(program);
    let found = of_child(&child, address, config);
    stop(&mut child);
    found
}

fn of_child(child: &Child, address: u64, config: SymbolizerConfig) -> (Vec<String>, SymbolizeStats) {
    let mut symbolizer = Symbolizer::new(config);
    let stacks = (0..8).map(|at| resolve(&mut symbolizer, child.id(), vec![address + at]));
    let frames = stacks.map(|stack| lines(&stack)).collect();
    (frames, symbolizer.stats())
}

pub(super) fn lines(stack: &SharedStack) -> String {
    let frames = stack.frames.iter().map(|frame| {
        let function = frame.function.as_deref().unwrap_or("?");
        let file = frame.file.as_deref().unwrap_or("?");
        format!("{function} {file}:{}", frame.line)
    });
    frames.collect::<Vec<_>>().join(" < ")
}

/// What the unstripped program says.
fn truth(built: &Built) -> Vec<String> {
    let frames = look_up(&built.whole, config(Path::new("/nowhere"))).0;
    assert!(
        frames.iter().any(|frame| frame.starts_with("inner ")),
        "{frames:?}"
    );
    frames
}

#[test]
fn by_build_id_on_the_host() {
    let built = Built::new(&[]);
    let root = tempfile::tempdir().unwrap();
    let (first, rest) = built.id.split_at(2);
    let (frames, stats) = built.look_up(root.path());
    assert!(frames.iter().all(|frame| frame == "? ?:0"), "{frames:?}");
    assert_eq!(stats.debug_files(DebugFile::None), 1);
    let place = root
        .path()
        .join(format!("usr/lib/debug/.build-id/{first}/{rest}.debug"));
    built.put(&place);
    let (frames, stats) = built.look_up(root.path());
    assert_eq!(frames, truth(&built));
    assert_eq!(stats.debug_files(DebugFile::BuildId), 1);
    // A file of another build is not believed.
    let other = Built::new(&["-DOTHER", "-O2"]);
    other.put(&place);
    let (frames, stats) = built.look_up(root.path());
    assert!(frames.iter().all(|frame| frame == "? ?:0"), "{frames:?}");
    assert_eq!(stats.debug_files(DebugFile::Mismatch), 1);
    // Nor is what is no file, or too large a one.
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    assert_eq!(built.look_up(root.path()).1.debug_files(DebugFile::Malformed), 1);
    std::fs::remove_dir(&place).unwrap();
    std::fs::File::create(&place).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(built.look_up(root.path()).1.debug_files(DebugFile::TooLarge), 1);
}

#[test]
fn by_link_in_each_of_its_places() {
    for options in [&[][..], &["-Wl,--build-id=none"], &["-gz=zlib"]] {
        let built = Built::new(options);
        built.link("shop.debug");
        let expected = truth(&built);
        let root = tempfile::tempdir().unwrap();
        let dir = built.dir.path();
        let places = [
            dir.join("shop.debug"),
            dir.join(".debug/shop.debug"),
            root.path()
                .join("usr/lib/debug")
                .join(dir.strip_prefix("/").unwrap())
                .join("shop.debug"),
        ];
        for place in places {
            built.put(&place);
            let (frames, stats) = built.look_up(root.path());
            assert_eq!(frames, expected, "{options:?} {}", place.display());
            assert_eq!(stats.debug_files(DebugFile::DebugLink), 1);
            // The same name, another content.
            let other = Built::new(&["-O2", "-Wl,--build-id=none"]);
            other.put(&place);
            let (frames, stats) = built.look_up(root.path());
            assert!(
                frames.iter().all(|frame| frame == "? ?:0"),
                "{options:?} {frames:?}"
            );
            assert_eq!(stats.debug_files(DebugFile::Mismatch), 1);
            std::fs::remove_file(&place).unwrap();
        }
    }
}

#[test]
fn symbols_are_kept_where_only_lines_are_missing() {
    let built = Built::new(&[]);
    run("strip", &["-g", "-o", text(&built.program), text(&built.whole)]);
    built.link("shop.debug");
    let root = tempfile::tempdir().unwrap();
    let (frames, _) = built.look_up(root.path());
    assert!(frames.iter().all(|frame| frame == "shop_load ?:0"), "{frames:?}");
    built.put(&built.dir.path().join("shop.debug"));
    assert_eq!(built.look_up(root.path()).0, truth(&built));
}

#[test]
fn packed_symbols() {
    let built = Built::new(&["-rdynamic"]);
    let at = |name: &str| built.dir.path().join(name);
    // As in GDB's manual, "MiniDebugInfo": symbols of functions, without those that are exported.
    std::fs::write(at("keep"), "main\n").unwrap();
    let keep = format!("--keep-symbols={}", at("keep").display());
    run("objcopy", &["-S", &keep, text(&built.debug), text(&at("mini"))]);
    run("xz", &["-k", text(&at("mini"))]);
    let add = format!(".gnu_debugdata={}", at("mini.xz").display());
    run("objcopy", &["--add-section", &add, text(&built.program)]);
    let (mut child, address) = start_program(&built.program);
    let main = {
        let output = Command::new("nm").arg(&built.whole).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        let of = |name: &str| {
            let line = output.lines().find(|line| line.ends_with(name)).unwrap();
            u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
        };
        address + of(" T main") - of(" T shop_load")
    };
    let mut symbolizer = Symbolizer::new(config(Path::new("/nowhere")));
    let exported = resolve(&mut symbolizer, child.id(), vec![address]);
    let packed = resolve(&mut symbolizer, child.id(), vec![main]);
    stop(&mut child);
    assert_eq!(
        (&*lines(&exported), &*lines(&packed)),
        ("shop_load ?:0", "main ?:0")
    );
    assert_eq!(symbolizer.stats().debug_files(DebugFile::DebugData), 1);
    // Damage all over the archive.
    let whole = std::fs::read(&built.program).unwrap();
    let packed = std::fs::read(at("mini.xz")).unwrap();
    let begin = whole
        .windows(packed.len())
        .position(|part| part == packed)
        .unwrap();
    for mut random in rounds(60) {
        let damaged = random.damage(&packed, &[]);
        let mut program = whole.clone();
        program[begin..begin + damaged.len()].copy_from_slice(&damaged);
        std::fs::write(&built.program, program).unwrap();
        let (frames, stats) = built.look_up(Path::new("/nowhere"));
        assert_eq!(frames[0], "shop_load ?:0");
        let known = stats.debug_files(DebugFile::DebugData) + stats.debug_files(DebugFile::Malformed);
        assert_eq!(known + stats.debug_files(DebugFile::TooLarge), 1);
    }
    // A bomb, and what is no archive at all.
    let bombs = [
        (vec![0; 200 << 20], DebugFile::TooLarge),
        (Vec::new(), DebugFile::Malformed),
    ];
    for (content, expected) in bombs {
        std::fs::write(at("bomb"), &content).unwrap();
        run("xz", &["-kf", "-1", text(&at("bomb"))]);
        let bomb = if content.is_empty() {
            at("keep")
        } else {
            at("bomb.xz")
        };
        run("strip", &["-o", text(&built.program), text(&built.whole)]);
        let add = format!(".gnu_debugdata={}", bomb.display());
        run("objcopy", &["--add-section", &add, text(&built.program)]);
        let (frames, stats) = built.look_up(Path::new("/nowhere"));
        assert_eq!(frames[0], "shop_load ?:0");
        assert_eq!(stats.debug_files(expected), 1, "{expected:?}");
    }
}

#[test]
fn in_the_root_of_a_process_in_another_mount_namespace() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let built = Built::new(&["-static"]);
    let (first, rest) = built.id.split_at(2);
    let root = built.dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    // Only the process sees this file system.
    let script = format!(
        "set -e; mount -t tmpfs tieback-test {root}; mkdir -p {root}/usr/lib/debug/.build-id/{first}; \
         cp {program} {root}/shop; cp {debug} {root}/usr/lib/debug/.build-id/{first}/{rest}.debug; \
         exec chroot {root} /shop",
        root = root.display(),
        program = built.program.display(),
        debug = built.debug.display(),
    );
    let mut child = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let address = read_address(&mut child);
    assert!(!root.join("shop").exists());
    let (frames, stats) = of_child(&child, address, config(Path::new("/nowhere")));
    stop(&mut child);
    assert_eq!(frames, truth(&built));
    assert_eq!(stats.debug_files(DebugFile::BuildId), 1);
}
