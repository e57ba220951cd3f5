//! `cargo xtask bench`: what the agent costs the host.
//!
//! A program under full load is measured in short slices with the agent's programs attached and detached in random order,
//! because a host's speed drifts by more in a minute than the agent costs. Each round has two slices without
//! the agent; where these differ, the run is void. The first statistic is the CPU time per operation of the measured
//! program, which other programs on the host disturb least.

mod agent;
mod alloc;
mod connections;
mod executables;
mod loads;
mod process;
mod report;
mod slices;
mod stats;
mod unwind;

use crate::{build, command, workspace, workspace::Workspace};
use agent::{Agent, Runs};
use anyhow::{Context as _, Result, bail, ensure};
use loads::{Load, Site};
use report::{Figure, Report, Unit};
use slices::Plan;
use stats::Estimate;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Most that the agent's process may use of one CPU with nothing to look at, and under load.
const CORE_AT_REST: f64 = 0.005;
const CORE_UNDER_LOAD: f64 = 0.01;
/// Most memory, resident and of maps.
const RESIDENT: f64 = 60.0 * MIB;
const MAPS: f64 = 64.0 * MIB;
const MIB: f64 = 1024.0 * 1024.0;

/// Measure what the agent costs the programs of this host. Needs root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these workloads (`rest` is the agent alone, `stacks` what a stack costs, `executables` its memory with many,
    /// `connections` what it needs for many that are open, `alloc` what watching allocations does to programs); can be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Rounds for each workload, with one slice of each mode
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of a slice in milliseconds
    #[arg(long, value_name = "MS")]
    slice: Option<u64>,
    /// Less than three minutes, and intervals to match
    #[arg(long)]
    quick: bool,
    /// Length of the agent's windows [default: the agent's own; 1s if quick]
    #[arg(long, value_name = "TIME")]
    interval: Option<String>,
    /// Write the results as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table into the README
    #[arg(long)]
    readme: bool,
    /// Fail where a target is missed by more than the interval
    #[arg(long)]
    check: bool,
    /// Measure this agent instead of building one, to compare two of them
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// Handed to `tieback agent`
    #[arg(last = true)]
    agent: Vec<String>,
}

/// Measures, then prints target beside result.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !command::is_root() {
        bail!("the agent and the servers need root; type: sudo -E cargo xtask bench");
    }
    let loads = chosen(&args.only)?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => build::run(&build::Args::default())?,
    };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let needs_workload = [connections::CONNECTIONS, alloc::ALLOC];
    let workload = if loads.is_empty() && !needs_workload.into_iter().any(wanted) {
        PathBuf::new()
    } else {
        workload()?
    };
    let dir = tempfile::tempdir()?;
    // PostgreSQL's user must reach its own folder inside.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
    let site = Site {
        dir: dir.path(),
        workload: &workload,
    };
    let mut options = Vec::new();
    if let Some(interval) = args.interval.as_deref().or(args.quick.then_some("1s")) {
        options.extend(["--interval".to_owned(), interval.to_owned()]);
    }
    options.extend_from_slice(&args.agent);
    let mut stacks = Vec::new();
    if wanted(unwind::STACKS) {
        println!("bench: stacks: what a user stack costs by its depth");
        stacks = unwind::stacks(&program, dir.path())?;
    }
    let mut agent = Agent::start(&program, &options, dir.path())?;
    let mut report = measure(args, &loads, &mut agent, &site)?;
    report.figures.append(&mut stacks);
    if wanted(executables::EXECUTABLES) {
        // What was measured so far is not lost where the rest of the run is disturbed.
        if !report.figures.is_empty() {
            publish(args, &report)?;
        }
        println!("bench: executables: the agent's memory with many of them");
        let mut figures = executables::executables(&mut agent, dir.path())?;
        report.figures.append(&mut figures);
    }
    if wanted(connections::CONNECTIONS) {
        if !report.figures.is_empty() {
            publish(args, &report)?;
        }
        println!("bench: connections: what the agent needs for many that are open");
        let ticks = if args.quick { 3 } else { 6 };
        let mut figures = connections::connections(&mut agent, &site, ticks)?;
        report.figures.append(&mut figures);
    }
    drop(agent);
    if wanted(alloc::ALLOC) {
        if !report.figures.is_empty() {
            publish(args, &report)?;
        }
        println!("bench: alloc: what watching allocations does to programs");
        let rounds = args.rounds.unwrap_or(if args.quick { 4 } else { 16 });
        let (mut figures, mut skipped) = alloc::alloc(&program, &site, rounds)?;
        report.figures.append(&mut figures);
        report.skipped.append(&mut skipped);
    }

    publish(args, &report)?;
    let missed = report.missed();
    ensure!(
        !args.check || missed.is_empty(),
        "targets missed: {}",
        missed.join(", ")
    );
    Ok(())
}

/// Prints the report, and writes it where it was asked for.
fn publish(args: &Args, report: &Report) -> Result<()> {
    let text = report.markdown();
    println!("\n{text}");
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(report)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    if args.readme {
        let path = workspace::root().join("README.md");
        let old = fs::read_to_string(&path)?;
        fs::write(&path, insert(&old, &text)?)?;
    }
    Ok(())
}

/// The name of the agent alone.
const REST: &str = "rest";

