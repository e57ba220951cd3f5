//! Figures with their targets and verdicts, as a table and as JSON.

use super::{
    agent::Runs,
    loads::{Load, Target},
    slices::Measured,
    stats::Estimate,
};
use crate::command;
use anyhow::Result;
use serde::Serialize;
use std::{collections::BTreeMap, fs, process::Command};

/// What a figure says about its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Reached.
    Pass,
    /// Not reached, by more than the interval.
    Miss,
    /// The interval is too wide to tell.
    Open,
    /// Two slices without the agent differ: the run says nothing.
    Void,
    /// No target.
    Told,
}

/// How a figure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    /// With the agent over without.
    Ratio,
    /// Share of one CPU.
    Core,
    /// Bytes.
    Bytes,
    /// Nanoseconds.
    Nanoseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub(crate) figure: String,
    /// In which unit.
    pub(crate) unit: Unit,
    /// The result.
    pub(crate) result: Estimate,
    /// The null pair, for ratios.
    pub(crate) null: Option<Estimate>,
    /// The most that it may be.
    pub(crate) target: Option<f64>,
    /// What follows.
    pub(crate) verdict: Verdict,
}

/// Cost of one BPF program while the kernel timed it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProgramCost {
    /// Its name.
    pub(crate) program: String,
    /// Runs that were timed.
    pub(crate) runs: u64,
    /// Nanoseconds a run, the timing included, the hook not.
    pub(crate) ns: f64,
}

/// Everything.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What was typed.
    pub(crate) command: String,
    /// Where and when.
    pub(crate) machine: String,
    /// Nanoseconds of CPU per operation without the agent, by workload.
    pub(crate) base_ns: BTreeMap<&'static str, f64>,
    /// What was left out, and why.
    pub(crate) skipped: Vec<String>,
    /// The table.
    pub(crate) figures: Vec<Figure>,
    /// What each program costs.
    pub(crate) programs: Vec<ProgramCost>,
}

impl Verdict {
    fn of(result: Estimate, null: Option<Estimate>, target: Option<Target>) -> Self {
        if null.is_some_and(|null| !null.holds(1.0)) {
            return Self::Void;
        }
        let Some(target) = target else { return Self::Told };
        if result.low > target.value {
            Self::Miss
        } else if result.value <= target.value && target.high.is_none_or(|high| result.high <= high) {
            Self::Pass
        } else {
            Self::Open
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Miss => "MISS",
            Self::Open => "open",
            Self::Void => "void",
            Self::Told => "–",
        }
    }
}

impl Figure {
    fn new(
        figure: String,
        unit: Unit,
        result: Estimate,
        null: Option<Estimate>,
        target: Option<Target>,
    ) -> Self {
        Self {
            figure,
            unit,
            result,
            null,
            target: target.map(|target| target.value),
            verdict: Verdict::of(result, null, target),
        }
    }

    /// What a workload's slices say.
    pub(crate) fn of_load(load: &Load, measured: &Measured) -> [Self; 2] {
        [
            Self::new(
                format!("{}: CPU per {}", load.name, load.unit),
                Unit::Ratio,
                measured.cpu,
                Some(measured.cpu_null),
                load.target,
            ),
            Self::new(
                format!("{}: throughput", load.name),
                Unit::Ratio,
                measured.rate,
                Some(measured.rate_null),
                None,
            ),
        ]
    }

    /// What watching allocations does to a program: CPU per operation with over without.
    pub(crate) fn of_watching(what: String, result: Estimate, null: Estimate, target: Option<f64>) -> Self {
        let target = target.map(|value| Target { value, high: None });
        Self::new(what, Unit::Ratio, result, Some(null), target)
    }

    /// A value of the agent itself.
    pub(crate) fn of_agent(what: &str, unit: Unit, result: Estimate, target: f64) -> Self {
        let target = Target {
            value: target,
            high: None,
        };
        Self::new(format!("agent, {what}"), unit, result, None, Some(target))
    }

    /// A value of the agent itself that has no target.
    pub(crate) fn told(what: &str, unit: Unit, result: Estimate) -> Self {
        Self::new(format!("agent, {what}"), unit, result, None, None)
    }

