//! What a user stack costs on this host: for `cargo xtask bench`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use agent_ebpf::wire::unwind::UnwindResult;
use anyhow::{Context as _, Result, ensure};

use crate::attribute::SlotId;
use crate::config::Config;
use crate::host::Host;
use crate::load::Measured;
use crate::symbolize::SymbolizerConfig;
use crate::symbolize::unwind::Loader;

/// The slot under which the measured program's tables are found.
const SLOT: SlotId = SlotId(0);

/// Has a program run the walks on stacks of its own of the given depths: `tests/programs/depth.c`, which prints what it measured.
pub fn stack_cost(host: &Host, config: &Config, program: &Path, depths: &[u32]) -> Result<()> {
    let measured = Measured::load(&super::environment::environment(host, config)?)?;
    let mut child = Command::new(program)
        .args(measured.programs.iter().map(|fd| fd.as_raw_fd().to_string()))
        .args(depths.iter().map(u32::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let ready = lines.next().transpose()?;
    ensure!(
        ready.as_deref() == Some("ready"),
        "{} did not start",
        program.display()
    );
    let symbols = SymbolizerConfig {
        proc: config.host_root.join("proc"),
        ..SymbolizerConfig::default()
    };
    let mut loader = Loader::new(symbols, measured.maps, config.unwind_memory_bytes);
    loader.sampled(SLOT, child.id(), UnwindResult::NoMapping)?;
    while let Some(job) = loader.job() {
        loader.made(job.make())?;
    }
    loader.settle()?;
    child.stdin.take().context("no input")?.write_all(b"\n")?;
    for line in lines {
        println!("{}", line?);
    }
    let status = child.wait()?;
    ensure!(status.success(), "{} ended: {status}", program.display());
    Ok(())
}
