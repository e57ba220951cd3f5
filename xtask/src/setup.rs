//! `cargo xtask setup`: finds or installs what building (and testing) needs.

use crate::{
    command, packages,
    toolchain::{self, LINKER_VERSION, Missing, Toolchain},
};
use anyhow::{Context as _, Result};
use std::{env, fs, path::Path, process::Command};

/// Find or install what the build needs.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Also what the tests need: real servers, other kernels' emulator, independent tools
    #[arg(long)]
    pub(crate) tests: bool,
}

/// What the tests call, and the Debian package that has it.
const TEST_PROGRAMS: [(&str, &str); 32] = [
    ("bpftool", "bpftool"),
    ("bpftrace", "bpftrace"),
    ("strace", "strace"),
    ("ip", "iproute2"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("ss", "iproute2"),
    ("xz", "xz-utils"),
    ("dpkg", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("redis-server", "redis-server"),
    ("redis-benchmark", "redis-tools"),
    ("nginx", "nginx"),
    ("wrk", "wrk"),
    ("postgres", "postgresql"),
    ("pgbench", "postgresql"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("c++", "g++"),
    ("readelf", "binutils"),
    ("strip", "binutils"),
    ("dwz", "dwz"),
    ("go", "golang-go"),
    ("musl-gcc", "musl-tools"),
    ("runc", "runc"),
    ("perf", "linux-perf"),
    ("valgrind", "valgrind"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("java", "openjdk-17-jdk-headless"),
    ("jcmd", "openjdk-17-jdk-headless"),
];

/// Libraries of programs that tests build and run, and tests of programs' own, and their Debian packages.
const TEST_LIBRARIES: [(&str, &str); 6] = [
    ("libjemalloc.so.2", "libjemalloc2"),
    ("libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
    ("libmimalloc.so.2", "libmimalloc2.0"),
    ("python3.11/test/test_list.py", "libpython3.11-testsuite"),
    ("python3/dist-packages/psycopg2/__init__.py", "python3-psycopg2"),
    ("gocode/src/github.com/lib/pq/conn.go", "golang-github-lib-pq-dev"),
];

/// Where libraries are.
const LIBRARY_FOLDERS: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/share",
];

/// Those of them that may come with a running service.
const SERVERS: [&str; 4] = ["nginx", "postgresql", "prometheus", "redis-server"];

/// Finds or installs everything; says what is used.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut wanted = Vec::new();
    if command::find("cc").is_none() {
        wanted.extend(["gcc".to_owned(), "libc6-dev".to_owned()]);
    }
    if args.tests {
        let missing = TEST_PROGRAMS
            .iter()
            .filter(|(program, _)| command::find(program).is_none());
        wanted.extend(missing.map(|&(_, package)| package.to_owned()));
        let there = |library: &str| {
            LIBRARY_FOLDERS
                .iter()
                .any(|folder| Path::new(folder).join(library).exists())
        };
        let missing = TEST_LIBRARIES.iter().filter(|(library, _)| !there(library));
        wanted.extend(missing.map(|&(_, package)| package.to_owned()));
    }
    wanted.sort();
    wanted.dedup();
    if wanted.iter().any(|package| SERVERS.contains(&package.as_str())) {
        println!(
            "setup: Debian starts some servers once they are installed; the tests run their own and need none of those"
        );
    }
    packages::install(&wanted)?;

    let tools = bpf_toolchain()?;
    println!(
        "setup: BPF programs are built by {} (LLVM {}) and {}{}",
        tools.compiler.sysroot.join("bin/rustc").display(),
        tools.compiler.llvm,
        tools.linker.path.display(),
        tools
            .linker
            .llvm
            .map(|llvm| format!(" (LLVM {llvm})"))
            .unwrap_or_default(),
    );
    if args.tests {
        clippy(&tools)?;
    }
    Ok(())
}

fn bpf_toolchain() -> Result<Toolchain> {
    // The linker's LLVM follows from the compiler's, so the compiler comes first.
    if Toolchain::find().is_err_and(|missing| missing.contains(&Missing::Compiler)) {
        install_compiler()?;
    }
    if let Some(llvm) = wanted_linker()
        && let Err(error) = install_linker(llvm)
    {
        if has_debian_source() {
            return Err(error);
        }
        // A nightly may be ahead of every LLVM that can be installed; Debian's compiler is not.
        println!("setup: {error:#}; trying Debian's compiler instead");
        install_debian_compiler().with_context(|| Missing::Linker { llvm }.to_string())?;
        if let Some(older) = wanted_linker() {
            install_linker(older)?;
        }
    }
    Toolchain::find().map_err(|missing| {
        let texts: Vec<_> = missing.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", texts.join("\n"))
    })
}

/// The LLVM of the bpf-linker that is missing, `None` when none is.
fn wanted_linker() -> Option<u32> {
    Toolchain::find().err()?.into_iter().find_map(|part| match part {
        Missing::Linker { llvm } | Missing::OldLinker { needed: llvm, .. } => Some(llvm),
        Missing::Compiler => None,
    })
}

/// rustup's nightly with rust-src; where that cannot be fetched, Debian's compiler with its source.
fn install_compiler() -> Result<()> {
    if let Some(rustup) = command::find("rustup") {
        let listed = command::stdout(Command::new(&rustup).args(["toolchain", "list"])).unwrap_or_default();
        let arguments: &[&str] = if listed.lines().any(|line| line.starts_with("nightly-")) {
            &["component", "add", "rust-src", "--toolchain", "nightly"]
        } else {
            &[
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]
        };
        println!("setup: rustup {}", arguments.join(" "));
        // A network that drops packets would make rustup try for a very long time.
        let mut rustup_in_time = Command::new("timeout");
        rustup_in_time.arg("300").arg(rustup).args(arguments);
        match command::checked(&mut rustup_in_time) {
            Ok(()) => return Ok(()),
            Err(error) => println!("setup: {error}; trying Debian's compiler instead"),
        }
    }
    install_debian_compiler().with_context(|| Missing::Compiler.to_string())
}

fn has_debian_source() -> bool {
    Path::new("/usr/lib/rustlib/src/rust/library").exists()
}

fn install_debian_compiler() -> Result<()> {
    packages::install(&["rustc-web".to_owned(), "rust-web-src".to_owned()])
}

fn install_linker(llvm: u32) -> Result<()> {
    // Headers of the very LLVM the compiler has, else of a later one.
    let prefix = |version: u32| format!("/usr/lib/llvm-{version}");
    let ready = |version: &u32| Path::new(&prefix(*version)).join("bin/llvm-config").exists();
    let candidates = llvm..llvm + 2;
    let version = match candidates.clone().find(ready) {
        Some(version) => version,
        None => {
            let has_package = |version: &u32| packages::known(&format!("llvm-{version}-dev"));
            if !candidates.clone().any(|version| has_package(&version)) && command::find("apt-get").is_some()
            {
                packages::update()?;
            }
            candidates.clone().find(has_package).unwrap_or(llvm)
        }
    };
    packages::install(&toolchain::linker_packages(version))
        .with_context(|| format!("bpf-linker is built with LLVM {version}"))?;
    println!("setup: cargo install bpf-linker {LINKER_VERSION} (a few minutes)");
    let target = env::temp_dir().join(format!("tieback-bpf-linker-{}", std::process::id()));
    let built = command::checked(
        command::cargo()
            .args([
                "install",
                "bpf-linker",
                "--locked",
                "--force",
                "--version",
                LINKER_VERSION,
                "--no-default-features",
            ])
            .arg(format!("--features=llvm-{version}"))
            .arg("--target-dir")
            .arg(&target)
            .env("LLVM_PREFIX", prefix(version)),
    );
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))?;
    }
    built
}

/// The compiler's own clippy, for the BPF target.
fn clippy(tools: &Toolchain) -> Result<()> {
    if tools.compiler.sysroot.join("bin/cargo-clippy").exists() {
        return Ok(());
    }
    if tools.compiler.sysroot == Path::new("/usr") {
        return packages::install(&["rust-web-clippy".to_owned()]);
    }
    let toolchain = tools.compiler.sysroot.file_name().unwrap_or_default();
    command::checked(
        Command::new("rustup")
            .args(["component", "add", "clippy", "--toolchain"])
            .arg(toolchain),
    )
}
