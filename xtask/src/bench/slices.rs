//! Short slices in random order, with and without the agent's programs attached, and what the pairs of a round say.

use super::{
    agent::{self, Agent, Memory, Runs},
    loads::Running,
    stats::{Estimate, Random},
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rounds; each has one slice of each mode.
    pub(crate) rounds: usize,
    /// Length of a slice.
    pub(crate) slice: Duration,
    /// Before the first round: the governor needs some windows to find its duty for this load, and the agent to know
    /// its processes.
    pub(crate) warm_up: Duration,
    /// Seconds for which the agent itself is watched under each load.
    pub(crate) watch: u32,
}

/// After each change: caches fill, and patched code and new links come to rest. Also where nothing changed, so that all
/// modes are treated alike.
const SETTLE: Duration = Duration::from_millis(150);
/// How long the kernel times the programs.
const TIMED: Duration = Duration::from_secs(1);
/// Longest silence.
const PROGRESS: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Off,
    /// The same as `Off`: their ratio tells whether the run can tell anything.
    Null,
    On,
}

/// What one slice read.
#[derive(Clone, Copy, Debug)]
struct Slice {
    cpu_ns: f64,
    per_second: f64,
}

/// What a workload's slices say.
pub(crate) struct Measured {
    /// CPU per operation, with over without.
    pub(crate) cpu: Estimate,
    /// The same without over without.
    pub(crate) cpu_null: Estimate,
    /// Operations per second, with over without.
    pub(crate) rate: Estimate,
    /// The same without over without.
    pub(crate) rate_null: Estimate,
    /// Nanoseconds of CPU per operation without the agent.
    pub(crate) base_ns: f64,
    /// CPUs that the agent used while attached.
    pub(crate) agent_cores: Estimate,
    /// The agent's memory at the end.
    pub(crate) memory: Memory,
    /// What the kernel timed.
    pub(crate) runs: BTreeMap<String, Runs>,
}

/// Measures one workload.
pub(crate) fn measure(name: &str, agent: &mut Agent, load: &mut Running, plan: Plan) -> Result<Measured> {
    let mut order = [Mode::Off, Mode::Null, Mode::On];
    let mut random = Random::new(u64::from(std::process::id()));
    let mut rounds = Vec::with_capacity(plan.rounds);
    agent.switch(true)?;
    thread::sleep(plan.warm_up);
    let mut told = Instant::now();
    while rounds.len() < plan.rounds {
        random.shuffle(&mut order);
        let mut round = BTreeMap::new();
        for mode in order {
            round.insert(mode as u8, slice(agent, load, mode, plan.slice)?);
        }
        let of = |mode: Mode| {
            round
                .get(&(mode as u8))
                .copied()
                .context("a round without a mode")
        };
        rounds.push([of(Mode::Off)?, of(Mode::Null)?, of(Mode::On)?]);
        if told.elapsed() > PROGRESS {
            println!("bench: {name}: {} of {} rounds", rounds.len(), plan.rounds);
            told = Instant::now();
        }
    }
    // Slices are too short for it: it works once a window.
    let (agent_cores, memory) = watch(agent, plan.watch)?;
    let runs = timed(agent)?;
    let estimate = |of: &dyn Fn(&[Slice; 3]) -> f64| {
        let ratios: Vec<f64> = rounds.iter().map(of).filter(|ratio| ratio.is_finite()).collect();
        Estimate::of(&ratios).with_context(|| format!("{name} did nothing"))
    };
    let mean = |a: f64, b: f64| f64::midpoint(a, b);
    Ok(Measured {
        // Two slices without the agent are a better base than one.
        cpu: estimate(&|[off, null, on]| on.cpu_ns / mean(off.cpu_ns, null.cpu_ns))?,
        cpu_null: estimate(&|[off, null, _]| null.cpu_ns / off.cpu_ns)?,
        rate: estimate(&|[off, null, on]| on.per_second / mean(off.per_second, null.per_second))?,
        rate_null: estimate(&|[off, null, _]| null.per_second / off.per_second)?,
        base_ns: estimate(&|[off, null, _]| mean(off.cpu_ns, null.cpu_ns))?.value,
        agent_cores,
        memory,
        runs,
    })
}

fn slice(agent: &mut Agent, load: &mut Running, mode: Mode, length: Duration) -> Result<Slice> {
    agent.switch(mode == Mode::On)?;
    thread::sleep(SETTLE);
    let (began, before) = (Instant::now(), load.read()?);
    thread::sleep(length);
    let (after, seconds) = (load.read()?, began.elapsed().as_secs_f64());
    let operations = (after.operations - before.operations) as f64;
    Ok(Slice {
        cpu_ns: (after.cpu_ns - before.cpu_ns) as f64 / operations,
        per_second: operations / seconds,
    })
}

/// What the programs run and take while the kernel times them.
fn timed(agent: &Agent) -> Result<BTreeMap<String, Runs>> {
    let _timing = agent::timing()?;
    let before = agent.runs()?;
    thread::sleep(TIMED);
    let mut runs = agent.runs()?;
    for (name, runs) in &mut runs {
        let before = before.get(name).copied().unwrap_or_default();
        runs.ns = runs.ns.saturating_sub(before.ns);
        runs.count = runs.count.saturating_sub(before.count);
    }
    Ok(runs)
}

/// The attached agent's CPUs, second by second, and its memory.
pub(crate) fn watch(agent: &mut Agent, seconds: u32) -> Result<(Estimate, Memory)> {
    agent.switch(true)?;
    thread::sleep(SETTLE);
    let mut cores = Vec::new();
    for _ in 0..seconds {
        let (began, before) = (Instant::now(), agent.cpu_ns()?);
        thread::sleep(Duration::from_secs(1));
        cores.push((agent.cpu_ns()? - before) as f64 / 1e9 / began.elapsed().as_secs_f64());
    }
    let cores = Estimate::of_mean(&cores).context("not watched at all")?;
    Ok((cores, agent.memory()?))
}
