//! `cargo xtask bench`: what the agent costs the programs of this host.
//!
//! The method of COST.md, section 4: one agent with its defaults, switched on and off by its kill switch in short slices;
//! each round has the modes off, off again and on in random order, so that a machine that drifts or is shared moves all
//! three alike. The figure is the interquartile mean of the rounds' ratios with a bootstrap interval. The second "off" is
//! the null pair: where its ratio's interval excludes 1, the measurement is void.

mod agent;
mod events;
mod loops;
mod servers;
mod stats;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use self::agent::Agent;
use self::stats::{Estimate, Random};
use crate::{build, command};

/// Measure what the agent costs the programs of this host.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these figures
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Rounds of three slices
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Length of a slice in milliseconds
    #[arg(long, default_value_t = 300, value_name = "MS")]
    slice: u64,
    /// Under three minutes: 12 rounds of 150 ms; wide intervals
    #[arg(long)]
    quick: bool,
    /// Also write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fail when a figure misses its target with its whole interval
    #[arg(long)]
    check: bool,
}

/// Something whose cost an operation is measured.
trait Work {
    /// Runs for a slice of time; nanoseconds an operation.
    fn slice(&mut self, slice: Duration) -> Result<f64>;
}

struct Figure {
    name: &'static str,
    what: &'static str,
    /// Upper bound of the ratio, where there is one.
    target: Option<f64>,
    start: fn() -> Result<Box<dyn Work>>,
}

const FIGURES: [Figure; 8] = [
    Figure {
        name: "redis",
        what: "Redis under redis-benchmark: server CPU a request",
        target: Some(1.015),
        start: || Ok(Box::new(servers::Server::redis()?)),
    },
    Figure {
        name: "nginx",
        what: "nginx under wrk: server CPU a request",
        target: Some(1.015),
        start: || Ok(Box::new(servers::Server::nginx()?)),
    },
    Figure {
        name: "pgbench",
        what: "PostgreSQL under pgbench -S: time a transaction",
        target: Some(1.015),
        start: || Ok(Box::new(servers::Postgres::new()?)),
    },
    Figure {
        name: "dd",
        what: "dd bs=1: read and write of a byte",
        target: Some(1.10),
        start: || Ok(Box::new(loops::Dd::new()?)),
    },
    Figure {
        name: "ping-pong",
        what: "context switch ping-pong on one CPU",
        target: Some(1.05),
        start: || Ok(Box::new(loops::PingPong::new()?)),
    },
    Figure {
        name: "connect",
        what: "connect, accept, close on loopback",
        target: Some(1.05),
        start: || Ok(Box::new(loops::Connect::new()?)),
    },
    Figure {
        name: "exec",
        what: "fork, exec and exit of /bin/true",
        target: Some(1.05),
        start: || Ok(Box::new(loops::Exec)),
    },
    Figure {
        name: "faults",
        what: "first touch of a page",
        target: None,
        start: || Ok(Box::new(loops::Faults)),
    },
];

#[derive(serde::Serialize)]
struct Outcome {
    name: &'static str,
    what: &'static str,
    target: Option<f64>,
    off_ns: f64,
    ratio: Estimate,
    null: Estimate,
    void: bool,
    agent_cpu_ratio: f64,
    agent_resident_bytes: u64,
    agent_map_bytes: f64,
}

impl Outcome {
    fn verdict(&self) -> &'static str {
        match self.target {
            _ if self.void => "void (null pair)",
            None => "",
            Some(target) if self.ratio.value <= target => "met",
            Some(target) if self.ratio.low <= target => "open",
            Some(_) => "missed",
        }
    }
}

fn measure(agent: &Agent, figure: &Figure, rounds: usize, slice: Duration) -> Result<Outcome> {
    let mut work = (figure.start)()?;
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let (mut ratios, mut nulls, mut offs) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut on_time) = (Duration::ZERO, Duration::ZERO);
    // A loop that needs to warm up does so before it counts.
    work.slice(slice)?;
    for round in 1..=rounds {
        let mut order = [0, 1, 2];
        random.shuffle(&mut order);
        let mut cost = [0.0; 3];
        for mode in order {
            agent.switch(mode == 2)?;
            let (before, _) = agent.usage()?;
            let began = std::time::Instant::now();
            cost[mode] = work.slice(slice)?;
            if mode == 2 {
                cpu += agent.usage()?.0.saturating_sub(before);
                on_time += began.elapsed();
            }
        }
        let off = f64::midpoint(cost[0], cost[1]);
        ratios.push(cost[2] / off);
        nulls.push(cost[1] / cost[0]);
        offs.push(off);
        if round % 10 == 0 {
            eprintln!("bench: {}: round {round} of {rounds}", figure.name);
        }
    }
    let null = Estimate::of(&nulls);
    Ok(Outcome {
        name: figure.name,
        what: figure.what,
        target: figure.target,
        off_ns: stats::interquartile_mean(&offs),
        ratio: Estimate::of(&ratios),
        null,
        void: !null.holds(1.0),
        agent_cpu_ratio: cpu.as_secs_f64() / on_time.as_secs_f64(),
        agent_resident_bytes: agent.usage()?.1,
        agent_map_bytes: agent.metric("tieback_agent_bpf_map_bytes")?,
    })
}

