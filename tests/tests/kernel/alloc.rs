//! Allocations of a program that tells what it allocates, by several allocators.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::chains::Chains;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, unique_service};

/// Functions of the program, each with allocations of its own.
pub(super) const FUNCTIONS: [&str; 8] = [
    "small", "middle", "zeroed", "grown", "aligned", "leak", "cache", "churn",
];
/// Bytes that a sample stands for in these tests.
pub(super) const PERIOD: f64 = 16384.0;
/// Deviations that a single estimate may be off: some hundred are looked at.
pub(super) const SINGLE: f64 = 4.5;

pub(super) struct Watched {
    pub(super) program: Program,
    pub(super) name: &'static str,
}

impl Watched {
    pub(super) fn start(
        programs: &Chains,
        name: &'static str,
        service: String,
        plan: [&str; 3],
    ) -> Result<Self> {
        let mut command = Command::new(programs.path(name));
        command.args(plan).env("OTEL_SERVICE_NAME", &service);
        let (program, _) = Program::spawn(command, service)?;
        Ok(Self { program, name })
    }

    /// Waits until its allocator is watched.
    pub(super) fn followed(&self, agent: &Agent) -> Result<()> {
        agent.wait_for_service(&self.program.service)?;
        agent.wait_for("allocator watched", |_| {
            let service = self.api(agent).ok().flatten();
            service.is_some_and(|service| {
                service["allocators"]
                    .as_array()
                    .is_some_and(|list| !list.is_empty())
            })
        })?;
        Ok(())
    }

    pub(super) fn labels(&self) -> [(&str, &str); 1] {
        [("service_name", self.program.service.as_str())]
    }

    /// What the API says of its service.
    pub(super) fn api(&self, agent: &Agent) -> Result<Option<Value>> {
        let document: Value = serde_json::from_str(&agent.get("/api/v1/allocations")?)?;
        let services = document["services"].as_array().context("no services")?;
        let of_service = |service: &&Value| service["service"] == self.program.service.as_str();
        Ok(services.iter().find(of_service).cloned())
    }
}

