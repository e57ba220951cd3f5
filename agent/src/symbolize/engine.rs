//! The one place that calls blazesym.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use blazesym::symbolize::evict::{Elf as EvictElf, Evict};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};

use super::Outcome;
use super::name::Names;

/// One function at an address; several where functions were inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) function: Option<Arc<str>>,
    pub(super) file: Option<Arc<str>>,
    pub(super) line: u32,
    pub(super) inlined: bool,
}

/// What is at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Innermost first.
    pub(super) parts: Vec<Part>,
    /// Where the function begins.
    pub(super) start: u64,
    /// A symbol without size: it may well have ended before the address.
    pub(super) unsure: bool,
}

/// blazesym, with its panics caught. It keeps what it parsed until told to forget a file.
#[derive(Debug)]
pub(super) struct Engine {
    symbolizer: Symbolizer,
    pub(super) names: Names,
}

impl Engine {
    pub(super) fn new() -> Self {
        Self {
            symbolizer: fresh(),
            names: Names::default(),
        }
    }

    /// What is at an address of an ELF file. `debug` also asks for lines and inlined functions.
    pub(super) fn elf(&mut self, path: &Path, debug: bool, address: u64) -> Result<Found, Outcome> {
        let mut source = Elf::new(path);
        source.debug_syms = debug;
        match self.look_up(&Source::Elf(source), Input::VirtOffset(address)) {
            // Debug information that cannot be read does not take the symbol table with it.
            Err(Outcome::ElfError) if debug => self.elf(path, false, address),
            // Its names may be in a file shared with others (dwz): the function's own is in the symbol table, too, and of
            // functions inlined in it the lines alone say nothing.
            Ok(mut found) if debug && found.parts.iter().any(|part| part.function.is_none()) => {
                found
                    .parts
                    .retain(|part| !part.inlined || part.function.is_some());
                if let Some(outer) = found.parts.last_mut()
                    && outer.function.is_none()
                    && let Ok(symbol) = self.elf(path, false, address)
                {
                    outer.function = symbol.parts.last().and_then(|part| part.function.clone());
                }
                Ok(found)
            }
            Ok(found) if debug => Ok(self.qualify(path, found, address)),
            result => result,
        }
    }

    /// Little debug information (`line-tables-only` of Rust, `-g1`) has functions without the modules or namespaces that they are
    /// in; the symbol table has these of all that are not inlined.
    fn qualify(&mut self, path: &Path, mut found: Found, address: u64) -> Found {
        let start = found.start;
        if let Some(outer) = found.parts.last_mut()
            && outer.function.as_deref().is_some_and(|name| !is_qualified(name))
            && let Ok(symbol) = self.elf(path, false, address)
            && symbol.start == start
            && let Some(name) = symbol
                .parts
                .into_iter()
                .next_back()
                .and_then(|part| part.function)
            && is_qualified(&name)
        {
            outer.function = Some(name);
        }
        found
    }

    /// Drops what was parsed of a file.
    pub(super) fn forget(&mut self, path: &Path) {
        let evict = Evict::from(EvictElf::new(path));
        let evicted = catch_unwind(AssertUnwindSafe(|| self.symbolizer.evict(&evict)));
        if !matches!(evicted, Ok(Ok(()))) {
            self.symbolizer = fresh();
        }
    }

    fn look_up(&mut self, source: &Source<'_>, input: Input<u64>) -> Result<Found, Outcome> {
        let (symbolizer, names) = (&self.symbolizer, &mut self.names);
        let found = catch_unwind(AssertUnwindSafe(|| {
            match symbolizer.symbolize_single(source, input) {
                Ok(Symbolized::Sym(symbol)) => Ok(Found {
                    parts: parts(&symbol, names),
                    start: symbol.addr,
                    // A function in several parts (hot and cold) has no size, but is certain where it has lines.
                    unsure: symbol.size.is_none() && symbol.code_info.is_none(),
                }),
                Ok(Symbolized::Unknown(_)) => Err(Outcome::NoSymbol),
                Err(_) => Err(Outcome::ElfError),
            }
        }));
        found.unwrap_or_else(|_| {
            // Its state may be half written.
            self.symbolizer = fresh();
            Err(Outcome::Panic)
        })
    }
}

/// A name as blazesym writes it that is of no symbol with an address.
pub(super) fn demangled(name: &str) -> Option<String> {
    let demangled = catch_unwind(|| {
        if let Ok(rust) = rustc_demangle::try_demangle(name) {
            return Some(format!("{rust:#}"));
        }
        cpp_demangle::Symbol::new(name).ok()?.demangle().ok()
    });
    demangled
        .ok()
        .map(|readable| readable.unwrap_or_else(|| name.to_owned()))
}

/// Whether a function's name says where it is: `shop::cart::add<u64>`, `<shop::Cart as Drop>::drop`; not `add<shop::Item>`.
fn is_qualified(name: &str) -> bool {
    name.starts_with('<')
        || name
            .split(['<', '('])
            .next()
            .is_some_and(|path| path.contains("::"))
}

fn fresh() -> Symbolizer {
    // The images carry no debug links, so that no directory is ever searched for them.
    Symbolizer::builder()
        .set_debug_dirs(Some(std::iter::empty::<&Path>()))
        .build()
}

fn parts(symbol: &Sym<'_>, names: &mut Names) -> Vec<Part> {
    let mut parts = Vec::with_capacity(1 + symbol.inlined.len());
    let mut push = |name: &str, code: Option<&CodeInfo<'_>>, inlined| {
        parts.push(Part {
            function: names.share(name),
            file: code.and_then(|code| names.share(&code.to_path().to_string_lossy())),
            line: code.and_then(|code| code.line).unwrap_or(0),
            inlined,
        });
    };
    push(&symbol.name, symbol.code_info.as_deref(), false);
    for function in &symbol.inlined {
        push(&function.name, function.code_info.as_ref(), true);
    }
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_say_where_a_function_is() {
        for name in [
            "shop::add",
            "shop::add<u64>",
            "<shop::Cart as core::ops::Drop>::drop",
            "N::f(int)",
        ] {
            assert!(is_qualified(name), "{name}");
        }
        for name in ["add", "add<shop::Item>", "{async_fn#0}", "add(shop::Item)", ""] {
            assert!(!is_qualified(name), "{name}");
        }
    }
}
