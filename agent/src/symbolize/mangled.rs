//! A readable beginning of C++ names that the library cannot read (some that depend on expressions in templates).

use std::borrow::Cow;

/// `_ZSt14__relocate_a_1IddE…` → `std::__relocate_a_1<…>`; what is no such name stays as it is.
pub(super) fn readable(name: &str) -> Cow<'_, str> {
    name.strip_prefix("_Z")
        .and_then(path)
        .map_or(Cow::Borrowed(name), Cow::Owned)
}

/// The parts of a name up to the first arguments of a template (Itanium C++ ABI, 5.1).
fn path(mangled: &str) -> Option<String> {
    let mut rest = mangled.strip_prefix('L').unwrap_or(mangled);
    let nested = rest.starts_with('N');
    if nested {
        rest = rest[1..].trim_start_matches(['r', 'V', 'K', 'R', 'O']);
    }
    let mut parts: Vec<&str> = Vec::new();
    if let Some(of_std) = rest.strip_prefix("St") {
        parts.push("std");
        rest = of_std;
    }
    while let Some(digits) = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0) {
        let len: usize = rest[..digits].parse().ok()?;
        let part = rest[digits..].get(..len).filter(|part| !part.is_empty())?;
        parts.push(if part.starts_with("_GLOBAL__N") {
            "(anonymous namespace)"
        } else {
            part
        });
        rest = &rest[digits + len..];
        if !nested {
            break;
        }
    }
    let named = parts.iter().any(|part| *part != "std");
    let more = if rest.starts_with('I') { "<…>" } else { "" };
    named.then(|| parts.join("::") + more)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::damage::{Bounds, harmless};

    #[test]
    fn names_begin_readably() {
        let relocate =
            "_ZSt14__relocate_a_1IddENSt9enable_ifIXsrSt24__is_bitwise_relocatableIT_vE5valueEPS2_E4typeES4_";
        assert_eq!(readable(relocate), "std::__relocate_a_1<…>");
        assert_eq!(readable("_ZN4shop4CartIdE3sumEi"), "shop::Cart<…>");
        assert_eq!(
            readable("_ZNK4shop12_GLOBAL__N_14load?"),
            "shop::(anonymous namespace)::load"
        );
        assert_eq!(readable("_Z8checkouti?"), "checkout");
        for other in [
            "main", "_Z", "_ZN", "_ZSt", "_Z99x", "_Z9", "_ZN0", "_Zürich", "_Z2aü", "_ZTV3abc",
        ] {
            assert_eq!(readable(other), other);
        }
    }

    #[test]
    fn damaged_names_harm_nobody() {
        let good = b"_ZNK4shop12_GLOBAL__N_14loadIdEEvSt6vectorIiE";
        let bounds = Bounds {
            bytes: 32 * good.len(),
            allocations: 12,
        };
        harmless(5_000, good, &[], bounds, |damaged| {
            let name = String::from_utf8_lossy(damaged);
            let found = readable(&name);
            assert!(found.len() <= name.len() + "(anonymous namespace)".len() * 3);
            *found != *name
        })
        .both_often();
    }
}
