//! What watching allocations does to the programs that allocate, beside what bpftrace does.
//!
//! A program runs at full speed; in each round slices without anything (two, whose ratio tells whether the run can tell anything)
//! and one with each tool, in random order. A tool is started for its slice and ended after it.

use super::{
    loads::{Running, Site, loops, redis},
    process::{Process, free_port, get, wait_for},
    report::Figure,
    stats::{Estimate, Random},
};
use crate::command;
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Name for `--only`.
pub(crate) const ALLOC: &str = "alloc";

/// Length of a slice: some windows of mode `duty`.
const SLICE: Duration = Duration::from_secs(1);
/// From when a tool is there to its slice: the agent calibrates for a second or two, and in mode `duty` windows must have told how much
/// the program allocates.
const SETTLE: Duration = Duration::from_secs(4);

/// What is measured.
const PROGRAMS: [(&str, &str, Starter); 3] = [
    ("malloc loop", "allocation", loops::malloc),
    ("redis", "request", redis::start),
    ("python json", "document", loops::json),
];

type Starter = fn(&Site<'_>) -> Result<Running>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tool {
    Nothing,
    /// The same again.
    Null,
    /// The agent, which sees growth by code but no allocations.
    Growth,
    Duty,
    Full,
    /// Counts and bytes of malloc, by the kernel's uprobes.
    Bpftrace,
}

impl Tool {
    const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Null,
        Self::Growth,
        Self::Duty,
        Self::Full,
        Self::Bpftrace,
    ];

    /// What it is called, and the most that it may make of the CPU time of an operation.
    fn told(self) -> Option<(&'static str, Option<f64>)> {
        match self {
            Self::Nothing | Self::Null => None,
            Self::Growth => Some(("growth only", Some(1.01))),
            // One per cent for its windows, one for all else.
            Self::Duty => Some(("duty", Some(1.02))),
            Self::Full => Some(("full", None)),
            Self::Bpftrace => Some(("bpftrace counting malloc", None)),
        }
    }

    /// What it may make of the time of an operation of a program that never waits, if that is of interest: what is left of its
    /// throughput.
    fn told_time(self) -> Option<f64> {
        (self == Self::Duty).then_some(1.02)
    }

    /// Starts it for a process and returns when it is at work.
    fn start(self, agent: &Path, dir: &Path, pid: u32) -> Result<Option<Process>> {
        match self {
            Self::Nothing | Self::Null => Ok(None),
            Self::Growth => watch(agent, dir, pid, None).map(Some),
            Self::Duty => watch(agent, dir, pid, Some("duty")).map(Some),
            Self::Full => watch(agent, dir, pid, Some("full")).map(Some),
            Self::Bpftrace => bpftrace(dir, pid).map(Some),
        }
    }
}

/// The figures, and what was left out.
pub(crate) fn alloc(agent: &Path, site: &Site<'_>, rounds: usize) -> Result<(Vec<Figure>, Vec<String>)> {
    let needs = ["bpftrace", "redis-server", "redis-benchmark", "python3"];
    let missing: Vec<&str> = needs
        .into_iter()
        .filter(|program| command::find(program).is_none())
        .collect();
    if !missing.is_empty() {
        let line = format!("{ALLOC}: this host has no {}", missing.join(", "));
        println!("bench: left out, {line}");
        return Ok((Vec::new(), vec![line]));
    }
    let mut figures = Vec::new();
    for (name, unit, start) in PROGRAMS {
        let mut load = start(site).with_context(|| format!("start {name}"))?;
        let measured =
            measure(agent, site.dir, &mut load, rounds).with_context(|| format!("measure {name}"))?;
        let (cpu, time) = (|cost: &Cost| cost.cpu_ns, |cost: &Cost| cost.wall_ns);
        let null = (
            ratio(&measured, Tool::Null, cpu)?,
            ratio(&measured, Tool::Null, time)?,
        );
        for tool in Tool::ALL {
            if let Some((told, target)) = tool.told() {
                let what = format!("{name}, {told}: CPU per {unit}");
                let of = ratio(&measured, tool, cpu)?;
                figures.push(Figure::of_watching(what, of, null.0, target));
                if let Some(target) = tool.told_time() {
                    let what = format!("{name}, {told}: time per {unit}");
                    let of = ratio(&measured, tool, time)?;
                    figures.push(Figure::of_watching(what, of, null.1, Some(target)));
                }
            }
        }
    }
    Ok((figures, Vec::new()))
}

