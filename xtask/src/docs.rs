//! `cargo xtask docs`: rustdoc without warnings, and the README's generated tables.

use crate::{command, workspace};
use agent_ebpf::probe::Attach;
use anyhow::{Context as _, Result, bail};
use std::fs;

/// Build the documentation and write the README's generated tables.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing: fail where the README differs from what would be generated
    #[arg(long)]
    check: bool,
}

/// A part of the README that is generated: what stands between `<!-- generated:NAME -->` and
/// `<!-- /generated:NAME -->`.
struct Part {
    name: &'static str,
    content: fn() -> String,
}

/// Every generated part. Each must have its place in the README.
const PARTS: &[Part] = &[Part {
    name: "probes",
    content: probes,
}];

/// The table of probes, from their descriptions.
fn probes() -> String {
    let mut table = String::from("| probe | measures | hooks | metrics |\n|---|---|---|---|\n");
    for probe in agent_ebpf::probes::ALL {
        let mut hooks: Vec<String> = probe.hooks.iter().map(|hook| attach(hook.attach)).collect();
        // Two programs may have the same hook.
        hooks.dedup();
        let metrics: Vec<String> = probe.metrics.iter().map(|name| format!("`{name}`")).collect();
        table += &format!(
            "| `{}` | {} | {} | {} |\n",
            probe.name,
            probe.help,
            hooks.join(", "),
            metrics.join(", ")
        );
    }
    table
}

fn attach(attach: Attach) -> String {
    match attach {
        Attach::TpBtf(names) => format!("BTF tracepoint {}", names.join(" or ")),
        Attach::RawTp(name) => format!("raw tracepoint {name}"),
        Attach::UprobeMulti => "uprobes, of chosen processes".to_owned(),
        Attach::CpuClock => "CPU clock".to_owned(),
        Attach::Iter(target) => format!("iterator over {target}, on each tick"),
        Attach::Run(_) => "a program that the agent runs".to_owned(),
    }
}

/// Builds, then generates or compares.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut rustdoc = command::cargo();
    rustdoc
        .args(["doc", "--workspace", "--no-deps"])
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .current_dir(workspace::root());
    command::checked(&mut rustdoc)?;

    let path = workspace::root().join("README.md");
    let old = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let new = generate(&old, PARTS)?;
    if old == new {
        println!("docs: README.md is up to date");
    } else if args.check {
        bail!("README.md is out of date; type: cargo xtask docs");
    } else {
        fs::write(&path, new).with_context(|| format!("write {}", path.display()))?;
        println!("docs: README.md is written anew");
    }
    Ok(())
}

/// Replaces what is between each part's marks.
fn generate(readme: &str, parts: &[Part]) -> Result<String> {
    let mut text = readme.to_owned();
    for part in parts {
        let (begin, end) = (
            format!("<!-- generated:{} -->", part.name),
            format!("<!-- /generated:{} -->", part.name),
        );
        let (before, rest) = text
            .split_once(&begin)
            .with_context(|| format!("the README has no {begin}"))?;
        let (_, after) = rest
            .split_once(&end)
            .with_context(|| format!("the README has no {end} after {begin}"))?;
        text = format!("{before}{begin}\n{}\n{end}{after}", (part.content)().trim());
    }
    let marks = text.matches("<!-- generated:").count();
    if marks != parts.len() {
        bail!(
            "the README has {marks} generated parts, but {} are known",
            parts.len()
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{Part, generate};

    const TABLE: &[Part] = &[Part {
        name: "probes",
        content: || "| probe |\n|---|\n".to_owned(),
    }];

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let readme = "# T\n<!-- generated:probes -->\nold\n<!-- /generated:probes -->\nend\n";
        let new = generate(readme, TABLE).unwrap();
        assert_eq!(
            new,
            "# T\n<!-- generated:probes -->\n| probe |\n|---|\n<!-- /generated:probes -->\nend\n"
        );
        assert_eq!(generate(&new, TABLE).unwrap(), new);
    }

    #[test]
    fn marks_that_are_missing_or_unknown_are_refused() {
        assert!(generate("no marks", TABLE).is_err());
        assert!(generate("<!-- generated:probes -->", TABLE).is_err());
        assert!(generate("<!-- generated:other -->\n<!-- /generated:other -->", &[]).is_err());
    }
}
