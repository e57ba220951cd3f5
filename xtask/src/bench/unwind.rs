//! What a user stack costs, and what the agent needs for many executables.

use super::{
    agent::{Agent, Memory},
    process::{Process, wait_for},
    report::{Figure, Unit},
    stats::Estimate,
};
use crate::{command, workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Names for `--only`.
pub(crate) const STACKS: &str = "stacks";
pub(crate) const EXECUTABLES: &str = "executables";

const DEPTHS: [&str; 3] = ["10", "30", "100"];
/// Most that a walk may take of what `bpf_get_stack` takes on the same stack.
const WALK: f64 = 0.5;

/// Nanoseconds a stack by depth: the walk by tables, and `bpf_get_stack` by frame pointers on the same stack.
pub(crate) fn stacks(agent: &Path, dir: &Path) -> Result<Vec<Figure>> {
    let program = dir.join("depth");
    let mut compile = Command::new("cc");
    compile
        .args([
            "-O2",
            "-fno-omit-frame-pointer",
            "-fno-optimize-sibling-calls",
            "-o",
        ])
        .arg(&program)
        .arg(workspace::root().join("tests/programs/depth.c"));
    command::checked(&mut compile)?;
    let text = command::stdout(Command::new(agent).arg("stack-cost").arg(&program).args(DEPTHS))?;
    let mut rounds: BTreeMap<u32, Vec<[f64; 3]>> = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<f64> = line.split(' ').filter_map(|field| field.parse().ok()).collect();
        let &[depth, _, walked, nothing, helper, walk] = fields.as_slice() else {
            anyhow::bail!("not a measurement: {line}");
        };
        ensure!(walked == depth, "of {depth} frames, {walked} were found");
        rounds
            .entry(depth as u32)
            .or_default()
            .push([nothing, helper, walk]);
    }
    let mut figures = Vec::new();
    for (depth, rounds) in rounds {
        let of = |value: fn(&[f64; 3]) -> f64| {
            let values: Vec<f64> = rounds.iter().map(value).collect();
            Estimate::of(&values).context("no rounds")
        };
        figures.extend([
            Figure::of_agent(
                &format!("stack of {depth} frames, walk over bpf_get_stack"),
                Unit::Ratio,
                of(|[nothing, helper, walk]| (walk - nothing) / (helper - nothing))?,
                WALK,
            ),
            Figure::told(
                &format!("stack of {depth} frames, walk"),
                Unit::Nanoseconds,
                of(|[nothing, _, walk]| walk - nothing)?,
            ),
        ]);
    }
    ensure!(!figures.is_empty(), "nothing was measured");
    Ok(figures)
}

/// Executables of the measurement: as many, by their build ids, run at once.
const COPIES: usize = 300;
/// Resident memory and maps together.
const MEMORY: f64 = 128.0 * 1024.0 * 1024.0;
/// How long they are watched once all of them have been met.
const WATCH: u32 = 60;

