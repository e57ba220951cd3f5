//! clippy with warnings as errors, on the host and on the BPF target.

use crate::{command, setup, toolchain::Toolchain, workspace, workspace::Workspace};
use anyhow::{Context as _, Result};

pub(super) fn run() -> Result<()> {
    setup::run(&setup::Args::default())?;
    command::checked(
        command::cargo()
            .args(["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"])
            .current_dir(workspace::root()),
    )?;
    let Ok(tools) = Toolchain::find() else {
        anyhow::bail!("the BPF toolchain is gone since setup")
    };
    let target_dir = Workspace::load()?.target_directory.join("bpf-clippy");
    let mut clippy = tools.cargo(
        "clippy",
        cfg!(target_endian = "big"),
        std::env::consts::ARCH,
        &target_dir,
    );
    clippy.args(["--", "-Dwarnings"]).current_dir(workspace::root());
    command::checked(&mut clippy)
        .context("clippy on the BPF target (its own clippy comes with `cargo xtask setup --tests`)")
}
