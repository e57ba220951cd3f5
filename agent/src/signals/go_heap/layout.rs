//! Where Go's runtime keeps its heap profile in an executable.

use object::read::elf::{ElfFile64, FileHeader as _};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, ReadCache};

use super::Refused;
use crate::host::Host;

/// Bytes of the file that are read at most: the symbol table of a large program.
const BUDGET: u64 = 64 << 20;

/// Minor versions of Go 1 whose buckets were compared with what the program itself says.
pub(super) const KNOWN: std::ops::RangeInclusive<u32> = 19..=27;

/// Addresses in the file's own address space. They are the same for all processes of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub(super) entry: u64,
    /// The list of all buckets.
    pub(super) buckets: u64,
    /// Number of the garbage collection's cycle.
    pub(super) cycle: u64,
    /// Bytes between samples.
    pub(super) rate: u64,
    /// The version's name.
    pub(super) version: u64,
    /// When the runtime began; 0 where that is not known.
    pub(super) began: u64,
    /// Whether the linker left profiles out.
    pub(super) left_out: u64,
}

impl Layout {
    /// Finds it in the executable of a process.
    ///
    /// # Errors
    ///
    /// No Go program, or one without a symbol table.
    pub fn find(host: &Host, pid: u32) -> Result<Self, Refused> {
        let executable = host.executable(pid)?;
        let cache = ReadCache::new(executable.with_budget(BUDGET));
        let file: ElfFile64<'_, object::LittleEndian, _> =
            ElfFile64::parse(&cache).map_err(|_| Refused::NotGo)?;
        let of_go = |name: &str| [".gopclntab", ".data.rel.ro.gopclntab", ".go.buildinfo"].contains(&name);
        if !file.sections().any(|section| section.name().is_ok_and(of_go)) {
            return Err(Refused::NotGo);
        }
        let entry = file.elf_header().e_entry(object::LittleEndian);
        let names = [
            "runtime.mbuckets",
            "runtime.mProfCycle",
            "runtime.MemProfileRate",
            "runtime.buildVersion",
            "runtime.runtimeInitTime",
            "runtime.disableMemoryProfiling",
        ];
        let mut found = [0; 6];
        for symbol in file.symbols() {
            let Ok(name) = symbol.name() else { continue };
            if let Some(at) = names.iter().position(|wanted| *wanted == name) {
                found[at] = symbol.address();
            }
        }
        let [buckets, cycle, rate, version, began, left_out] = found;
        // A program that keeps no profile may lack all but the version; a version before Go 1.19 has another name for the cycle.
        if version == 0 || buckets == 0 || rate == 0 {
            return Err(Refused::NoSymbols);
        }
        Ok(Self {
            entry,
            buckets,
            cycle,
            rate,
            version,
            began,
            left_out,
        })
    }
}

/// The minor version of a name like `go1.19.8`, `go1.24rc1` or `go1.26.1 X:boringcrypto`.
pub(super) fn minor(version: &str) -> Option<u32> {
    let digits = version.strip_prefix("go1.")?;
    let end = digits
        .find(|digit: char| !digit.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}