fn chosen(only: &[String]) -> Result<Vec<&'static Load>> {
    let names: Vec<&str> = loads::ALL
        .iter()
        .map(|load| load.name)
        .chain([
            REST,
            unwind::STACKS,
            executables::EXECUTABLES,
            connections::CONNECTIONS,
            alloc::ALLOC,
        ])
        .collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("no workload {unknown}; there are: {}", names.join(", "));
    }
    let chosen = |name: &str| {
        let part = |only: &String| only == connections::CONNECTIONS && connections::LOADS.contains(&name);
        only.is_empty() || only.iter().any(|only| only == name || part(only))
    };
    Ok(loads::ALL.iter().filter(|load| chosen(load.name)).collect())
}

/// Builds the loops and tells where they are.
fn workload() -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo
        .args(["build", "--release", "--package", "tieback-tests", "--bins"])
        .current_dir(workspace::root());
    command::checked(&mut cargo)?;
    Ok(Workspace::load()?
        .target_directory
        .join("release/tieback-workload"))
}

fn plan(args: &Args) -> Plan {
    let (rounds, slice, warm_up, watch) = if args.quick {
        (12, 200, 4, 2)
    } else {
        (40, 300, 20, 20)
    };
    Plan {
        rounds: args.rounds.unwrap_or(rounds).max(1),
        slice: Duration::from_millis(args.slice.unwrap_or(slice).max(1)),
        warm_up: Duration::from_secs(warm_up),
        watch,
    }
}

fn measure(args: &Args, loads: &[&Load], agent: &mut Agent, site: &Site<'_>) -> Result<Report> {
    let plan = plan(args);
    let mut report = Report {
        command: typed(),
        machine: report::machine()?,
        base_ns: BTreeMap::new(),
        skipped: Vec::new(),
        figures: Vec::new(),
        programs: Vec::new(),
    };
    let mut own = Vec::new();
    let mut memory = Vec::new();
    if args.only.is_empty() || args.only.iter().any(|only| only == REST) {
        println!("bench: the agent at rest");
        let (cores, used) = slices::watch(agent, if args.quick { 5 } else { 30 })?;
        own.push(Figure::of_agent("CPU at rest", Unit::Core, cores, CORE_AT_REST));
        memory.push(used);
    }
    let mut runs: BTreeMap<String, Runs> = BTreeMap::new();
    for load in loads {
        if let Some(missing) = load.needs.iter().find(|program| command::find(program).is_none()) {
            let line = format!("{}: this host has no {missing}", load.name);
            println!("bench: left out, {line}");
            report.skipped.push(line);
            continue;
        }
        println!("bench: {}: {}", load.name, load.what);
        let mut running = (load.start)(site).with_context(|| format!("start {}", load.name))?;
        let measured = slices::measure(load.name, agent, &mut running, plan)
            .with_context(|| format!("measure {}", load.name))?;
        drop(running);
        report.figures.extend(Figure::of_load(load, &measured));
        report.base_ns.insert(load.name, measured.base_ns);
        let what = format!("CPU under {}", load.name);
        own.push(Figure::of_agent(
            &what,
            Unit::Core,
            measured.agent_cores,
            CORE_UNDER_LOAD,
        ));
        memory.push(measured.memory);
        for (name, more) in measured.runs {
            let sum = runs.entry(name).or_default();
            sum.ns += more.ns;
            sum.count += more.count;
        }
    }
    report.figures.append(&mut own);
    for (what, target, of) in [
        (
            "resident memory at most",
            RESIDENT,
            (|m| m.resident) as fn(&agent::Memory) -> f64,
        ),
        ("BPF maps at most", MAPS, |m| m.maps),
    ] {
        // No load was asked for, nothing was measured.
        let Some(most) = memory.iter().map(of).reduce(f64::max) else {
            break;
        };
        let most = Estimate {
            value: most,
            low: most,
            high: most,
        };
        report
            .figures
            .push(Figure::of_agent(what, Unit::Bytes, most, target));
    }
    report.programs = report::program_costs(&runs);
    Ok(report)
}

/// The command as it was typed, short of paths.
fn typed() -> String {
    let args = std::env::args().skip(1);
    let short = |arg: String| match Path::new(&arg).file_name() {
        Some(name) if arg.starts_with('/') => name.to_string_lossy().into_owned(),
        _ => arg,
    };
    std::iter::once("cargo xtask".to_owned())
        .chain(args.map(short))
        .collect::<Vec<_>>()
        .join(" ")
}

const BEGIN: &str = "<!-- measured:cost -->";
const END: &str = "<!-- /measured:cost -->";

/// Puts the tables between the README's marks. `cargo xtask docs` leaves them alone: they are measured, not derived.
fn insert(readme: &str, text: &str) -> Result<String> {
    let marks = || format!("the README has no {BEGIN} … {END}");
    let (before, rest) = readme.split_once(BEGIN).with_context(marks)?;
    let (_, after) = rest.split_once(END).with_context(marks)?;
    Ok(format!("{before}{BEGIN}\n{text}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{chosen, insert, loads};

    #[test]
    fn workloads_are_chosen_by_name_and_have_one_each() {
        assert_eq!(chosen(&[]).unwrap().len(), loads::ALL.len());
        assert_eq!(chosen(&["dd".to_owned(), "rest".to_owned()]).unwrap().len(), 1);
        assert_eq!(chosen(&["connections".to_owned()]).unwrap().len(), 2);
        assert!(chosen(&["ddd".to_owned()]).is_err());
        let mut names: Vec<_> = loads::ALL.iter().map(|load| load.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), loads::ALL.len());
    }

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let readme = "a\n<!-- measured:cost -->\nold\n<!-- /measured:cost -->\nb\n";
        let new = insert(readme, "new\n").unwrap();
        assert_eq!(new, readme.replace("old", "new"));
        assert!(insert("a", "new").is_err());
    }
}