/// What the agent needs with many executables, each a copy of a real program with a build id of its own that is started, sampled
/// and running.
pub(crate) fn executables(agent: &mut Agent, dir: &Path) -> Result<Vec<Figure>> {
    let folder = dir.join("executables");
    fs::create_dir(&folder)?;
    agent.switch(true)?;
    let before = agent.metric("tieback_unwind_tables_total")?;
    let first_before = agent.buckets(FIRST_STACK)?;
    let mut running = Vec::new();
    for copy in 0..COPIES {
        let (path, arguments) = make(&folder, copy)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(&path).args(arguments);
        running.push(Process::start(&mut command, &dir.join("executable.log"))?);
    }
    wait_for("tables of all executables", || {
        let built = agent.metric("tieback_unwind_tables_total")? - before;
        Ok((built >= COPIES as f64).then_some(()))
    })
    .or_else(|error| {
        let built = agent.metric("tieback_unwind_tables_total")? - before;
        println!("bench: executables: {built} of {COPIES} have tables: {error:#}");
        anyhow::Ok(())
    })?;
    let mut most = Memory {
        resident: 0.0,
        maps: 0.0,
    };
    let mut sum = 0.0_f64;
    for _ in 0..WATCH {
        thread::sleep(Duration::from_secs(1));
        let mut memory = agent.memory()?;
        // The ring of events is mapped, so that it would count twice.
        memory.resident -= agent.mapped_maps()?;
        most.resident = most.resident.max(memory.resident);
        most.maps = most.maps.max(memory.maps);
        sum = sum.max(memory.resident + memory.maps);
    }
    for process in &mut running {
        process.alive()?;
    }
    let first = median_first_stack(agent, &first_before)?;
    let exact = |value| Estimate {
        value,
        low: value,
        high: value,
    };
    Ok(vec![
        Figure::of_agent(
            "median time from a program's start to its first whole stack, at most",
            Unit::Seconds,
            exact(first),
            1.0,
        ),
        Figure::of_agent(
            &format!("memory and maps with {COPIES} executables, at most"),
            Unit::Bytes,
            exact(sum),
            MEMORY,
        ),
        Figure::told(
            &format!("resident memory with {COPIES} executables, at most"),
            Unit::Bytes,
            exact(most.resident),
        ),
        Figure::told(
            &format!("BPF maps with {COPIES} executables, at most"),
            Unit::Bytes,
            exact(most.maps),
        ),
    ])
}

const FIRST_STACK: &str = "tieback_unwind_first_stack_seconds";

/// The bound of the bucket that holds the median of what was observed since `before`.
fn median_first_stack(agent: &Agent, before: &[(f64, f64)]) -> Result<f64> {
    let now = agent.buckets(FIRST_STACK)?;
    let counts: Vec<(f64, f64)> = now
        .iter()
        .map(|(bound, count)| {
            let old = before.iter().find(|(old, _)| old == bound);
            (*bound, count - old.map_or(0.0, |(_, count)| *count))
        })
        .collect();
    let all = counts.last().context("no first stacks are counted")?.1;
    ensure!(all > 0.0, "no program had a whole stack");
    let median = counts.iter().find(|(_, count)| *count >= all / 2.0);
    Ok(median.context("no bucket holds the median")?.0)
}

/// Programs that are copied, with what makes each of them wait a little again and again.
const ORIGINALS: [(&str, &[&str]); 3] = [
    (
        "/bin/bash",
        &["-c", "while :; do read -r -t 0.05 line < <(:); done"],
    ),
    (
        "/usr/bin/perl",
        &["-e", "select(undef, undef, undef, 0.05) while 1"],
    ),
    (
        "/usr/bin/gdb",
        &[
            "-nx",
            "-q",
            "-batch",
            "-ex",
            "python\nimport time\nwhile True: time.sleep(0.05)",
        ],
    ),
];

fn make(folder: &Path, copy: usize) -> Result<(PathBuf, &'static [&'static str])> {
    let there: Vec<_> = ORIGINALS
        .iter()
        .filter(|(path, _)| Path::new(path).exists())
        .collect();
    let (original, arguments) = there
        .get(copy % there.len().max(1))
        .context("neither bash nor perl is here")?;
    let mut bytes = fs::read(original)?;
    let id = build_id(&bytes).with_context(|| format!("{original} has no build id"))?;
    bytes[id..id + 4].copy_from_slice(&u32::try_from(copy)?.to_be_bytes());
    let path = folder.join(format!("program-{copy}"));
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok((path, arguments))
}

/// Where the build id of an ELF file begins: behind the head of its note (name size 4, any size, type 3, `GNU`).
fn build_id(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..4096)?.windows(16).position(|window| {
        window[..4] == 4u32.to_le_bytes() && window[8..12] == 3u32.to_le_bytes() && window[12..] == *b"GNU\0"
    })?;
    Some(head + 16)
}