fn print(outcomes: &[Outcome]) {
    println!(
        "| figure | off | with the agent, 95 % interval | target | | null pair | agent: CPU, memory + maps |"
    );
    println!("|---|---|---|---|---|---|---|");
    for each in outcomes {
        let target = each
            .target
            .map_or_else(|| "-".to_owned(), |target| format!("{target:.3}"));
        println!(
            "| {} | {} | ×{:.3} [{:.3}, {:.3}] | {target} | {} | {:.3} [{:.3}, {:.3}] | {:.2} %, {:.0} + {:.0} MiB |",
            each.what,
            duration(each.off_ns),
            each.ratio.value,
            each.ratio.low,
            each.ratio.high,
            each.verdict(),
            each.null.value,
            each.null.low,
            each.null.high,
            each.agent_cpu_ratio * 100.0,
            each.agent_resident_bytes as f64 / f64::from(1 << 20),
            each.agent_map_bytes / f64::from(1 << 20),
        );
    }
}

fn duration(ns: f64) -> String {
    if ns < 1e4 {
        format!("{ns:.0} ns")
    } else {
        format!("{:.1} µs", ns / 1e3)
    }
}

/// Measures, then prints target beside result.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(
        command::is_root(),
        "not root: sudo -E env PATH=\"$PATH\" cargo xtask bench"
    );
    for name in &args.only {
        if !FIGURES.iter().any(|figure| figure.name == name) {
            let known: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
            bail!("no figure {name}; there are {}", known.join(", "));
        }
    }
    let program = build::run(&build::Args::default())?;
    let (rounds, slice) = if args.quick {
        (12, 150)
    } else {
        (args.rounds.max(4), args.slice)
    };
    let slice = Duration::from_millis(slice);
    let agent = Agent::start(&program)?;
    let rest = rest(&agent)?;
    let mut outcomes = Vec::new();
    for figure in &FIGURES {
        if !args.only.is_empty() && !args.only.iter().any(|name| name == figure.name) {
            continue;
        }
        match measure(&agent, figure, rounds, slice) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => eprintln!("bench: {}: skipped: {error:#}", figure.name),
        }
    }
    println!(
        "\n{}, {rounds} rounds of {} ms slices\n",
        machine()?,
        slice.as_millis()
    );
    print(&outcomes);
    println!("\nThe agent at rest: {rest}");
    agent.switch(true)?;
    println!("\n{}", events::table()?);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&outcomes)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let missed: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.verdict() == "missed")
        .map(|outcome| outcome.name)
        .collect();
    ensure!(!args.check || missed.is_empty(), "missed: {}", missed.join(", "));
    Ok(())
}

/// CPU and memory of the agent over twenty seconds in which the bench does nothing.
fn rest(agent: &Agent) -> Result<String> {
    agent.switch(true)?;
    // Its start (type information, calibration, the first symbols) is no rest.
    std::thread::sleep(Duration::from_secs(12));
    let (before, _) = agent.usage()?;
    let began = std::time::Instant::now();
    std::thread::sleep(Duration::from_secs(20));
    let (after, resident) = agent.usage()?;
    let share = after.saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
    let maps = agent.metric("tieback_agent_bpf_map_bytes")?;
    Ok(format!(
        "{:.2} % of one CPU over 20 s, {:.0} MiB resident, {:.0} MiB of BPF maps (targets 0.3 %, 60 and 64 MiB)",
        share * 100.0,
        resident as f64 / f64::from(1 << 20),
        maps / f64::from(1 << 20)
    ))
}

fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpus = std::thread::available_parallelism()?;
    Ok(format!("Linux {}, {cpus} CPUs", kernel.trim()))
}
