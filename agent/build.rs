//! Builds the BPF object (package `agent-ebpf`) and tells the agent where it is: `TIEBACK_BPF_OBJECT`.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::{env, path::PathBuf};
use toolchain::Toolchain;

fn main() {
    // `cargo::error` alone fails the build. A non-zero exit status would add a page that repeats the message.
    if let Err(problems) = build() {
        for problem in problems {
            println!("cargo::error={problem}");
        }
    }
}

fn build() -> Result<(), Vec<String>> {
    println!("cargo::rerun-if-env-changed={}", toolchain::PINNED);
    let toolchain =
        Toolchain::find().map_err(|missing| missing.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    // As it is now: what is compiled into this script may be the folder that a target folder was copied from.
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    for path in [
        "agent-ebpf/src",
        "agent-ebpf/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    println!("cargo::rerun-if-changed={}", toolchain.linker.path.display());
    println!(
        "cargo::rerun-if-changed={}",
        toolchain.compiler.sysroot.join("bin/rustc").display()
    );

    let big_endian = variable("CARGO_CFG_TARGET_ENDIAN")? == "big";
    // A target folder of its own: the outer cargo holds the lock of the usual one until this script ends.
    let target_dir = PathBuf::from(variable("OUT_DIR")?).join("bpf");
    let output = toolchain
        .cargo(
            "build",
            big_endian,
            &variable("CARGO_CFG_TARGET_ARCH")?,
            &target_dir,
        )
        .args(["--bin", "tieback-ebpf", "--color=never", "--quiet"])
        .current_dir(&workspace)
        .output()
        .map_err(|error| vec![format!("cannot start cargo for the BPF programs: {error}")])?;
    if !output.status.success() {
        let mut lines = vec!["the BPF programs (agent-ebpf) do not build:".to_owned()];
        lines.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
        return Err(lines);
    }
    let object = target_dir
        .join(toolchain::target(big_endian))
        .join("release/tieback-ebpf");
    println!("cargo::rustc-env=TIEBACK_BPF_OBJECT={}", object.display());
    Ok(())
}

fn variable(name: &str) -> Result<String, Vec<String>> {
    env::var(name).map_err(|error| vec![format!("{name}: {error}")])
}
