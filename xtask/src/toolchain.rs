//! Finds what the BPF half is compiled with: a rustc that has its library's source, and a bpf-linker whose LLVM is at
//! least as new.
//!
//! The agent's build script includes this file too (`#[path]`), so it uses std alone.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names the rustup toolchain to prefer, for builds that pin one.
pub(crate) const PINNED: &str = "TIEBACK_BPF_TOOLCHAIN";

/// The bpf-linker release that is known to work.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

/// A compiler that can build `core` for a BPF target.
pub(crate) struct Compiler {
    /// Where its `bin` and `lib/rustlib` are.
    pub(crate) sysroot: PathBuf,
    cargo: PathBuf,
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
}

/// What links LLVM bitcode into a BPF object.
pub(crate) struct Linker {
    /// The program.
    pub(crate) path: PathBuf,
    /// Major version of the LLVM it is linked to; `None` when it carries its own.
    pub(crate) llvm: Option<u32>,
}

/// Everything the BPF build needs.
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// What keeps the BPF half from being built. Its text says what to type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No compiler has the source of `core`.
    Compiler,
    /// There is no bpf-linker for a compiler of this LLVM.
    Linker { llvm: u32 },
    /// bpf-linker cannot read what this compiler writes.
    OldLinker { path: PathBuf, llvm: u32, needed: u32 },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compiler => write!(
                f,
                "no Rust compiler here has its library's source, which the BPF programs are built with. Type \
                 `cargo xtask setup`, or `rustup toolchain install nightly --profile minimal --component rust-src` \
                 (on Debian also `apt-get install rustc-web rust-web-src`)"
            ),
            Self::Linker { llvm } => write!(
                f,
                "bpf-linker is neither on the PATH nor in cargo's bin folder. Type `cargo xtask setup`, or `{}`",
                install_linker(*llvm)
            ),
            Self::OldLinker { path, llvm, needed } => write!(
                f,
                "{} is linked to LLVM {llvm}, but the compiler writes LLVM {needed}. Type `cargo xtask setup`, or `{}`",
                path.display(),
                install_linker(*needed)
            ),
        }
    }
}

/// The Debian packages that building bpf-linker needs.
pub(crate) fn linker_packages(llvm: u32) -> Vec<String> {
    vec![
        format!("llvm-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "libzstd-dev".to_owned(),
        "zlib1g-dev".to_owned(),
    ]
}

fn install_linker(llvm: u32) -> String {
    format!(
        "apt-get install {} && LLVM_PREFIX=/usr/lib/llvm-{llvm} cargo install bpf-linker --version {LINKER_VERSION} \
         --no-default-features --features llvm-{llvm}",
        linker_packages(llvm).join(" ")
    )
}

impl Toolchain {
    /// The first compiler whose output the linker reads, or everything that is missing.
    pub(crate) fn find() -> Result<Self, Vec<Missing>> {
        let (compilers, linker) = (compilers(), find_linker());
        let newest_readable = linker.as_ref().and_then(|l| l.llvm).unwrap_or(u32::MAX);
        let oldest = compilers.iter().map(|c| c.llvm).min();
        let compiler = compilers.into_iter().find(|c| c.llvm <= newest_readable);
        match (compiler, linker, oldest) {
            (Some(compiler), Some(linker), _) => Ok(Self { compiler, linker }),
            (
                None,
                Some(Linker {
                    path,
                    llvm: Some(llvm),
                }),
                Some(needed),
            ) => Err(vec![Missing::OldLinker { path, llvm, needed }]),
            (_, None, Some(llvm)) => Err(vec![Missing::Linker { llvm }]),
            (_, Some(_), None) | (None, Some(_), Some(_)) => Err(vec![Missing::Compiler]),
            (_, None, None) => Err(vec![Missing::Compiler, Missing::Linker { llvm: FALLBACK_LLVM }]),
        }
    }

    /// A cargo command (`build`, `clippy`) on the BPF half, with nothing inherited of a cargo that runs this process.
    ///
    /// `arch` is the architecture of the machines that will load the object; `target_dir` must not be the outer
    /// cargo's, which holds its lock.
    pub(crate) fn cargo(&self, subcommand: &str, big_endian: bool, arch: &str, target_dir: &Path) -> Command {
        let mut command = if subcommand == "clippy" {
            // The compiler's own clippy: another release's cannot read the `core` that was just built.
            let mut clippy = Command::new(self.compiler.sysroot.join("bin/cargo-clippy"));
            clippy.arg("clippy").env("CARGO", &self.compiler.cargo);
            clippy
        } else {
            let mut cargo = Command::new(&self.compiler.cargo);
            cargo.arg(subcommand);
            cargo
        };
        for (key, _) in env::vars_os() {
            if belongs_to_outer_cargo(&key) && !(subcommand == "clippy" && key == "CARGO") {
                command.env_remove(key);
            }
        }
        let linker = if big_endian {
            "CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER"
        } else {
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER"
        };
        command
            .args([
                "--package",
                "agent-ebpf",
                "--release",
                "-Zbuild-std=core",
                "--target",
                target(big_endian),
                "--target-dir",
            ])
            .arg(target_dir)
            .env("RUSTC", self.compiler.sysroot.join("bin/rustc"))
            .env("RUSTC_BOOTSTRAP", "1")
            // Empty and not absent: a wrapper of the user's cargo configuration would otherwise apply.
            .env("RUSTC_WRAPPER", "")
            .env(linker, &self.linker.path)
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "2")
            // BTF with func_info, which the kernel asks for where a program passes a callback.
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                format!("--cfg=bpf_target_arch=\"{arch}\"\u{1f}-Cdebuginfo=2\u{1f}-Clink-arg=--btf"),
            );
        command
    }
}

