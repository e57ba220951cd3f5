//! Programs that are gone before anybody could look at them: their CPU time, and the names of their code.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, built, number, unique_service};
use tieback_tests::workloads::cpu::pin;
use tieback_tests::{assert_within, in_emulator};

/// A storm of programs that compute, and what the agent says of it.
struct Storm {
    /// The CPU profile of them all and of their parent.
    profile: String,
    /// The service's CPU time by the exact count.
    cpu_seconds: f64,
    /// What the storm says of itself.
    facts: Value,
    scrape: Scrape,
}

/// Nanoseconds of the CPU profile of a service by whether a stack has this in it.
fn cpu_ns(profile: &str, wanted: impl Fn(&str) -> bool) -> f64 {
    let lines = profile.lines().filter_map(|line| line.rsplit_once(' '));
    lines
        .filter(|(stack, _)| wanted(stack))
        .filter_map(|(_, weight)| weight.parse::<f64>().ok())
        .sum()
}

/// The workload as it is started by default.
fn plainly(args: &[&str]) -> Result<Program> {
    Ok(Program::start(args)?.0)
}

/// Runs so many programs one after the other that compute about so long each. In an emulator all of it has one CPU: it runs one CPU
/// at a time, and meanwhile the clocks of the others go on.
fn storm(
    start: impl FnOnce(&[&str]) -> Result<Program> + Send,
    children: u32,
    work_ms: u32,
) -> Result<Storm> {
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            if in_emulator() {
                pin(0)?;
            }
            Storm::run(start, children, work_ms)
        });
        storm.join().map_err(|_| anyhow!("the storm panicked"))?
    })
}

impl Storm {
    fn run(start: impl FnOnce(&[&str]) -> Result<Program>, children: u32, work_ms: u32) -> Result<Self> {
        // Emulated, the timer's interrupt took 10 ms at worst, as the kernel said: longer than from one sample to the next at 199 Hz.
        let hz = if in_emulator() { "49" } else { "199" };
        let agent = Agent::start(&["--sample-cpu-hz", hz])?;
        let (children, work_ms) = (children.to_string(), work_ms.to_string());
        let mut program = start(&["storm", "--exec", "--children", &children, "--work-ms", &work_ms])?;
        let service = program.service.clone();
        agent.wait_for_service(&service)?;
        let began = Instant::now();
        program.go()?;
        let facts = program.expect("done")?;
        eprintln!(
            "{children} programs in {:.1} s: {facts}",
            began.elapsed().as_secs_f64()
        );
        let scrape = agent.settled()?;
        let profile = format!("/services/-/{service}/profile/cpu?format=folded&since=5m");
        Ok(Self {
            profile: agent.get(&profile)?,
            cpu_seconds: scrape.cpu(&service),
            facts,
            scrape,
        })
    }

    /// Parts of the profile that have this, in seconds.
    fn seconds(&self, wanted: impl Fn(&str) -> bool) -> f64 {
        cpu_ns(&self.profile, wanted) / 1e9
    }

    /// The part of the profile with an address that has no name.
    fn nameless(&self) -> f64 {
        self.seconds(|stack| stack.contains("[unknown]")) / self.seconds(|_| true)
    }

    /// Asserts that count and profile have what the kernel charged to parent and children (`getrusage`), and that the function that
    /// computes has what the children say that it took.
    fn assert_charged(&self) -> Result<()> {
        let used = number(&self.facts, "children_seconds")? + number(&self.facts, "parent_seconds")?;
        let worked = number(&self.facts, "worked_seconds")?;
        let (working, all) = (
            self.seconds(|stack| stack.contains("work_briefly")),
            self.seconds(|_| true),
        );
        eprintln!(
            "{:.2} % of the CPU time is counted, {:.2} % is in the profile; {:.0} % of the work has its name, {:.0} % of it a whole \
             stack; {:.1} % has an address without one",
            100.0 * self.cpu_seconds / used,
            100.0 * all / used,
            100.0 * working / worked,
            100.0 * self.seconds(|stack| stack.starts_with("_start;") && stack.contains("work_briefly"))
                / working,
            100.0 * self.nameless()
        );
        for result in ["ok", "no_symbol", "no_module", "process_gone"] {
            eprintln!(
                "{result}: {}",
                self.scrape.sum("tieback_symbolize_total", &[("result", result)])
            );
        }
        let shown = &self.profile;
        assert_within!(self.cpu_seconds, used, 0.03, "counted CPU time");
        assert_within!(all, used, 0.03, "CPU time in the profile");
        ensure!(
            (0.8 * worked..1.2 * worked).contains(&working),
            "{working} s of {worked} in the function that works:\n{shown}"
        );
        Ok(())
    }
}

/// The code of programs that are gone before the agent would look for news by itself.
#[test]
fn programs_that_live_for_50_ms_have_names() -> Result<()> {
    storm(plainly, 40, 50)?.assert_charged()
}

/// A storm of programs each of which is gone some milliseconds after its first sample, if it has one at all: nobody can read
/// their memory maps, so what names them came with the samples.
#[test]
fn programs_of_a_storm_have_names_though_they_are_gone() -> Result<()> {
    // In an emulator a program takes a fifth of a second to begin. Samples of the work are right to 4 % here, to 3 % there.
    let (children, work_ms) = if in_emulator() { (150, 40) } else { (400, 8) };
    let storm = storm(plainly, children, work_ms)?;
    storm.assert_charged()?;
    let nameless = storm.nameless();
    ensure!(nameless < 0.03, "{nameless} nameless:\n{}", storm.profile);
    Ok(())
}

/// Starts the workload from an overlay that only its own mount namespace has.
fn in_overlay(folder: &Path, own_layers: bool, copied_up: bool, args: &[&str]) -> Result<Program> {
    const SCRIPT: &str = "d=$0; layers=$1; prepare=$2; p=$3; shift 3; \
        if [ $layers = own ]; then mount -t tmpfs none $d; fi; mkdir $d/low $d/up $d/work $d/all; cp $p $d/low/own; \
        mount -t overlay none -o lowerdir=$d/low,upperdir=$d/up,workdir=$d/work $d/all; $prepare $d/all/own; \
        exec $d/all/own \"$@\"";
    let service = unique_service("overlay");
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-euc", SCRIPT])
        .arg(folder)
        .arg(if own_layers { "own" } else { "shared" })
        // A change of its times copies the file to the upper layer.
        .arg(if copied_up { "touch" } else { "true" })
        .arg(built("TIEBACK_WORKLOAD", "tieback-workload")?)
        .args(args)
        .env("OTEL_SERVICE_NAME", &service);
    Ok(Program::spawn(command, service)?.0)
}

/// Programs of containers: what is mapped is a file of a layer, what `/proc/PID/maps` tells is one of the overlay.
#[test]
fn programs_of_an_overlay_have_names_though_they_are_gone() -> Result<()> {
    // A file that was copied up has the number of its lower layer's for all that ask, but not where it is captured: where only a
    // namespace of its own has the upper layer, it is not found.
    for (own_layers, copied_up) in [(false, false), (false, true), (true, false)] {
        let folder = tempfile::tempdir()?;
        eprintln!("own layers: {own_layers}, copied up: {copied_up}");
        let storm = storm(
            |args| in_overlay(folder.path(), own_layers, copied_up, args),
            100,
            20,
        )?;
        storm.assert_charged()?;
        let nameless = storm.nameless();
        ensure!(nameless < 0.03, "{nameless} nameless:\n{}", storm.profile);
    }
    Ok(())
}