/// Starts these programs and an agent that watches them, and waits until it does.
pub(super) fn watch(
    names: &[&'static str],
    mode: &str,
    plan: [&str; 3],
    options: &[&str],
) -> Result<(Agent, Vec<Watched>)> {
    let programs = Chains::build()?;
    let services: Vec<String> = names.iter().map(|name| unique_service(name)).collect();
    let wanted: Vec<String> = services
        .iter()
        .map(|service| format!("{service}={mode}"))
        .collect();
    let wanted = wanted.join(",");
    // All is to be seen, whatever it costs, but where a test is about just that.
    let slowdown: &[&str] = match options.contains(&"--alloc-slowdown") {
        true => &[],
        false => &["--alloc-slowdown", "10000"],
    };
    let agent = Agent::start(&[&["--alloc", &wanted], slowdown, options].concat())?;
    let mut watched = Vec::new();
    for (name, service) in names.iter().zip(services) {
        watched.push(Watched::start(&programs, name, service, plan)?);
    }
    for program in &watched {
        program.followed(&agent)?;
    }
    agent.settled()?;
    Ok((agent, watched))
}

pub(super) fn truth(facts: &Value, function: &str, what: &str) -> Result<f64> {
    facts[function][what]
        .as_f64()
        .with_context(|| format!("no {what} of {function}"))
}

/// By how many standard errors an estimate of bytes is off: a sample of probability `size / PERIOD` stands for a period, so
/// that the variance is about period times bytes.
fn off(estimate: f64, truth: f64) -> f64 {
    (estimate - truth) / (PERIOD * truth.max(PERIOD)).sqrt()
}

#[test]
fn full_mode_is_exact_in_total_and_unbiased_by_code() -> Result<()> {
    let names = [
        "alloc",
        "alloc-static",
        "alloc-cxx",
        "alloc-musl",
        "alloc-jemalloc",
        "alloc-tcmalloc_minimal",
        "alloc-mimalloc",
    ];
    let options = ["--alloc-period", "16KiB"];
    // 60 rounds, 600 allocations, and a pause of 40 ms or more: some thousand a second each.
    let (agent, mut programs) = watch(&names, "full", ["4", "60", "40000"], &options)?;
    let before = agent.settled()?;
    let mut errors = Vec::new();
    let mut last = Vec::new();
    for phase in 0..3 {
        for program in &mut programs {
            program.program.go()?;
        }
        last.clear();
        for program in &mut programs {
            last.push(program.program.expect("counted")?);
        }
        let scrape = agent.settled()?;
        for (program, facts) in programs.iter().zip(&last) {
            let labels = program.labels();
            for (what, name) in [
                ("bytes", "tieback_alloc_bytes_total"),
                ("objects", "tieback_alloc_objects_total"),
            ] {
                let all = FUNCTIONS.iter().map(|function| truth(facts, function, what));
                let all: f64 = all.sum::<Result<f64>>()?;
                let got = scrape.sum(name, &labels) - before.sum(name, &labels);
                assert_eq!(got, all, "{what} of {} in phase {phase}", program.name);
            }
            for function in FUNCTIONS {
                let labels = program.labels();
                let code = |name| scrape.code(name, &labels, function);
                let mut compare = |what, got: f64| -> Result<()> {
                    let want = truth(facts, function, what)?;
                    let error = off(got, want);
                    assert!(
                        error.abs() < SINGLE,
                        "{what} of {function} in {} in phase {phase}: {got}, not {want}, {error:.1} standard errors",
                        program.name
                    );
                    errors.push(error);
                    Ok(())
                };
                if phase == 2 {
                    compare("bytes", code("tieback_code_alloc_bytes_total"))?;
                }
                if ["leak", "cache", "churn"].contains(&function) {
                    compare("live", code("tieback_code_alloc_live_bytes"))?;
                }
            }
        }
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    // Of the 17 errors of a program those of one function go together: what lives after a phase lives on in the next ones, and
    // what is never freed is all that was allocated. Their sum has the variance 5 (one each) + 13 (leak: correlations are the
    // roots of 1/2, 1/3 and 2/3) + 16 (cache: four times the same) + 4 (churn) = 38.
    assert!(
        mean.abs() < 3.0 * (38.0 / 17.0 / errors.len() as f64).sqrt(),
        "{} estimates are off by {mean:.2} standard errors in the mean",
        errors.len()
    );
    leaks(&agent, &mut programs)
}

/// While the programs go on, the leak and nothing else is reported.
fn leaks(agent: &Agent, programs: &mut [Watched]) -> Result<()> {
    for _ in 0..2 {
        for program in &mut *programs {
            program.program.go()?;
        }
        for program in &mut *programs {
            program.program.expect("counted")?;
        }
    }
    agent.settled()?;
    for program in programs {
        let service = program.api(agent)?.context("no service")?;
        let found = service["leaks"].as_array().context("no leaks")?;
        let functions: Vec<&str> = found
            .iter()
            .filter_map(|leak| leak["function"].as_str())
            .collect();
        assert_eq!(functions, ["leak"], "leaks of {}: {service}", program.name);
        let finding = found[0]["finding"].as_str().unwrap_or_default();
        ensure!(finding.contains("(alloc.c:"), "no line: {finding}");
    }
    Ok(())
}

/// What a program of several threads, processes and allocators has, against what it tells.
struct Turns {
    agent: Agent,
    watched: Watched,
    before: Scrape,
    /// What lived of the loaded allocator, as seen and as told, before its stacks were whole.
    loaded: (f64, f64),
}

impl Turns {
    /// Has the program take a step, and compares bytes and allocations of all (to the last one, if `exact`), and what lives of
    /// each function.
    fn turn(&mut self, order: &str, exact: bool) -> Result<()> {
        let step = order.split(' ').next().unwrap_or(order);
        self.watched.program.order(order)?;
        let facts = self.watched.program.expect(step)?;
        let scrape = self.agent.settled()?;
        let labels = self.watched.labels();
        let sum = |what| -> Result<f64> {
            let steps = ["threads", "grown", "both", "loaded"];
            steps.iter().map(|step| truth(&facts, step, what)).sum()
        };
        for (what, name) in [
            ("bytes", "tieback_alloc_bytes_total"),
            ("objects", "tieback_alloc_objects_total"),
        ] {
            let (got, want) = (
                scrape.sum(name, &labels) - self.before.sum(name, &labels),
                sum(what)?,
            );
            // What libraries allocate for themselves (a thread, a file that is opened) is theirs.
            let rest = if exact { 0.005 * want } else { f64::INFINITY };
            assert!(
                got >= want && got <= want + rest,
                "{what} after {order}: {got}, not {want}"
            );
        }
        for (step, function) in [
            ("threads", "by_threads"),
            ("grown", "resize"),
            ("both", "in_both"),
            ("loaded", "by_loaded"),
        ] {
            let mut got = scrape.code("tieback_code_alloc_live_bytes", &labels, function);
            let mut want = truth(&facts, step, "live")?;
            if step == "loaded" {
                (got, want) = (got - self.loaded.0, want - self.loaded.1);
            }
            let error = off(got, want);
            assert!(
                error.abs() < SINGLE,
                "live of {function} after {order}: {got}, not {want}, {error:.1} standard errors"
            );
        }
        Ok(())
    }
}

#[test]
fn allocations_across_threads_processes_and_allocators() -> Result<()> {
    let (agent, mut watched) = watch(&["turns"], "full", ["", "", ""], &["--alloc-period", "16KiB"])?;
    let before = agent.settled()?;
    let watched = watched.remove(0);
    let mut turns = Turns {
        agent,
        watched,
        before,
        loaded: (0.0, 0.0),
    };
    turns.turn("threads", true)?;
    turns.turn("grow", true)?;
    turns.turn("shrink", true)?;
    turns.turn("fork", true)?;
    turns.agent.wait_for("the child watched", |_| {
        let service = turns.watched.api(&turns.agent).ok().flatten();
        service.is_some_and(|service| {
            service["processes"] == 2 && service["refused"] == Value::Array(Vec::new())
        })
    })?;
    turns.agent.settled()?;
    turns.turn("both", true)?;
    turns.turn("kill", false)?;
    let library = std::fs::read_dir("/usr/lib")?
        .flatten()
        .map(|folder| folder.path().join("libmimalloc.so.2"))
        .find(|path| path.exists())
        .context("no mimalloc")?;
    turns.turn(&format!("load {}", library.display()), false)?;
    turns.agent.wait_for("the new allocator watched", |_| {
        let service = turns.watched.api(&turns.agent).ok().flatten();
        let list = service.and_then(|service| service["allocators"].as_array().cloned());
        list.is_some_and(|list| {
            list.iter()
                .any(|path| path.as_str().is_some_and(|path| path.contains("mimalloc")))
        })
    })?;
    turns.agent.settled()?;
    // The tables of the library, by which stacks are walked, are made when it is first met in one.
    turns.watched.program.order("loaded")?;
    let facts = turns.watched.program.expect("loaded")?;
    let scrape = turns.agent.settled()?;
    let labels = turns.watched.labels();
    let got = scrape.code("tieback_code_alloc_live_bytes", &labels, "by_loaded");
    turns.loaded = (got, truth(&facts, "loaded", "live")?);
    turns.turn("loaded", false)
}
