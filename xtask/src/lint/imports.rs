//! Who may import whom (DESIGN.md, section 2): the stages are one way through, and none knows a later one.

use super::{Finding, source::Source};
use syn::{
    UseTree,
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// What each module of the agent may import, beside std and libraries. What is not listed (`pipeline`, `cli`, `main`,
/// `lib`) may import everything, and nobody may import that.
const MAY_IMPORT: [(&str, &[&str]); 11] = [
    ("config", &[]),
    ("host", &[]),
    ("telemetry", &[]),
    ("kernel", &["agent_ebpf", "host", "telemetry"]),
    ("load", &["agent_ebpf", "aya", "host", "kernel", "telemetry"]),
    ("decode", &["agent_ebpf", "aya", "load", "telemetry"]),
    ("signals", &["decode", "host", "telemetry"]),
    ("attribute", &["decode", "host", "signals", "telemetry"]),
    // An unwind table is what the kernel side reads, row for row, and so is what it is told of an interpreter; any other form
    // of these would only be a copy.
    (
        "symbolize",
        &[
            "agent_ebpf::wire::python",
            "agent_ebpf::wire::unwind",
            "attribute",
            "host",
            "telemetry",
        ],
    ),
    ("aggregate", &["symbolize", "telemetry"]),
    ("export", &["aggregate", "load::status", "telemetry"]),
];
/// Crates that the table is about.
const CRATES: [&str; 2] = ["agent_ebpf", "aya"];

/// Checks one file; `inner` is its path inside `agent/src`.
pub(super) fn check(source: &Source, inner: &str, parsed: &syn::File) -> Vec<Finding> {
    let module = module_path(inner);
    let Some(stage) = module.first() else {
        return Vec::new();
    };
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| name == stage) else {
        return Vec::new();
    };
    let mut visitor = Visitor {
        source,
        stage: stage.clone(),
        allowed,
        module,
        findings: Vec::new(),
    };
    visitor.visit_file(parsed);
    visitor.findings
}

/// `load/attach.rs` → `load`, `attach`; `lib.rs` and `main.rs` are the root.
fn module_path(inner: &str) -> Vec<String> {
    let mut parts: Vec<_> = inner
        .trim_end_matches(".rs")
        .split('/')
        .map(str::to_owned)
        .collect();
    if parts
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        parts.pop();
    }
    parts
}

struct Visitor<'a> {
    source: &'a Source,
    stage: String,
    allowed: &'a [&'a str],
    /// Where we are; inline modules make it longer.
    module: Vec<String>,
    findings: Vec<Finding>,
}

