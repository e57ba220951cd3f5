//! `cargo xtask lint`: the rules of DESIGN.md and STYLE.md that no compiler checks.

mod clippy;
mod imports;
mod reads;
mod sizes;
mod source;

use crate::{command, workspace};
use anyhow::{Result, bail};
use source::Source;
use std::fmt;

/// Check the import table, file sizes and other rules of DESIGN.md.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also clippy, on the host and on the BPF target, with warnings as errors
    #[arg(long)]
    clippy: bool,
}

/// One broken rule.
struct Finding {
    file: String,
    line: usize,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// Checks everything, prints all findings, fails if there is one.
pub(crate) fn run(args: &Args) -> Result<()> {
    let sources = Source::all(workspace::root())?;
    let mut findings = sizes::check(&sources);
    for source in &sources {
        if let Some(inner) = source.file.strip_prefix("agent/src/") {
            let parsed = source.parse()?;
            findings.extend(imports::check(source, inner, &parsed));
            findings.extend(reads::check(source, inner, &parsed));
        } else if source.file.starts_with("agent-ebpf/") {
            findings.extend(legacy_maps(source));
        }
    }
    findings.extend(linked_to_agent()?);
    for finding in &findings {
        println!("{finding}");
    }
    if args.clippy {
        clippy::run()?;
    }
    if !findings.is_empty() {
        bail!("lint: {} findings", findings.len());
    }
    println!("lint: {} files, no finding", sources.len());
    Ok(())
}

/// `#[map]` on a type of `btf_maps` compiles, and then fails when it is loaded.
fn legacy_maps(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().zip(1..);
    let legacy = lines.filter(|(line, _)| {
        let line = line.trim_start();
        line.starts_with("#[map]") || line.starts_with("#[map(")
    });
    legacy
        .map(|(_, line)| {
            source.finding(
                line,
                "`#[map]`: use `#[btf_map]` with a type of `aya_ebpf::btf_maps`",
            )
        })
        .collect()
}

/// aya-ebpf in the agent replaces libc's memcpy, memset and memmove with slow ones (aya #1254).
fn linked_to_agent() -> Result<Vec<Finding>> {
    let tree = command::stdout(
        command::cargo()
            .args([
                "tree",
                "--package",
                "tieback",
                "--edges",
                "normal",
                "--prefix",
                "none",
            ])
            .current_dir(workspace::root()),
    )?;
    let linked = tree.lines().any(|line| line.starts_with("aya-ebpf "));
    let finding = || Finding {
        file: "agent-ebpf/Cargo.toml".to_owned(),
        line: 1,
        text: "the agent links aya-ebpf: it may be a dependency of the BPF target alone".to_owned(),
    };
    Ok(linked.then(finding).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::{legacy_maps, source::Source};

    #[test]
    fn legacy_maps_are_found_and_btf_maps_are_not() {
        let text = "#[btf_map]\nstatic A: Array<u64, 1> = Array::new();\n    #[map]\n// #[map]\n#[map(name = \"X\")]\n";
        let lines: Vec<_> = legacy_maps(&Source::new("agent-ebpf/src/x.rs", text))
            .iter()
            .map(|f| f.line)
            .collect();
        assert_eq!(lines, [3, 5]);
    }
}
