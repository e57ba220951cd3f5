//! Names of the functions of allocators, and what they do.

use super::AllocCall;

/// C functions, with whatever prefix an allocator was built with.
const C: &[(&str, AllocCall)] = &[
    ("malloc", AllocCall::Malloc),
    ("calloc", AllocCall::Calloc),
    ("realloc", AllocCall::Realloc),
    ("reallocarray", AllocCall::Reallocarray),
    ("aligned_alloc", AllocCall::Aligned),
    ("memalign", AllocCall::Aligned),
    ("posix_memalign", AllocCall::PosixMemalign),
    ("valloc", AllocCall::Malloc),
    ("pvalloc", AllocCall::Malloc),
    ("free", AllocCall::Free),
    ("cfree", AllocCall::Free),
    ("free_sized", AllocCall::Free),
    ("free_aligned_sized", AllocCall::Free),
];

/// jemalloc's own interface.
const JEMALLOC: &[(&str, AllocCall)] = &[
    ("mallocx", AllocCall::Malloc),
    ("rallocx", AllocCall::Realloc),
    ("dallocx", AllocCall::Free),
    ("sdallocx", AllocCall::Free),
];

/// mimalloc's own interface.
const MIMALLOC: &[(&str, AllocCall)] = &[
    ("mi_zalloc", AllocCall::Malloc),
    ("mi_malloc_aligned", AllocCall::Malloc),
    ("mi_zalloc_aligned", AllocCall::Malloc),
    ("mi_realloc_aligned", AllocCall::Realloc),
    ("mi_new", AllocCall::Malloc),
    ("mi_new_nothrow", AllocCall::Malloc),
    ("mi_new_aligned", AllocCall::Malloc),
    ("mi_free_size", AllocCall::Free),
    ("mi_free_aligned", AllocCall::Free),
    ("mi_free_size_aligned", AllocCall::Free),
];

/// tcmalloc's own interface beside the prefixed C functions.
const TCMALLOC: &[(&str, AllocCall)] = &[
    ("tc_new", AllocCall::Malloc),
    ("tc_newarray", AllocCall::Malloc),
    ("tc_new_nothrow", AllocCall::Malloc),
    ("tc_newarray_nothrow", AllocCall::Malloc),
    ("tc_delete", AllocCall::Free),
    ("tc_deletearray", AllocCall::Free),
    ("tc_delete_sized", AllocCall::Free),
    ("tc_deletearray_sized", AllocCall::Free),
];

/// An allocator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// The GNU C library's.
    Glibc,
    /// musl's.
    Musl,
    /// jemalloc.
    Jemalloc,
    /// gperftools' or Google's tcmalloc.
    Tcmalloc,
    /// mimalloc.
    Mimalloc,
    /// Some other that defines `malloc` and `free`.
    Other,
}

impl Family {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::Jemalloc => "jemalloc",
            Self::Tcmalloc => "tcmalloc",
            Self::Mimalloc => "mimalloc",
            Self::Other => "unknown allocator",
        }
    }

    /// Which allocator defines these symbols, and the prefix of its functions; `None` where it defines none.
    pub(super) fn of<'a>(defined: impl Iterator<Item = &'a str>) -> Option<(Self, String)> {
        let mut found: Option<(Self, String)> = None;
        let (mut malloc, mut free) = (false, false);
        for name in defined {
            malloc |= name == "malloc";
            free |= name == "free";
            let of_name = match name {
                "tc_malloc" | "TCMallocInternalMalloc" => Some((Self::Tcmalloc, "tc_")),
                "mi_malloc" => Some((Self::Mimalloc, "mi_")),
                "gnu_get_libc_version" | "__libc_memalign" => Some((Self::Glibc, "")),
                "__libc_malloc_impl" | "__malloc_donate" => Some((Self::Musl, "")),
                _ => name
                    .strip_suffix("mallocx")
                    .filter(|prefix| prefix.is_empty() || prefix.ends_with('_'))
                    .map(|prefix| (Self::Jemalloc, prefix)),
            };
            if let Some((family, prefix)) = of_name {
                // What is linked into a program together with a C library is there to replace that one's.
                let rank = |family| matches!(family, Self::Glibc | Self::Musl);
                if found.as_ref().is_none_or(|(known, _)| rank(*known)) {
                    found = Some((family, prefix.to_owned()));
                }
            }
        }
        match found {
            Some((Self::Glibc | Self::Musl, _)) if !(malloc && free) => None,
            None if malloc && free => Some((Self::Other, String::new())),
            other => other,
        }
    }

    /// What a function of this name does, in an allocator of this family and prefix.
    pub(super) fn call(self, prefix: &str, name: &str) -> Option<AllocCall> {
        let in_table = |table: &[(&str, AllocCall)], name: &str| {
            table
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, call)| *call)
        };
        let own = match self {
            Self::Jemalloc => name
                .strip_prefix(prefix)
                .and_then(|name| in_table(JEMALLOC, name)),
            Self::Mimalloc => in_table(MIMALLOC, name),
            Self::Tcmalloc => in_table(TCMALLOC, name),
            _ => None,
        };
        own.or_else(|| name.strip_prefix(prefix).and_then(|name| in_table(C, name)))
            .or_else(|| in_table(C, name))
            .or_else(|| operator(name))
    }
}

