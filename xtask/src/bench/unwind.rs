//! What a user stack costs.

use super::{
    report::{Figure, Unit},
    stats::Estimate,
};
use crate::{command, workspace};
use anyhow::{Context as _, Result, ensure};
use std::{collections::BTreeMap, path::Path, process::Command};

/// Name for `--only`.
pub(crate) const STACKS: &str = "stacks";

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
