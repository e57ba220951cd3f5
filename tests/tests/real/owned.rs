//! Owning frames of programs in Go, Java, JavaScript and Python with a module in C: the time of each function is what the program itself
//! says, whatever library or runtime it waits or computes in.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number, unique_service};
use tieback_tests::runtime::{PerfMap, Runtime};

use super::selftests::answered;

/// Stacks of running code a second.
const RATE: f64 = 199.0;
/// Times that the programs wait, if need be.
const ROUNDS: usize = 4;
const CPU: &str = "tieback_code_cpu_seconds_total";
const WAIT: &str = "tieback_code_wait_seconds_total";
const OPENED: &str = "tieback_code_connections_opened_total";

/// What a program says of something that it does, and who owns that.
#[derive(Clone, Copy)]
struct Wanted {
    /// Its name in what the program says.
    fact: &'static str,
    metric: &'static str,
    cause: Option<&'static str>,
    /// The owners' functions, or what these have in their names, and their file.
    functions: &'static [&'static str],
    file: &'static str,
}

const fn wanted(
    fact: &'static str,
    metric: &'static str,
    cause: Option<&'static str>,
    functions: &'static [&'static str],
    file: &'static str,
) -> Wanted {
    Wanted {
        fact,
        metric,
        cause,
        functions,
        file,
    }
}

const fn cpu(fact: &'static str, functions: &'static [&'static str], file: &'static str) -> Wanted {
    wanted(fact, CPU, None, functions, file)
}

const fn wait(
    fact: &'static str,
    cause: &'static str,
    functions: &'static [&'static str],
    file: &'static str,
) -> Wanted {
    wanted(fact, WAIT, Some(cause), functions, file)
}

/// A program, which tells of four steps: `ready`, `warm`, `computed` and `truth`.
struct Case {
    name: String,
    command: Command,
    wanted: Vec<Wanted>,
    /// The perf map of the Java virtual machine is to be written once it is warm.
    jcmd: bool,
}

impl Case {
    fn new(name: &str, command: Command, wanted: &[Wanted]) -> Self {
        Self {
            name: name.to_owned(),
            command,
            wanted: wanted.to_vec(),
            jcmd: false,
        }
    }
}

struct Running {
    case: Case,
    program: Program,
    facts: Vec<Value>,
    _map: PerfMap,
}

impl Running {
    fn start(mut case: Case) -> Result<Self> {
        let service = unique_service(&case.name);
        let mut command = std::mem::replace(&mut case.command, Command::new("true"));
        command.env("OTEL_SERVICE_NAME", &service);
        let (program, _) = Program::spawn(command, service).with_context(|| case.name.clone())?;
        Ok(Self {
            _map: PerfMap::of(program.pid()),
            case,
            program,
            facts: Vec::new(),
        })
    }

    /// Whether what came between two scrapes is what the program says. Waits are sampled, and their times by code are estimates: all of a
    /// cause is of the functions that wait so.
    fn judge(&self, before: &Scrape, after: &Scrape) -> Result<()> {
        for wanted in &self.case.wanted {
            let want: f64 = self
                .facts
                .iter()
                .filter_map(|facts| number(facts, wanted.fact).ok())
                .sum();
            let mut labels = vec![("service_name", self.program.service.as_str())];
            labels.extend(wanted.cause.map(|cause| ("cause", cause)));
            let more = |functions: &[&str], file: &str| -> f64 {
                let labels = [&labels[..], &[("file", file)]].concat();
                let of = |name: &&str| {
                    after.code(wanted.metric, &labels, name) - before.code(wanted.metric, &labels, name)
                };
                functions.iter().map(of).sum()
            };
            let got = more(wanted.functions, wanted.file);
            let found: Vec<_> = after
                .select(wanted.metric, &labels)
                .map(|sample| {
                    (
                        sample.labels.get("function"),
                        sample.labels.get("file"),
                        sample.value,
                    )
                })
                .collect();
            eprintln!("{} {}: {got:.3} of {want:.3}", self.case.name, wanted.fact);
            let right = if wanted.metric == WAIT {
                let alike = self
                    .case
                    .wanted
                    .iter()
                    .filter(|other| other.cause == wanted.cause);
                let expected: f64 = alike.map(|other| more(other.functions, other.file)).sum();
                let all = after.sum(wanted.metric, &labels) - before.sum(wanted.metric, &labels);
                got >= 0.1 * want && expected >= 0.9 * (all - more(&["(other)"], ""))
            } else {
                // 0.7 s at 199 samples a second have a standard error of 8 %; of twenty of these nobody is wrong by chance.
                (0.6 * want..=1.4 * want).contains(&got)
            };
            ensure!(
                right,
                "{} {}: {got} of {want}: {found:?}",
                self.case.name,
                wanted.fact
            );
        }
        Ok(())
    }
}

