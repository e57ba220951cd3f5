//! `cargo xtask test`: every level of tests, what each needs set up first, one summary line last.

mod libtest;
mod mounts;
mod privileged;

pub(crate) use libtest::{Tally, run_counted};
pub(crate) use privileged::Binaries;

use crate::{command, setup, vm, workspace, workspace::Workspace};
use anyhow::{Result, bail};
use clap::ValueEnum;

/// Run the tests: all levels, or those named.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Levels to run
    #[arg(value_enum)]
    levels: Vec<Level>,
    /// Only tests whose names contain one of these
    #[arg(last = true)]
    filters: Vec<String>,
}

/// From fast to real (DESIGN.md section 8).
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// No root: parsers, tables, rules, golden outputs
    Pure,
    /// The real object on this kernel, as root
    Kernel,
    /// The same on other kernels, in an emulator
    Vm,
    /// Real programs under load
    Real,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::Kernel => "kernel",
            Self::Vm => "vm",
            Self::Real => "real",
        }
    }
}

/// Kernel tests that were seen to hold in the emulator.
const IN_VM: [&str; 11] = [
    "a_bogus_field_stops_one_probe_only",
    "descriptors_are_counted_by_kind",
    "each_wait_has_its_cause",
    "exact_mode_counts_every_call_and_errno",
    "growth_is_exact_and_split_by_function",
    "held_and_reset_connections_are_exact_at_each_step",
    "programs_older_than_the_agent_are_like_any_other",
    "programs_of_a_storm_have_names_though_they_are_gone",
    "sigterm_ends_the_agent_cleanly",
    "stacks_are_exact_however_a_program_was_built",
    "stacks_without_frame_pointers_are_exact",
];

/// The package whose integration tests need root.
const PACKAGE: &str = "tieback-tests";

/// Runs the levels in their order, all of them even when one fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let levels = if args.levels.is_empty() {
        Level::value_variants()
    } else {
        &args.levels
    };
    let mut total = Tally::default();
    for &level in levels {
        println!("\n==== {} ====", level.name());
        let tally = run_level(level, &args.filters).unwrap_or_else(|error| {
            println!("{}: {error:#}", level.name());
            Tally::broken(format!("{}: {error:#}", level.name()))
        });
        total.add(tally);
    }
    if !total.failures.is_empty() {
        println!("\nfailures:");
        for failure in &total.failures {
            println!("    {failure}");
        }
    }
    println!("\n{total}");
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    Ok(())
}

fn run_level(level: Level, filters: &[String]) -> Result<Tally> {
    setup::run(&setup::Args {
        tests: level != Level::Pure,
    })?;
    match level {
        Level::Pure => pure(filters),
        Level::Kernel | Level::Real => {
            mounts::ensure()?;
            let binaries = Binaries::build(PACKAGE, &names(level)?)?;
            binaries.run(filters)
        }
        Level::Vm => {
            // The images are built from the tests of the level `kernel`.
            let binaries = Binaries::build(PACKAGE, &names(Level::Kernel)?)?;
            // Emulated, a kernel is 20 times slower: only what holds there is run, unless tests are named.
            let in_vm: Vec<String> = IN_VM.iter().map(|name| (*name).to_owned()).collect();
            let filters = if filters.is_empty() { &in_vm[..] } else { filters };
            Ok(vm::run_tests(vm::Series::value_variants(), &binaries, filters))
        }
    }
}

/// Names of the integration tests that belong to a level: the level's own name, or that with `_...` after it. What
/// belongs to none needs no root and is pure.
fn names(level: Level) -> Result<Vec<String>> {
    let workspace = Workspace::load()?;
    let all = workspace.integration_tests(PACKAGE);
    let found: Vec<String> = all
        .into_iter()
        .filter(|name| level_of(name) == level)
        .map(str::to_owned)
        .collect();
    if found.is_empty() && level != Level::Pure {
        bail!("package {PACKAGE} has no test {0}.rs or {0}_*.rs", level.name());
    }
    Ok(found)
}

fn level_of(test: &str) -> Level {
    let first = test.split('_').next().unwrap_or(test);
    [Level::Kernel, Level::Real]
        .into_iter()
        .find(|level| level.name() == first)
        .unwrap_or(Level::Pure)
}

/// The test binaries of the level `kernel`, for `cargo xtask vm`.
pub(crate) fn kernel_binaries() -> Result<Binaries> {
    Binaries::build(PACKAGE, &names(Level::Kernel)?)
}

fn pure(filters: &[String]) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut cargo_test = |what: &str, selection: &[&str]| -> Result<()> {
        let mut cargo = command::cargo();
        cargo
            .arg("test")
            .args(selection)
            .arg("--no-fail-fast")
            .current_dir(workspace::root());
        cargo.arg("--").args(filters);
        tally.add(run_counted(what, &mut cargo, &mut std::io::stdout())?);
        Ok(())
    };
    cargo_test("unit tests", &["--workspace", "--lib", "--bins"])?;
    cargo_test("documentation tests", &["--workspace", "--doc"])?;
    let names = names(Level::Pure)?;
    if !names.is_empty() {
        let mut selection = vec!["--package", PACKAGE];
        selection.extend(names.iter().flat_map(|name| ["--test", name.as_str()]));
        cargo_test("integration tests", &selection)?;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::{Level, level_of};

    #[test]
    fn tests_belong_to_the_level_their_name_begins_with() {
        let levels = ["kernel", "kernel_wait", "real_redis", "golden", "kernels"].map(level_of);
        assert!(
            levels
                == [
                    Level::Kernel,
                    Level::Kernel,
                    Level::Real,
                    Level::Pure,
                    Level::Pure
                ]
        );
    }
}