/// An operation with a tool, as a multiple of one without.
fn ratio(measured: &[Round], tool: Tool, of: impl Fn(&Cost) -> f64) -> Result<Estimate> {
    let each = measured.iter().filter_map(|round| {
        let cost = |tool: Tool| round.get(&tool).map(&of);
        let base = match tool {
            Tool::Null => cost(Tool::Nothing)?,
            _ => f64::midpoint(cost(Tool::Nothing)?, cost(Tool::Null)?),
        };
        Some(cost(tool)? / base)
    });
    Estimate::of(&each.collect::<Vec<_>>()).context("no rounds")
}

/// What an operation cost.
struct Cost {
    cpu_ns: f64,
    wall_ns: f64,
}

type Round = BTreeMap<Tool, Cost>;

/// What operations cost by tool, for each round.
fn measure(agent: &Path, dir: &Path, load: &mut Running, rounds: usize) -> Result<Vec<Round>> {
    let mut order = Tool::ALL;
    let mut random = Random::new(u64::from(std::process::id()));
    let pid = *load.measured.first().context("nothing to measure")?;
    let mut all = Vec::new();
    for _ in 0..rounds.max(1) {
        random.shuffle(&mut order);
        let mut round = BTreeMap::new();
        for tool in order {
            let running = tool
                .start(agent, dir, pid)
                .with_context(|| format!("start {tool:?}"))?;
            thread::sleep(SETTLE);
            let (began, before) = (Instant::now(), load.read()?);
            thread::sleep(SLICE);
            let (wall, after) = (began.elapsed(), load.read()?);
            drop(running);
            let operations = (after.operations - before.operations).max(1) as f64;
            let cost = Cost {
                cpu_ns: (after.cpu_ns - before.cpu_ns) as f64 / operations,
                wall_ns: wall.as_nanos() as f64 / operations,
            };
            round.insert(tool, cost);
        }
        all.push(round);
    }
    Ok(all)
}

/// The agent, with a rule that makes the process a service whose allocations it watches.
fn watch(agent: &Path, dir: &Path, pid: u32, mode: Option<&str>) -> Result<Process> {
    let exe = fs::read_link(format!("/proc/{pid}/exe")).context("read the program's path")?;
    let rules = dir.join("alloc.toml");
    // Whoever else runs this program here is watched, too.
    let rule = format!(
        "[[service]]\nexe = {:?}\nname = \"measured\"\n",
        exe.display().to_string()
    );
    fs::write(&rules, rule)?;
    let port = free_port()?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM"])
        .arg(agent)
        .args([
            "agent",
            "--interval",
            "1s",
            "--listen",
            &format!("127.0.0.1:{port}"),
        ])
        .arg("--config")
        .arg(&rules);
    if let Some(mode) = mode {
        // The cost is to be seen, not to be cut off.
        command.args([
            "--alloc",
            &format!("measured={mode}"),
            "--alloc-slowdown",
            "10000",
        ]);
    }
    let mut process = Process::start(&mut command, &dir.join("alloc-agent.log"))?;
    wait_for("the agent to watch", || {
        process.alive()?;
        let Ok(text) = get(port, "/api/v1/allocations") else {
            return Ok(None);
        };
        if mode.is_none() {
            return Ok(get(port, "/readyz").ok().map(drop));
        }
        let document: serde_json::Value = serde_json::from_str(&text)?;
        let from = &document["services"][0]["allocated_from"];
        Ok((from[0] == "probes").then_some(()))
    })?;
    Ok(process)
}

/// bpftrace, counting what the process allocates.
fn bpftrace(dir: &Path, pid: u32) -> Result<Process> {
    let library = allocator(pid)?;
    let program = format!(
        "uprobe:{}:malloc /pid == {pid}/ {{ @count = count(); @bytes = sum(arg0); }}",
        library.display()
    );
    let bpftrace = command::find("bpftrace").context("no bpftrace")?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM"])
        .arg(bpftrace)
        .args(["-e", &program]);
    let mut process =
        Process::start(&mut command, &dir.join("bpftrace.log"))?.ended_by(rustix::process::Signal::INT);
    // What it prints comes late; a probe that is attached is an event of perf.
    let files = format!("/proc/{}/fd", process.pid());
    wait_for("bpftrace", || {
        process.alive()?;
        let attached = fs::read_dir(&files)?
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|target| target.to_string_lossy().contains("perf_event"));
        Ok(attached.then_some(()))
    })?;
    Ok(process)
}

/// The library that has the process's malloc: an allocator of its own, else the C library.
fn allocator(pid: u32) -> Result<PathBuf> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let files = || {
        maps.lines()
            .filter_map(|line| line.split_ascii_whitespace().nth(5))
    };
    ["libjemalloc", "libc.so", "libc-"]
        .into_iter()
        .find_map(|name| files().find(|path| path.contains(name)))
        .map(PathBuf::from)
        .context("no library with malloc")
}
