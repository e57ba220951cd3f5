//! `cargo xtask vm`: the kernel tests on other kernels, under QEMU without KVM.

mod cpio;
mod image;
mod kernel;

use crate::{
    command, setup,
    test::{self, Binaries, Tally, run_counted},
};
use anyhow::{Context as _, Result, anyhow, bail};
use clap::ValueEnum;
use std::{fmt, fs, io::Write, path::PathBuf, process::Command, thread};

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
    let total = run_tests(kernels, &binaries, &args.filters);
    println!("\n{total}");
    if total.failed > 0 {
        bail!("failed: {}", total.failures.join(", "));
    }
    Ok(())
}

/// Boots the kernels, runs the tests there and counts. An emulated machine has one thread for all its CPUs, so there are as many
/// machines at a time as CPUs here.
pub(crate) fn run_tests(kernels: &[Series], binaries: &Binaries, filters: &[String]) -> Tally {
    let mut total = Tally::default();
    let at_a_time = thread::available_parallelism().map_or(1, usize::from);
    for together in kernels.chunks(at_a_time) {
        let machines: Vec<_> = together
            .iter()
            .map(|&series| (format!("vm {series}"), Machine::build(series, binaries, filters)))
            .collect();
        thread::scope(|scope| {
            let running: Vec<_> = machines
                .into_iter()
                .enumerate()
                .map(|(place, (what, machine))| {
                    let name = what.clone();
                    let run = move || -> Result<(Tally, Vec<u8>)> {
                        // What the first prints is shown as it comes, that of the others when its turn has come.
                        let mut kept = Vec::new();
                        let tally = if place == 0 {
                            machine?.boot(&name, &mut std::io::stdout())?
                        } else {
                            machine?.boot(&name, &mut kept)?
                        };
                        Ok((tally, kept))
                    };
                    (what, scope.spawn(run))
                })
                .collect();
            for (what, machine) in running {
                let ended = machine
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("the thread that ran it panicked")));
                total.add(match ended {
                    Ok((tally, kept)) => {
                        print!("{}", String::from_utf8_lossy(&kept));
                        tally
                    }
                    Err(error) => {
                        println!("{what}: {error:#}");
                        Tally::broken(format!("{what}: {error:#}"))
                    }
                });
            }
        });
    }
    total
}

/// What a machine boots.
struct Machine {
    kernel: kernel::Kernel,
    initramfs: PathBuf,
}

impl Machine {
    fn build(series: Series, binaries: &Binaries, filters: &[String]) -> Result<Self> {
        let kernel = kernel::fetch(series)?;
        println!("vm {series}: {}", kernel.release);
        let initramfs = image::build(&kernel, binaries, filters)?;
        Ok(Self { kernel, initramfs })
    }

    /// Runs it to its end and counts what its tests print.
    fn boot(&self, what: &str, to: &mut impl Write) -> Result<Tally> {
        let console = self.kernel.folder.join("console.log");
        let output = self.kernel.folder.join("tests.log");
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
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initramfs);
        machine.args(["-append", "console=ttyS0 loglevel=5 panic=-1 rdinit=/init"]);
        let mut tally = run_counted(what, &mut machine, to)?;
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
