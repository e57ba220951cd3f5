//! Rules of the configuration file about who owns a stack, and how stacks are counted by how their owner was found: programs in C.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number, unique_service};

use super::selftests::answered;

/// Stacks of running code a second.
const RATE: f64 = 199.0;
const RULES: &str = "
[[owner]]
module = '*/libpause.so'

[[owner]]
file = '*/generated.c'

[[owner]]
function = 'middleware_*'

[[owner]]
module = '*/libc.so.6'
function = 'usleep'
own = true
";
const WAIT: &str = "tieback_code_wait_seconds_total";
/// Times that the program waits, if need be.
const ROUNDS: usize = 4;
/// What the program waits for, who owns that, and who does by the rules.
const WAITS: [[&str; 3]; 4] = [
    ["library", "library_pause", "calls_library"],
    ["generated", "generated_pause", "calls_generated"],
    ["middleware", "middleware_pause", "calls_middleware"],
    ["own", "own_pause", "usleep"],
];

/// Builds the program with its library, and once more without names.
fn build(folder: &Path) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/owners/rules.c");
    let generated = folder.join("generated.c");
    std::fs::copy(&source, &generated)?;
    let compile = |words: &[&str], source: &Path| {
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-g", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"]);
        answered(compiler.arg(source).args(words).current_dir(folder), "")
    };
    compile(&["-DLIBRARY", "-shared", "-fPIC", "-o", "libpause.so"], &source)?;
    compile(&["-DGENERATED", "-c", "-o", "generated.o"], &generated)?;
    let linked = ["generated.o", "libpause.so", "-Wl,-rpath,$ORIGIN", "-lpthread"];
    compile(&[&linked[..], &["-o", "named"]].concat(), &source)?;
    let strip = ["-o", "stripped", "named"];
    answered(Command::new("strip").args(strip).current_dir(folder), "").map(drop)
}

/// A metric by code of a service between two scrapes; functions and files are whole.
fn more(scrapes: [&Scrape; 2], name: &str, labels: &[(&str, &str)]) -> f64 {
    let [before, after] = scrapes.map(|scrape| scrape.sum(name, labels));
    after - before
}

#[test]
fn rules_change_who_owns_and_stacks_are_counted_by_how_their_owner_was_found() -> Result<()> {
    let folder = tempfile::tempdir()?;
    build(folder.path())?;
    let config = folder.path().join("tieback.toml");
    std::fs::write(&config, RULES)?;
    let rate = RATE.to_string();
    let options = ["--sample-cpu-hz", rate.as_str(), "--min-age", "0s"];
    let plain = Agent::start(&options)?;
    let rules = ["--config", config.to_str().context("path")?];
    let ruled = Agent::start(&[&options[..], &rules].concat())?;
    let mut programs = Vec::new();
    for name in ["named", "stripped"] {
        let service = unique_service(name);
        let mut command = Command::new(folder.path().join(name));
        command.env("OTEL_SERVICE_NAME", &service);
        programs.push(Program::spawn(command, service)?.0);
    }
    for program in &programs {
        plain.wait_for_service(&program.service)?;
        ruled.wait_for_service(&program.service)?;
    }
    let services: Vec<_> = programs.iter().map(|program| program.service.clone()).collect();
    let [named, stripped] = [0, 1].map(|at: usize| ("service_name", services[at].as_str()));
    let mut step = |name: &str| -> Result<Vec<Value>> {
        for program in &mut programs {
            program.go()?;
        }
        programs.iter_mut().map(|program| program.expect(name)).collect()
    };
    step("warm")?;
    let before = [plain.settled()?, ruled.settled()?];
    let computed = step("computed")?;
    let mut round = 1;
    let after = loop {
        step("waited")?;
        let after = [plain.settled()?, ruled.settled()?];
        // Each agent has a part of all of these waits, if only their samples tell it how much.
        let mut missing = Vec::new();
        for [fact, plainly, by_rule] in WAITS {
            for at in [0, 1] {
                let of = |function| {
                    let labels = [named, ("cause", "sleep"), ("function", function)];
                    more([&before[at], &after[at]], WAIT, &labels)
                };
                let [owner, other] = if at == 0 {
                    [plainly, by_rule]
                } else {
                    [by_rule, plainly]
                };
                assert_eq!(of(other), 0.0, "{other} owns what {owner} does ({fact})");
                if of(owner) < 0.2 {
                    missing.push(owner);
                }
            }
        }
        if missing.is_empty() {
            break after;
        }
        // On a host that waits much few of these waits are sampled.
        ensure!(round < ROUNDS, "{missing:?}");
        round += 1;
    };

    let scrapes = [&before[0], &after[0]];
    let cpu = "tieback_code_cpu_seconds_total";
    let compute = number(&computed[0], "compute")?;
    let got = more(
        scrapes,
        cpu,
        &[named, ("function", "compute"), ("file", "rules.c")],
    );
    assert_within!(got, compute, 0.25, "compute");
    // A program without names, and threads that have nothing but the C library's functions.
    let unknown = |file| [stripped, ("function", "(unknown)"), ("file", file)];
    let nameless = number(&computed[1], "compute")?;
    let got = more(scrapes, cpu, &unknown("stripped"));
    ensure!(
        got >= 0.75 * nameless,
        "{got} of {nameless} in a program without names"
    );
    let library = number(&computed[1], "search")?;
    let got = more(scrapes, cpu, &unknown("libc.so.6"));
    ensure!(got >= 0.6 * library, "{got} of {library} in the C library");
    // Each sample is a stack. What else runs on this host is counted, too.
    let both = library + number(&computed[0], "search")?;
    for (result, seconds) in [
        ("own", compute),
        ("no_symbol", nameless),
        ("only_libraries", both),
    ] {
        let stacks = more(scrapes, "tieback_owner_total", &[("result", result)]);
        let least = 0.6 * RATE * seconds;
        eprintln!("{result}: {stacks} stacks, {least} at least");
        ensure!(stacks >= least, "{result}: {stacks} stacks, not {least}");
    }
    Ok(())
}
