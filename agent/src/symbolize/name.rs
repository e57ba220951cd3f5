//! Names read from files of others: bounded, printable, shared.

use std::sync::Arc;

use super::mangled;
use super::pool::Pool;

/// Longest name kept, in bytes; C++ templates reach tens of kilobytes.
const MAX_LEN: usize = 512;

/// What the name of a stub ends with.
pub(super) const STUB: &str = "@plt";

/// Names seen, each kept once.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: Pool<str>,
}

impl Names {
    /// The shared form of a name, `None` when it is empty.
    pub(super) fn share(&mut self, name: &str) -> Option<Arc<str>> {
        self.share_as_is(&mangled::readable(name))
    }

    /// The shared name of the stub of a function.
    pub(super) fn share_stub(&mut self, function: &str) -> Option<Arc<str>> {
        let name = clean(&mangled::readable(function));
        (!name.is_empty()).then(|| self.known.share(name + STUB))
    }

    /// The same of a name that no compiler made.
    pub(super) fn share_as_is(&mut self, name: &str) -> Option<Arc<str>> {
        let name = clean(name);
        (!name.is_empty()).then(|| self.known.share(name))
    }
}

fn clean(name: &str) -> String {
    let mut out = String::with_capacity(name.len().min(MAX_LEN));
    for c in name.trim().chars() {
        if out.len() + c.len_utf8() > MAX_LEN {
            out.push('…');
            break;
        }
        out.push(if c.is_control() { '\u{fffd}' } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_printable() {
        let mut names = Names::default();
        assert_eq!(names.share("  "), None);
        assert_eq!(&*names.share("a\nb\u{1b}[1m").unwrap(), "a\u{fffd}b\u{fffd}[1m");
        let long = names.share(&"é".repeat(1000)).unwrap();
        assert_eq!(long.chars().count(), 257);
        assert!(long.ends_with('…'));
    }
}