/// A program's text.
pub(super) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs/owners")
        .join(name)
}

/// The program in Go whose driver of a database is a package of somebody else.
fn go(folder: &Path) -> Result<Vec<Case>> {
    const WANTED: &[Wanted] = &[
        cpu("render", &["main.render", "main.used"], "orders.go"),
        wait("load", "network", &["main.load"], "orders.go"),
        wait("receive", "network", &["main.receive"], "orders.go"),
        wanted("dial", OPENED, None, &["main.dial"], "orders.go"),
    ];
    let case = |(name, file)| Case::new(&format!("go-{name}"), Command::new(file), WANTED);
    Ok(super::go_packages::build(folder)?.map(case).into())
}

/// With names of generated code, and without: the owner is unknown then, but for where it is.
fn java() -> [Case; 2] {
    let command = || {
        let mut command = Command::new("java");
        command
            .args([
                "-XX:+PreserveFramePointer",
                "-Xmx64m",
                "-XX:CompileThresholdScaling=0.1",
            ])
            // What is compiled is so for good, once the program is warm.
            .args(["-XX:TieredStopAtLevel=1", "-Xbatch"])
            .arg(source("Orders.java"));
        command
    };
    let named = Case::new(
        "java",
        command(),
        &[
            cpu("render", &["Orders"], "[jit]"),
            wait("receive", "network", &["double Orders.receive("], "[jit]"),
            wait("take", "lock", &["double Orders.take("], "[jit]"),
        ],
    );
    let nameless = Case::new(
        "java-nameless",
        command(),
        &[
            cpu("render", &["(unknown)"], "[jit]"),
            wait("receive", "network", &["(unknown)"], "[jit]"),
        ],
    );
    [Case { jcmd: true, ..named }, nameless]
}

/// The same of Node. Where functions are interpreted, what it says of them is not in generated code.
fn node(folder: &Path) -> [Case; 2] {
    let command = |options: &[&str], fifo| {
        let mut command = Command::new("node");
        // It writes a log beside its perf map, where it is.
        command.current_dir(folder);
        command
            .args(options)
            .arg(source("orders.js"))
            .arg(folder.join(fifo));
        command
    };
    let options = ["--perf-basic-prof", "--interpreted-frames-native-stack"];
    [
        Case::new(
            "node",
            command(&options, "named"),
            &[
                cpu("render", &["render ", "byPrice ", "repeat "], "[jit]"),
                cpu("digest", &["digest "], "[jit]"),
                wait("receive", "ipc", &["receive "], "[jit]"),
            ],
        ),
        Case::new(
            "node-nameless",
            command(&[], "nameless"),
            &[cpu("both", &["(unknown)"], "[jit]")],
        ),
    ]
}