    fn row(&self) -> [String; 5] {
        let number = |value: f64| match self.unit {
            Unit::Ratio => format!("{value:.3}"),
            Unit::Core => format!("{:.2} %", value * 100.0),
            Unit::Nanoseconds => format!("{value:.0} ns"),
            Unit::Milliseconds => format!("{value:.1} ms"),
            Unit::Seconds => format!("{value} s"),
            Unit::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        };
        let interval = |estimate: Estimate| {
            if estimate.low == estimate.high {
                number(estimate.value)
            } else {
                let (low, high) = (number(estimate.low), number(estimate.high));
                format!(
                    "{} [{}, {high}]",
                    number(estimate.value),
                    low.trim_end_matches([' ', '%', 'n', 'm', 's'])
                )
            }
        };
        [
            self.figure.clone(),
            interval(self.result),
            self.null.map_or_else(|| "–".to_owned(), interval),
            self.target
                .map_or_else(|| "–".to_owned(), |target| format!("≤ {}", number(target))),
            self.verdict.text().to_owned(),
        ]
    }
}

impl Report {
    /// The tables in Markdown, columns aligned for people.
    pub(crate) fn markdown(&self) -> String {
        let mut text = table(
            ["figure", "result [95 %]", "null pair", "target", "verdict"],
            self.figures.iter().map(Figure::row).collect(),
        );
        let programs = self.programs.iter().map(|cost| {
            let ns = format!("{:.0}", cost.ns);
            [cost.program.clone(), cost.runs.to_string(), ns]
        });
        text += "\n";
        text += &table(["BPF program", "runs timed", "ns per run"], programs.collect());
        for line in &self.skipped {
            text += &format!("\nLeft out: {line}.\n");
        }
        text += &format!("\n`{}` on {}.\n", self.command, self.machine);
        text
    }

    /// Figures that missed their targets.
    pub(crate) fn missed(&self) -> Vec<&str> {
        let missed = self.figures.iter().filter(|f| f.verdict == Verdict::Miss);
        missed.map(|f| f.figure.as_str()).collect()
    }
}

fn table<const N: usize>(head: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    rows.insert(1, widths.map(|width| "-".repeat(width)));
    let mut text = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
    }
    text
}

/// Nanoseconds a run of each program that ran, the busiest first.
pub(crate) fn program_costs(runs: &BTreeMap<String, Runs>) -> Vec<ProgramCost> {
    let mut costs: Vec<ProgramCost> = runs
        .iter()
        .filter(|(_, runs)| runs.count > 0)
        .map(|(program, runs)| ProgramCost {
            program: program.clone(),
            runs: runs.count,
            ns: runs.ns as f64 / runs.count as f64,
        })
        .collect();
    costs.sort_by_key(|cost| std::cmp::Reverse(cost.runs));
    costs
}

/// Kernel, processors and date.
pub(crate) fn machine() -> Result<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model.trim());
    let count = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let date = command::stdout(Command::new("date").args(["--utc", "+%F"]))?;
    Ok(format!(
        "Linux {}, {count} × {model}, {}",
        kernel.trim(),
        date.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::{Estimate, Target, Verdict, table};

    const fn estimate(value: f64, low: f64, high: f64) -> Estimate {
        Estimate { value, low, high }
    }

    #[test]
    fn a_verdict_needs_the_interval_and_the_null_pair() {
        let null = Some(estimate(1.0, 0.99, 1.01));
        let target = Some(Target {
            value: 1.01,
            high: Some(1.015),
        });
        let of = |result| Verdict::of(result, null, target);
        assert_eq!(of(estimate(1.002, 0.99, 1.012)), Verdict::Pass);
        assert_eq!(of(estimate(1.002, 0.98, 1.02)), Verdict::Open);
        assert_eq!(of(estimate(1.012, 1.00, 1.013)), Verdict::Open);
        assert_eq!(of(estimate(1.02, 1.011, 1.03)), Verdict::Miss);
        let skewed = Some(estimate(1.02, 1.01, 1.03));
        assert_eq!(
            Verdict::of(estimate(1.0, 1.0, 1.0), skewed, target),
            Verdict::Void
        );
        assert_eq!(Verdict::of(estimate(9.0, 9.0, 9.0), null, None), Verdict::Told);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text = table(["a", "b"], vec![["µµµ".to_owned(), "1".to_owned()]]);
        assert_eq!(text, "| a   | b |\n| --- | - |\n| µµµ | 1 |\n");
    }
}