/// The BPF target of hosts of this byte order.
pub(crate) fn target(big_endian: bool) -> &'static str {
    if big_endian {
        "bpfeb-unknown-none"
    } else {
        "bpfel-unknown-none"
    }
}

/// The LLVM that bpf-linker is installed for when no compiler says otherwise.
const FALLBACK_LLVM: u32 = 22;

/// Variables that cargo, rustup or clippy set for a build, none of which is meant for the BPF half. What tells cargo
/// where it keeps its things and how it reaches registries stays.
fn belongs_to_outer_cargo(key: &OsStr) -> bool {
    let Some(key) = key.to_str() else { return false };
    const KEPT: [&str; 7] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_MAKEFLAGS",
        "CARGO_TERM_",
    ];
    let dropped = [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_",
    ];
    let build_script = [
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "NUM_JOBS",
        "OUT_DIR",
        "RUST_RECURSION_COUNT",
    ];
    build_script.contains(&key)
        || dropped.iter().any(|prefix| key.starts_with(prefix))
            && !KEPT.iter().any(|kept| key.starts_with(kept))
}

/// Every compiler with the source of `core`: rustup's nightly (or the pinned one), the default one, a distribution's.
fn compilers() -> Vec<Compiler> {
    let own_cargo = env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
    let preferred = env::var(PINNED).unwrap_or_else(|_| "nightly".to_owned());
    let nightly = output(
        // Never let rustup fetch a toolchain behind a build's back.
        Command::new("rustup")
            .args(["which", "--toolchain", &preferred, "rustc"])
            .env("RUSTUP_AUTO_INSTALL", "0"),
    )
    .and_then(|path| Some(Path::new(path.trim()).parent()?.parent()?.to_owned()));
    let default = output(
        Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).args(["--print", "sysroot"]),
    )
    .map(|path| PathBuf::from(path.trim()));

    let mut found: Vec<Compiler> = Vec::new();
    for sysroot in [nightly, default, Some(PathBuf::from("/usr"))]
        .into_iter()
        .flatten()
    {
        let known = found.iter().any(|c| c.sysroot == sysroot);
        if known
            || !sysroot
                .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                .exists()
        {
            continue;
        }
        let Some(llvm) = llvm_of(&sysroot.join("bin/rustc")) else {
            continue;
        };
        let cargo = Some(sysroot.join("bin/cargo"))
            .filter(|path| path.exists())
            .unwrap_or_else(|| own_cargo.clone());
        found.push(Compiler { sysroot, cargo, llvm });
    }
    found
}

fn llvm_of(rustc: &Path) -> Option<u32> {
    let text = output(Command::new(rustc).arg("-vV"))?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn find_linker() -> Option<Linker> {
    let cargo_bin = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .map(|home| home.join("bin"));
    let path = env::split_paths(&env::var_os("PATH").unwrap_or_default())
        .chain(cargo_bin)
        .map(|dir| dir.join("bpf-linker"))
        .find(|path| path.is_file())?;
    let llvm = fs::read(&path).ok().and_then(|elf| linked_llvm(&elf));
    Some(Linker { path, llvm })
}

/// `bpf-linker --version` does not name its LLVM, but the dynamic section does: `libLLVM.so.22.1`, `libLLVM-19.so`.
fn linked_llvm(elf: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM";
    let mut rest = elf;
    while let Some(at) = rest.windows(NAME.len()).position(|window| window == NAME) {
        rest = rest.get(at + NAME.len()..)?;
        let version = rest.strip_prefix(b".so.").or_else(|| rest.strip_prefix(b"-"));
        let digits: String = version
            .unwrap_or_default()
            .iter()
            .take_while(|b| b.is_ascii_digit())
            .map(|&b| char::from(b))
            .collect();
        if let Ok(major) = digits.parse() {
            return Some(major);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{belongs_to_outer_cargo, linked_llvm};
    use std::ffi::OsStr;

    #[test]
    fn llvm_is_read_from_the_names_of_libraries() {
        assert_eq!(linked_llvm(b"\0libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"libLLVMCore\0libLLVM-19.so.1\0"), Some(19));
        assert_eq!(linked_llvm(b"libLLVM"), None);
        assert_eq!(linked_llvm(b"static"), None);
    }

    #[test]
    fn a_build_inside_a_build_inherits_only_where_cargo_keeps_things() {
        let dropped = [
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "CLIPPY_ARGS",
            "TARGET",
        ];
        assert!(dropped.iter().all(|key| belongs_to_outer_cargo(OsStr::new(key))));
        let kept = [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_MAKEFLAGS",
            "PATH",
            "RUSTUP_HOME",
            "HTTPS_PROXY",
        ];
        assert!(!kept.iter().any(|key| belongs_to_outer_cargo(OsStr::new(key))));
    }
}