impl Visitor<'_> {
    /// Judges a path as it is written.
    fn judge(&mut self, written: &[String], line: usize) {
        let Some(target) = self.resolve(written) else {
            return;
        };
        if target.first() == Some(&self.stage) {
            return;
        }
        let covered = |rule: &&&str| {
            rule.split("::").zip(&target).filter(|(a, b)| a == b).count() == rule.split("::").count()
        };
        if self.allowed.iter().find(covered).is_none() {
            let text = format!(
                "`{}` may not import `{}` (DESIGN.md, section 2)",
                self.stage,
                target.join("::")
            );
            self.findings.push(self.source.finding(line, text));
        }
    }

    /// The path from the crate's root, or from one of [`CRATES`]; `None` for anything else.
    fn resolve(&self, written: &[String]) -> Option<Vec<String>> {
        let (first, mut rest) = written.split_first()?;
        let mut base = match first.as_str() {
            "crate" | "tieback" => Vec::new(),
            "super" => {
                let mut base = self.module.clone();
                base.pop();
                while let Some((next, later)) = rest.split_first()
                    && next == "super"
                {
                    base.pop();
                    rest = later;
                }
                base
            }
            name if CRATES.contains(&name) => vec![name.to_owned()],
            _ => return None,
        };
        base.extend(rest.iter().cloned());
        // `crate` alone, as in `pub(in crate)`, is no import of a module.
        let root_item = base
            .first()
            .is_some_and(|name| !name.starts_with(char::is_lowercase));
        (!base.is_empty() && !root_item).then_some(base)
    }

    fn use_tree(&mut self, tree: &UseTree, prefix: &mut Vec<String>) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.use_tree(&path.tree, prefix);
                prefix.pop();
            }
            UseTree::Group(group) => {
                for item in &group.items {
                    self.use_tree(item, prefix);
                }
            }
            UseTree::Name(name) => self.use_leaf(&name.ident.to_string(), prefix, tree),
            UseTree::Rename(rename) => self.use_leaf(&rename.ident.to_string(), prefix, tree),
            UseTree::Glob(_) => self.judge(&prefix.clone(), tree.span().start().line),
        }
    }

    fn use_leaf(&mut self, name: &str, prefix: &[String], tree: &UseTree) {
        let mut path = prefix.to_vec();
        if name != "self" || path.is_empty() {
            path.push(name.to_owned());
        }
        self.judge(&path, tree.span().start().line);
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, &mut Vec::new());
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let written: Vec<_> = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string())
                .collect();
            self.judge(&written, path.span().start().line);
        }
        visit::visit_path(self, path);
    }

    /// What a macro is given is not parsed; its words are.
    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let text = mac.tokens.to_string();
        let words: Vec<&str> = text
            .split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'))
            .filter(|w| !w.is_empty())
            .collect();
        let mut at = 0;
        while let Some(first) = words.get(at) {
            let mut path: Vec<String> = split_path(first);
            at += 1;
            while words.get(at) == Some(&"::") {
                path.extend(
                    words
                        .get(at + 1)
                        .map(|word| split_path(word))
                        .into_iter()
                        .flatten(),
                );
                at += 2;
            }
            if path.len() > 1 {
                self.judge(&path, mac.span().start().line);
            }
        }
        visit::visit_macro(self, mac);
    }
}

fn split_path(word: &str) -> Vec<String> {
    word.split("::")
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Source, check};

    fn found(inner: &str, text: &str) -> Vec<String> {
        let source = Source::new(&format!("agent/src/{inner}"), text);
        let parsed = source.parse().unwrap();
        check(&source, inner, &parsed)
            .into_iter()
            .map(|f| f.text.split('`').nth(3).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_stage_may_import_what_the_table_lists() {
        assert!(
            found(
                "decode/mod.rs",
                "use crate::load::Maps; use agent_ebpf::wire::Cause; use std::io;"
            )
            .is_empty()
        );
        assert!(
            found(
                "export/pages.rs",
                "use crate::{aggregate::Window, load::status::Verdict};"
            )
            .is_empty()
        );
        assert!(
            found(
                "load/mod.rs",
                "use super::kernel::Btf; mod a { use super::super::host; use super::X; }"
            )
            .is_empty()
        );
        assert!(found("pipeline.rs", "use crate::{load, export, cli};").is_empty());
    }

    #[test]
    fn later_stages_aya_and_the_rest_of_load_are_found() {
        assert_eq!(
            found("decode/mod.rs", "use crate::{attribute::Service, aggregate};"),
            ["attribute::Service", "aggregate"]
        );
        assert_eq!(
            found("attribute/service.rs", "use aya::maps::Array;"),
            ["aya::maps::Array"]
        );
        assert_eq!(
            found("export/mod.rs", "use crate::load::{self, status};"),
            ["load"]
        );
        assert_eq!(found("aggregate/mod.rs", "use crate::pipeline::*;"), ["pipeline"]);
    }

    #[test]
    fn paths_inline_by_super_and_in_macros_are_found() {
        assert_eq!(
            found("aggregate/top.rs", "fn f() { crate::host::read() }"),
            ["host::read"]
        );
        assert_eq!(
            found("aggregate/top.rs", "use super::super::export::Page;"),
            ["export::Page"]
        );
        assert_eq!(
            found("host/mod.rs", "fn f() { println!(\"{}\", crate::load::NAME); }"),
            ["load::NAME"]
        );
        assert_eq!(
            found(
                "symbolize/mod.rs",
                "mod inner { fn f(x: super::super::decode::Sample) {} }"
            ),
            ["decode::Sample"]
        );
    }
}
