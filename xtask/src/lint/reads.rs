//! Every read of /proc, /sys and /etc goes through `host`, under a root that tests replace.

use super::{Finding, source::Source};
use syn::{
    spanned::Spanned as _,
    visit::{self, Visit},
};

/// Modules that may use `std::fs`: `host` itself; the configuration file; what a command writes; and `symbolize`, which
/// opens other processes' files by descriptor (under the root that its configuration names) and never trusts them.
const FILES: [&str; 4] = ["cli", "config", "host", "symbolize"];

/// Checks one file; `inner` is its path inside `agent/src`. Tests may do what they like.
pub(super) fn check(source: &Source, inner: &str, parsed: &syn::File) -> Vec<Finding> {
    let module = inner.trim_end_matches(".rs").split('/').next().unwrap_or(inner);
    if module == "host" || inner.ends_with("/tests.rs") || inner.contains("/tests/") {
        return Vec::new();
    }
    let mut visitor = Visitor {
        source,
        files: FILES.contains(&module),
        findings: Vec::new(),
    };
    visitor.visit_file(parsed);
    visitor.findings
}

struct Visitor<'a> {
    source: &'a Source,
    /// Whether `std::fs` is allowed.
    files: bool,
    findings: Vec<Finding>,
}

impl Visitor<'_> {
    fn text(&mut self, text: &str, line: usize) {
        if ["/proc", "/sys"]
            .iter()
            .any(|root| text == *root || text.starts_with(&format!("{root}/")))
        {
            self.findings.push(
                self.source
                    .finding(line, format!("\"{text}\": `host` reads /proc and /sys")),
            );
        }
    }

    fn fs(&mut self, line: usize) {
        if !self.files {
            self.findings.push(
                self.source
                    .finding(line, "`std::fs`: files are read through `host`"),
            );
        }
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    /// Documentation is an attribute, too.
    fn visit_attribute(&mut self, _: &'ast syn::Attribute) {}

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_lit_str(&mut self, literal: &'ast syn::LitStr) {
        self.text(&literal.value(), literal.span().start().line);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        let tokens = mac.tokens.to_string();
        // Every second piece between quotes is a literal; an escaped quote only splits one.
        for literal in tokens.split('"').skip(1).step_by(2) {
            self.text(literal, mac.span().start().line);
        }
        if tokens.contains("std :: fs ::") {
            self.fs(mac.span().start().line);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if let syn::UseTree::Path(path) = &item.tree
            && path.ident == "std"
            && names_fs(&path.tree)
        {
            self.fs(item.span().start().line);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let mut names = path.segments.iter().map(|segment| &segment.ident);
        if names.next().is_some_and(|name| name == "std") && names.next().is_some_and(|name| name == "fs") {
            self.fs(path.span().start().line);
        }
        visit::visit_path(self, path);
    }
}

fn names_fs(tree: &syn::UseTree) -> bool {
    match tree {
        syn::UseTree::Path(path) => path.ident == "fs",
        syn::UseTree::Name(name) => name.ident == "fs",
        syn::UseTree::Rename(rename) => rename.ident == "fs",
        syn::UseTree::Group(group) => group.items.iter().any(names_fs),
        syn::UseTree::Glob(_) => false,
    }
}

fn for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut test = attribute.path().is_ident("test");
        if attribute.path().is_ident("cfg") {
            test |= attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"));
        }
        test
    })
}

#[cfg(test)]
mod tests {
    use super::{Source, check};

    fn lines(inner: &str, text: &str) -> Vec<usize> {
        let source = Source::new(&format!("agent/src/{inner}"), text);
        let parsed = source.parse().unwrap();
        check(&source, inner, &parsed)
            .into_iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn paths_of_the_kernel_are_for_host_alone() {
        let text = "const A: &str = \"/proc/self\";\n\nfn f(p: u32) { g(&format!(\"/sys/x/{p}\")); }\n";
        assert_eq!(lines("kernel/mod.rs", text), [1, 3]);
        assert!(lines("host/mod.rs", text).is_empty());
    }

    #[test]
    fn documentation_tests_and_other_words_are_left_alone() {
        let text = "/// Reads \"/proc/x\".\nconst A: &str = \"/system.slice/\";\n#[cfg(test)]\nmod tests { const B: &str = \"/proc\"; }\n";
        assert!(lines("attribute/mod.rs", text).is_empty());
    }

    #[test]
    fn files_are_opened_by_few_modules() {
        let text = "use std::{fmt, fs};\nfn f() { std::fs::read(\"x\").ok(); }\n";
        assert_eq!(lines("attribute/mod.rs", text), [1, 2]);
        assert!(lines("symbolize/mod.rs", text).is_empty());
        assert!(lines("config/mod.rs", text).is_empty());
        for tests in ["attribute/tests.rs", "attribute/tests/mod.rs"] {
            assert!(lines(tests, text).is_empty(), "{tests}");
        }
    }
}