/// C++ operators by their mangled names: `new` (`_Znwm`, `_Znam`) takes the size first, `delete` (`_ZdlPv`, `_ZdaPv`) the
/// pointer; what follows says that there are a size, an alignment or `nothrow` as well.
fn operator(name: &str) -> Option<AllocCall> {
    let tail = |prefixes: [&str; 2]| prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    let known = |tail: &str, sizes: &[&str]| {
        let tail = sizes
            .iter()
            .find_map(|size| tail.strip_prefix(size))
            .unwrap_or(tail);
        let tail = tail.strip_prefix("St11align_val_t").unwrap_or(tail);
        ["", "RKSt9nothrow_t"].contains(&tail)
    };
    if let Some(tail) = tail(["_Znwm", "_Znam"]) {
        return known(tail, &[]).then_some(AllocCall::Malloc);
    }
    let tail = tail(["_ZdlPv", "_ZdaPv"])?;
    known(tail, &["m"]).then_some(AllocCall::Free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(names: &[&str]) -> Option<(Family, String)> {
        Family::of(names.iter().copied())
    }

    #[test]
    fn allocators_are_told_by_what_only_they_define() {
        let c = ["malloc", "free", "gnu_get_libc_version"];
        assert_eq!(family(&c), Some((Family::Glibc, String::new())));
        assert_eq!(family(&["gnu_get_libc_version"]), None);
        assert_eq!(family(&["malloc"]), None);
        assert_eq!(family(&["malloc", "free"]), Some((Family::Other, String::new())));
        let rust = ["_rjem_mallocx", "_rjem_malloc", "main"];
        assert_eq!(family(&rust), Some((Family::Jemalloc, "_rjem_".to_owned())));
        let linked = ["malloc", "free", "__libc_memalign", "mallocx"];
        assert_eq!(family(&linked), Some((Family::Jemalloc, String::new())));
        assert_eq!(family(&["my_smallocx_x", "xmallocx"]), None);
        assert_eq!(
            family(&["tc_malloc", "malloc"]).map(|(family, _)| family),
            Some(Family::Tcmalloc)
        );
    }

    #[test]
    fn functions_do_what_their_names_say() {
        let glibc = |name| Family::Glibc.call("", name);
        assert_eq!(glibc("malloc"), Some(AllocCall::Malloc));
        assert_eq!(glibc("posix_memalign"), Some(AllocCall::PosixMemalign));
        assert_eq!(glibc("_ZnwmSt11align_val_t"), Some(AllocCall::Malloc));
        assert_eq!(glibc("_ZdaPvmSt11align_val_t"), Some(AllocCall::Free));
        assert_eq!(glibc("_ZnwmPv"), None);
        assert_eq!(glibc("mallocx"), None);
        let jemalloc = |name| Family::Jemalloc.call("_rjem_", name);
        assert_eq!(jemalloc("_rjem_sdallocx"), Some(AllocCall::Free));
        assert_eq!(jemalloc("_rjem_calloc"), Some(AllocCall::Calloc));
        assert_eq!(jemalloc("_rjem_mallctl"), None);
    }
}
