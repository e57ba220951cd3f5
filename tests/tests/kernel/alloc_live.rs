//! Live objects by stack and how old they are, of a program that knows both.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::pprof::Profile;

use super::alloc::{PERIOD, SINGLE, Watched, truth, watch};

/// Functions of which something lives, and the size of what they allocate.
const LIVING: [(&str, f64); 3] = [("leak", 700.0), ("cache", 4096.0), ("churn", 2000.0)];

/// Seconds of the clock that the program and the agent's kernel side read, too.
fn now() -> f64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// By how many standard errors an estimate of objects is off: each of `size` bytes is sampled with a probability of about
/// `size / PERIOD`, and then stands for the inverse of that many.
fn off(estimate: f64, truth: f64, size: f64) -> f64 {
    (estimate - truth) / (truth * PERIOD / size).sqrt()
}

/// What is told of a function: sums and extremes over its stacks.
#[derive(Debug)]
struct Told {
    bytes: f64,
    objects: f64,
    youngest: f64,
    mean: f64,
    oldest: f64,
}

impl Told {
    fn of(service: &Value, function: &str) -> Result<Self> {
        let mut told = Self {
            bytes: 0.0,
            objects: 0.0,
            youngest: f64::MAX,
            mean: 0.0,
            oldest: 0.0,
        };
        let stacks = service["live"].as_array().context("no live allocations")?;
        for stack in stacks.iter().filter(|stack| stack["function"] == function) {
            let number = |what: &str| {
                stack[what]
                    .as_f64()
                    .with_context(|| format!("no {what} in {stack}"))
            };
            let frames = stack["stack"].as_array().context("no stack")?;
            let named = |name: &str| frames.iter().any(|frame| frame.as_str() == Some(name));
            ensure!(named(function) && named("main"), "{stack}");
            let bytes = number("bytes")?;
            told.bytes += bytes;
            told.objects += number("objects")?;
            told.youngest = told.youngest.min(number("youngest_seconds")?);
            told.oldest = told.oldest.max(number("oldest_seconds")?);
            told.mean += bytes * number("mean_age_seconds")?;
        }
        ensure!(told.bytes > 0.0, "nothing of {function}: {service}");
        told.mean /= told.bytes;
        Ok(told)
    }

    /// Ages at a moment between two, against when the program allocated. They are told in hundredths of a second.
    fn judge_ages(&self, facts: &Value, function: &str, [from, to]: [f64; 2]) -> Result<()> {
        let born = |what| truth(facts, &format!("born_{function}"), what);
        let (first, last) = (born("first")?, born("last")?);
        // Which of them were sampled is chance: the mean is of so many of these times.
        let error = SINGLE * (born("variance")? * PERIOD / self.bytes).sqrt() + 0.01;
        let [least, most] = [from - born("after")? - error, to - born("before")? + error];
        eprintln!("{function}: {self:?}, mean between {least:.2} and {most:.2}");
        ensure!(
            (least..=most).contains(&self.mean),
            "{function}: mean age {}, not {least} to {most}",
            self.mean
        );
        let range = from - last - 0.01..=to - first + 0.01;
        ensure!(
            range.contains(&self.youngest) && range.contains(&self.oldest) && self.youngest < self.oldest,
            "{function}: {self:?} is not in {range:?}"
        );
        ensure!(
            self.youngest <= self.mean && self.mean <= self.oldest,
            "{function}: {self:?}"
        );
        Ok(())
    }
}

/// Cumulated objects of functions, as Go's own tool reads a profile.
fn top(file: &Path, function: &str) -> Result<f64> {
    let output = Command::new("go")
        .args([
            "tool",
            "pprof",
            "-top",
            "-cum",
            "-nodecount=1000",
            "-nodefraction=0",
        ])
        .arg("-sample_index=inuse_objects")
        .arg(file)
        .env("HOME", file.parent().context("no folder")?)
        .output()
        .context("go tool pprof")?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && text.contains("Type: inuse_objects"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(5) == Some(&function)).then(|| words[3].parse().ok())?
    };
    let found = text.lines().find_map(of);
    found.with_context(|| format!("no {function}: {text}"))
}

/// The profile of what lives has both, bytes first, as `go tool pprof` expects them.
fn profile(agent: &Agent, watched: &Watched, facts: &Value) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("live.pb.gz");
    let path = format!(
        "/services/-/{}/profile/alloc_live?format=pprof",
        watched.program.service
    );
    let bytes = agent.get_bytes(&path)?;
    std::fs::write(&file, &bytes)?;
    let profile = Profile::of(&bytes)?;
    for (function, size) in LIVING {
        let live = truth(facts, function, "live")?;
        let objects = profile.sum("inuse_objects", function)?;
        let error = off(objects, live / size, size);
        ensure!(
            error.abs() < SINGLE,
            "{function}: {objects}, {error:.1} standard errors off"
        );
        let each = profile.sum("inuse_space", function)? / objects;
        ensure!(
            (each / size - 1.0).abs() < 0.01,
            "{function}: objects of {each} bytes, not {size}"
        );
        if Command::new("go").arg("version").output().is_ok() {
            let told = top(&file, function)?;
            ensure!(
                told == objects,
                "{function}: Go's tool says {told}, not {objects}"
            );
        }
    }
    Ok(())
}

#[test]
fn live_objects_and_their_ages_are_those_that_the_program_knows() -> Result<()> {
    let options = ["--alloc-period", "16KiB"];
    let (agent, mut programs) = watch(&["alloc", "alloc-cxx"], "full", ["3", "60", "40000"], &options)?;
    for phase in 0..2 {
        for program in &mut programs {
            program.program.go()?;
        }
        let mut facts = Vec::new();
        for program in &mut programs {
            facts.push(program.program.expect("counted")?);
        }
        // Time in which all grows older and nothing comes.
        agent.settled()?;
        let from = now();
        agent.settled()?;
        let mut errors = Vec::new();
        for (program, facts) in programs.iter().zip(&facts) {
            let service = program.api(&agent)?.context("no service")?;
            let moment = [from, now()];
            let mut all = 0.0;
            for (function, size) in LIVING {
                let told = Told::of(&service, function)?;
                let live = truth(facts, function, "live")? / size;
                let error = off(told.objects, live, size);
                eprintln!(
                    "{function} in {} in phase {phase}: {error:.2} standard errors",
                    program.name
                );
                assert!(
                    error.abs() < SINGLE,
                    "objects of {function} in {} in phase {phase}: {}, not {live}, {error:.1} standard errors",
                    program.name,
                    told.objects
                );
                errors.push(error);
                all += told.objects;
                if function != "churn" {
                    told.judge_ages(facts, function, moment)?;
                }
            }
            let total = service["live_objects"].as_f64().context("no live objects")?;
            // Those of each stack are rounded.
            ensure!(
                total > 0.99 * all && total < 1.05 * all,
                "{total} live, {all} of functions"
            );
            profile(&agent, program, facts)?;
        }
        // All of them together.
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(
            mean.abs() < SINGLE / (errors.len() as f64).sqrt(),
            "objects are off by {mean:.2} standard errors in the mean of phase {phase}"
        );
    }
    Ok(())
}
