//! `cargo xtask vm`: the kernel tests on other kernels, under QEMU without KVM.

mod cpio;
mod image;
mod kernel;

use crate::{
    command, setup,
    test::{self, Binaries, Tally, run_counted},
};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::{fmt, fs, path::Path, process::Command};

/// Run the kernel tests in an emulator, on Debian's kernels.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this kernel
    #[arg(long, value_enum)]
    kernel: Option<Series>,
    /// Only tests whose names contain one of these
    #[arg(last = true)]
    filters: Vec<String>,
}

/// A kernel series that Debian ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's own
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's own, also built for Debian 12
    #[value(name = "6.12")]
    V6_12,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// Emulated code is slow; a run that takes longer than this hangs.
const TIMEOUT_SECONDS: u32 = 1500;
/// What the machine's process 1 prints when every test binary has ended.
const FINISHED: &str = "vm: finished,";

/// Runs the tests on the kernels asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::run(&setup::Args { tests: true })?;
    let binaries = test::kernel_binaries()?;
    let kernels = args
        .kernel
        .as_ref()
        .map_or(Series::value_variants(), std::slice::from_ref);
    let mut total = Tally::default();
    for &kernel in kernels {
        total.add(run_tests(kernel, &binaries, &args.filters)?);
    }
    println!("\n{total}");
    if total.failed > 0 {
        bail!("failed: {}", total.failures.join(", "));
    }
    Ok(())
}

/// Boots one kernel, runs the tests there and counts.
pub(crate) fn run_tests(series: Series, binaries: &Binaries, filters: &[String]) -> Result<Tally> {
    let kernel = kernel::fetch(series)?;
    println!("vm {series}: {}", kernel.release);
    let initramfs = image::build(&kernel, binaries, filters)?;
    boot(&format!("vm {series}"), &kernel, &initramfs)
}

fn boot(what: &str, kernel: &kernel::Kernel, initramfs: &Path) -> Result<Tally> {
    let console = kernel.folder.join("console.log");
    let output = kernel.folder.join("tests.log");
    let qemu = command::find("qemu-system-x86_64")
        .context("qemu-system-x86_64 is missing: cargo xtask setup --tests")?;
    // The kernel's messages go to a file of their own, so that they never split a line of the tests.
    let mut machine = Command::new("timeout");
    machine
        .args(["--kill-after=5", &TIMEOUT_SECONDS.to_string()])
        .arg(qemu);
    machine.args([
        "-accel",
        // One thread for all virtual CPUs: with one each, a CPU now and then runs a breakpoint that the other has already
        // patched away (the kernel switches tracepoints on and off by such patching), and the guest panics.
        "tcg,thread=single",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "3G",
        "-nodefaults",
        "-no-reboot",
    ]);
    machine.args(["-display", "none", "-monitor", "none", "-chardev"]);
    machine.arg(format!("stdio,id=tests,signal=off,logfile={}", output.display()));
    machine.args([
        "-serial",
        &format!("file:{}", console.display()),
        "-serial",
        "chardev:tests",
    ]);
    machine
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs);
    machine.args(["-append", "console=ttyS0 loglevel=5 panic=-1 rdinit=/init"]);
    let mut tally = run_counted(what, &mut machine)?;
    let printed = fs::read(&output).with_context(|| format!("read {}", output.display()))?;
    match failed_binaries(&String::from_utf8_lossy(&printed)) {
        // Each failed test is counted already; a crashed binary may have none.
        Some(0) => {}
        Some(_) if tally.failed > 0 => {}
        Some(crashed) => tally.add(Tally::broken(format!("{what}: {crashed} test binaries crashed"))),
        None => {
            let log = fs::read(&console).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<_> = log.lines().collect();
            let tail = lines
                .get(lines.len().saturating_sub(40)..)
                .unwrap_or_default()
                .join("\n");
            println!(
                "{tail}\n{what}: the machine ended before its tests did; its console is {}",
                console.display()
            );
            tally.add(Tally::broken(format!("{what}: ended early")));
        }
    }
    Ok(tally)
}

/// What process 1 said last; `None` when it did not come that far.
fn failed_binaries(printed: &str) -> Option<u64> {
    printed.lines().find_map(|line| {
        line.strip_prefix(FINISHED)?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::failed_binaries;

    #[test]
    fn only_the_last_word_of_process_1_ends_a_run() {
        assert_eq!(
            failed_binaries("vm: /kernel\r\nvm: finished, 2 test binaries failed\r\n"),
            Some(2)
        );
        assert_eq!(failed_binaries("vm: /kernel\r\ntest result: ok. 1 passed"), None);
    }
}