/// A module in C that is the service's own, and the same where packages are installed, which makes it somebody else's.
fn python(folder: &Path) -> Result<Vec<Case>> {
    const OWN: &[Wanted] = &[
        cpu("parse", &["parse_rows"], "native.c"),
        cpu("visit", &["visit"], "orders.py"),
        cpu("price", &["price"], "orders.py"),
        wait("load", "sleep", &["wait_for_rows"], "native.c"),
    ];
    const PACKAGE: &[Wanted] = &[
        cpu("parse", &["parse"], "orders.py"),
        cpu("visit", &["visit"], "orders.py"),
        wait("load", "sleep", &["load"], "orders.py"),
    ];
    let own = folder.join("python");
    let package = own.join("site-packages");
    std::fs::create_dir_all(&package)?;
    let built = own.join("native.so");
    let options = ["-O2", "-g", "-fomit-frame-pointer", "-shared", "-fPIC", "-o"];
    answered(
        Command::new("cc")
            .args(options)
            .arg(&built)
            .arg(source("native.c")),
        "",
    )?;
    std::fs::copy(&built, package.join("native.so"))?;
    let case = |name: String, exe: &Path, path: &Path, wanted| {
        let mut command = Command::new(exe);
        command.arg("-B").arg(source("orders.py")).env("PYTHONPATH", path);
        Case::new(&name, command, wanted)
    };
    let exes = Runtime::pythons()?;
    let debian = exes.first().context("no python")?;
    let mut cases = vec![case("python-package".to_owned(), debian, &package, PACKAGE)];
    // One that a distribution ships, and one with symbols.
    for (at, exe) in exes.iter().enumerate().take(2) {
        cases.push(case(format!("python-{at}"), exe, &own, OWN));
    }
    Ok(cases)
}

/// Lets all of them take a step.
fn step(running: &mut [Running], name: &str) -> Result<()> {
    for one in &mut *running {
        one.program.go().with_context(|| one.case.name.clone())?;
    }
    for one in running {
        let facts = one.program.expect(name);
        one.facts.push(facts.with_context(|| one.case.name.clone())?);
    }
    Ok(())
}

#[test]
fn functions_of_go_and_python_own_what_they_do_in_libraries() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cases = go(folder.path())?;
    cases.extend(python(folder.path())?);
    run(cases)
}

#[test]
fn functions_of_java_and_node_own_what_they_do_in_libraries() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut cases = Vec::from(java());
    cases.extend(node(folder.path()));
    run(cases)
}

/// Runs all of them at once.
fn run(cases: Vec<Case>) -> Result<()> {
    let rate = RATE.to_string();
    let agent = Agent::start(&["--sample-cpu-hz", &rate, "--min-age", "0s", "--top", "200"])?;
    let mut running: Vec<_> = cases.into_iter().map(Running::start).collect::<Result<_>>()?;
    for one in &running {
        agent.wait_for_service(&one.program.service)?;
    }
    step(&mut running, "warm")?;
    let mut maps = Vec::new();
    for one in running.iter().filter(|one| one.case.jcmd) {
        maps.push(PerfMap::write(one.program.pid())?);
    }
    let before = agent.settled()?;
    step(&mut running, "computed")?;
    let mut round = 1;
    let after = loop {
        step(&mut running, "waited")?;
        let after = agent.settled()?;
        let judged = running.iter().map(|one| one.judge(&before, &after));
        let wrong: Vec<_> = judged
            .filter_map(Result::err)
            .map(|error| error.to_string())
            .collect();
        if wrong.is_empty() {
            break after;
        }
        // On a host that waits much few of these waits are sampled.
        let owners: Vec<_> = after
            .select("tieback_owner_total", &[])
            .map(|sample| (&sample.labels["result"], sample.value))
            .filter(|(_, stacks)| *stacks > 0.0)
            .collect();
        ensure!(round < ROUNDS, "{}\n{owners:?}", wrong.join("\n"));
        round += 1;
    };

    // Each sample of a function is a stack, counted by how its owner was found. What else runs on this host is counted, too.
    let (mut named, mut nameless) = (0.0, 0.0);
    for one in &running {
        let of = if one.case.name.ends_with("nameless") {
            &mut nameless
        } else {
            &mut named
        };
        for wanted in one.case.wanted.iter().filter(|wanted| wanted.metric == CPU) {
            *of += number(&one.facts[1], wanted.fact)?;
        }
    }
    eprintln!("{named} s with names, {nameless} s without");
    for (result, seconds) in [("own", named), ("generated", nameless)] {
        let of = |scrape: &Scrape| scrape.sum("tieback_owner_total", &[("result", result)]);
        let (stacks, least) = (of(&after) - of(&before), 0.8 * RATE * seconds);
        ensure!(stacks >= least, "{result}: {stacks} stacks, not {least}");
    }
    Ok(())
}
