//! What the agent needs for many open connections: CPU time of a tick and memory, by their number.

use super::{
    CORE_AT_REST, MAPS, RESIDENT,
    agent::{Agent, Memory},
    loads::{Site, loops},
    process::{Process, wait_for},
    report::{Figure, Unit},
    stats::Estimate,
};
use anyhow::{Context as _, Result, ensure};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Name for `--only`.
pub(crate) const CONNECTIONS: &str = "connections";
/// Loads that are part of it: what a connection costs, and what a request on one that is known.
pub(crate) const LOADS: [&str; 2] = [loops::CONNECT.name, loops::REQUEST.name];

/// Open connections, with both ends on this host: twice as many sockets.
const COUNTS: [usize; 3] = [0, 10_000, 50_000];
/// Most seconds of CPU for each end in a tick: what it costs to read a socket and a descriptor once (1.2 and 1.9 µs).
const END: f64 = 3.1e-6;
/// How often its memory is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// CPU time of the agent's ticks, and its memory, while connections are open and idle.
pub(crate) fn connections(agent: &mut Agent, site: &Site<'_>, ticks: usize) -> Result<Vec<Figure>> {
    agent.switch(true)?;
    let tick = Duration::from_secs_f64(agent.metric(TICK)?);
    let before = agent.sum(OPEN)?;
    let mut figures = Vec::new();
    for count in COUNTS {
        let crowd = (count > 0).then(|| crowd(site, count)).transpose()?;
        wait_for_ends(agent, before + 2.0 * count as f64, tick)?;
        let (cpu, memory) = watch(agent, tick, ticks)?;
        let open = agent.sum(OPEN)? - before;
        ensure!(
            (open - 2.0 * count as f64).abs() <= 0.01 * count as f64 + 20.0,
            "the agent knows {open} ends of {count} connections"
        );
        drop(crowd);
        wait_for_ends(agent, before, tick)?;
        figures.extend(told(count, cpu, memory, tick));
    }
    Ok(figures)
}

const TICK: &str = "tieback_window_length_seconds";
const OPEN: &str = "tieback_connections";

/// A process and its child with connections between them, in a network namespace of their own: nothing of it is left when
/// they end.
fn crowd(site: &Site<'_>, count: usize) -> Result<Process> {
    let file = site.dir.join("crowd.progress");
    let mut command = loops::apart(site.workload);
    command.arg("crowd").arg(count.to_string()).arg(&file);
    let mut process = Process::start(&mut command, &site.dir.join("crowd.log"))?;
    wait_for("all connections", || {
        process.alive()?;
        let open = loops::progress(&file).map_or(0, |done| done.operations);
        Ok((open == count as u64).then_some(()))
    })?;
    Ok(process)
}

/// Waits until the agent counts about so many open ends: other programs of the host have connections, too.
fn wait_for_ends(agent: &mut Agent, ends: f64, tick: Duration) -> Result<()> {
    let began = Instant::now();
    while (agent.sum(OPEN)? - ends).abs() > 20.0 {
        ensure!(
            began.elapsed() < 10 * tick,
            "the agent counts {} open ends of connections, not {ends}",
            agent.sum(OPEN)?
        );
        thread::sleep(tick / 4);
    }
    Ok(())
}

/// CPU seconds of each of some ticks, and the most memory meanwhile. Nobody asks the agent for anything in between.
fn watch(agent: &mut Agent, tick: Duration, ticks: usize) -> Result<(Estimate, Memory)> {
    // The first tick with all of them looks for the program at the other end of each.
    thread::sleep(2 * tick);
    let (mut seconds, mut resident) = (Vec::new(), 0.0_f64);
    for _ in 0..ticks {
        let (began, before) = (Instant::now(), agent.cpu_ns()?);
        while began.elapsed() < tick {
            thread::sleep(LOOK);
            resident = resident.max(agent.resident()?);
        }
        let used = (agent.cpu_ns()? - before) as f64 / 1e9;
        seconds.push(used * tick.as_secs_f64() / began.elapsed().as_secs_f64());
    }
    let memory = Memory {
        // What is mapped of BPF maps would count twice.
        resident: resident - agent.mapped_maps()?,
        maps: agent.memory()?.maps,
    };
    let cpu = Estimate::of_mean(&seconds).context("not watched at all")?;
    Ok((cpu, memory))
}

fn told(count: usize, cpu: Estimate, memory: Memory, tick: Duration) -> [Figure; 3] {
    let exact = |value| Estimate {
        value,
        low: value,
        high: value,
    };
    let milliseconds = Estimate {
        value: cpu.value * 1e3,
        low: cpu.low * 1e3,
        high: cpu.high * 1e3,
    };
    let (tick, with) = (tick.as_secs_f64(), format!("with {count} open connections"));
    [
        Figure::of_agent(
            &format!("CPU in {tick:.0} s {with}"),
            Unit::Milliseconds,
            milliseconds,
            (CORE_AT_REST * tick + END * 2.0 * count as f64) * 1e3,
        ),
        Figure::of_agent(
            &format!("resident memory {with}, at most"),
            Unit::Bytes,
            exact(memory.resident),
            RESIDENT,
        ),
        Figure::of_agent(&format!("BPF maps {with}"), Unit::Bytes, exact(memory.maps), MAPS),
    ]
}
