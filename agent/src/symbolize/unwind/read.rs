//! The sections of an ELF file that hold call frame information. The file belongs to somebody else: every size is bounded.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use object::elf::{self, FileHeader64};
use object::read::elf::ElfFile;
use object::{LittleEndian as Little, Object as _, ObjectSection as _, ObjectSymbol as _};

use super::super::cpu_time::CpuTime;
use super::super::go::GoTable;
use super::super::headers::Headers;
use super::code;
use super::frames::Frames;
use super::functions::{Functions, Limits, Stopped};
use super::rules::Rules;
use super::table::Table;
use super::unsupported::{Unsupported, UnsupportedRows};
use crate::host::Limited;

/// Bytes of a file that are read at most: what a table is made from, and the symbols. Chromium's call frame information is 30 MB.
const MAX_READ: u64 = 96 << 20;
/// Largest table of Go's that is read; that of Kubernetes is about 20 MB.
const MAX_GO: u64 = 48 << 20;
/// Symbols that are looked at for where functions begin.
const MAX_SYMBOLS: usize = 1 << 20;
/// Rows of an executable at most; Chromium has 3 million.
const MAX_ROWS: usize = 4 << 20;
/// Bytes of code without information that are looked at; more is somebody's own assembly or a just-in-time compiler's snapshot.
const MAX_CODE: u64 = 4 << 20;

/// Why an executable has no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// It cannot be read as 64-bit ELF.
    Malformed,
    /// It is for another machine.
    Machine,
    /// It says nothing about its frames.
    NoInformation,
    /// More than the limits allow.
    TooLarge,
    /// More time than the limit allows.
    TooSlow,
    /// A fault of the reader's, which the file brought about.
    Panic,
}

impl Refused {
    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Machine => "other_machine",
            Self::NoInformation => "no_information",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Panic => "panic",
        }
    }
}

/// A table and what it was made from.
#[derive(Clone, Debug, Default)]
pub struct Built {
    /// The table.
    pub table: Table,
    /// Functions with rules.
    pub functions: u64,
    /// Functions whose information cannot be read.
    pub broken: u64,
    /// Places with a rule that the kernel side does not know, by reason.
    pub unsupported: UnsupportedRows,
    /// CPU time that making it took.
    pub took: Duration,
}

pub(super) type Elf<'a> = ElfFile<'a, FileHeader64<Little>, &'a Limited<'a>>;

/// Builds the table of an executable, in so much CPU time at most.
pub fn build(file: &File, rules: &mut Rules, most: Duration) -> Result<Built, Refused> {
    let start = CpuTime::now();
    // What rules were added before a panic are rules as good as any.
    let built = catch_unwind(AssertUnwindSafe(|| make(file, rules, start + most)));
    let mut built = built.unwrap_or(Err(Refused::Panic))?;
    built.took = start.elapsed();
    Ok(built)
}

fn make(file: &File, rules: &mut Rules, until: CpuTime) -> Result<Built, Refused> {
    let limits = Limits {
        rows: MAX_ROWS,
        until,
    };
    let kept = Limited::new(file, MAX_READ);
    // Symbols and what else was read besides is let go before the rows are decoded.
    let (frames, functions) = collect(file, &kept, rules, limits)?;
    let (table, mut found) = functions
        .table(&frames.sections(), rules, limits)
        .map_err(refused)?;
    let table = table.ok_or(Refused::TooLarge)?;
    if table.pages.is_empty() {
        return Err(Refused::NoInformation);
    }
    Unsupported::RulesFull.count(&mut found.unsupported, table.refused);
    Ok(Built {
        functions: found.functions,
        broken: found.broken,
        unsupported: found.unsupported,
        table,
        took: Duration::ZERO,
    })
}

fn collect<'a>(
    file: &File,
    kept: &'a Limited<'a>,
    rules: &mut Rules,
    limits: Limits,
) -> Result<(Frames<'a>, Functions), Refused> {
    let limited = Limited::new(file, MAX_READ);
    let malformed = || {
        if limited.is_over() || kept.is_over() {
            Refused::TooLarge
        } else {
            Refused::Malformed
        }
    };
    let elf = Elf::parse(&limited).map_err(|_| malformed())?;
    if elf.elf_header().e_machine.get(Little) != elf::EM_X86_64 {
        return Err(Refused::Machine);
    }
    let found = Frames::read(&elf, kept).and_then(|frames| {
        let functions = functions(file, &elf, &frames, rules, limits)?;
        Ok((frames, functions))
    });
    let (frames, mut functions) = found.map_err(|why| match why {
        Refused::Malformed => malformed(),
        why => why,
    })?;
    if is_go(&elf) && frames.debug_frame.is_none() {
        by_go_table(file, &elf, &mut functions, rules, limits.until)?;
    }
    Ok((frames, functions))
}

fn functions(
    file: &File,
    elf: &Elf<'_>,
    frames: &Frames<'_>,
    rules: &mut Rules,
    limits: Limits,
) -> Result<Functions, Refused> {
    let mut functions = Functions::default();
    if is_go(elf) {
        for symbol in elf.symbols() {
            let name = symbol.name().unwrap_or_default();
            let (address, size) = (symbol.address(), symbol.size());
            of_go(file, elf, name, address, size, &mut functions, rules);
        }
    }
    functions.read(&frames.sections(), limits).map_err(refused)?;
    // Go has many functions that say nothing here, but keep frame pointers.
    if !is_go(elf) {
        from_code(file, elf, &mut functions, rules, limits.until);
    }
    if CpuTime::now() > limits.until {
        return Err(Refused::TooSlow);
    }
    Ok(functions)
}

/// Rules of what is left, where its instructions tell.
fn from_code(file: &File, elf: &Elf<'_>, functions: &mut Functions, rules: &mut Rules, until: CpuTime) {
    let mut left = MAX_CODE;
    let symbols = elf.symbols().chain(elf.dynamic_symbols());
    let mut known: Vec<u64> = symbols
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.is_definition())
        .take(MAX_SYMBOLS)
        .map(|symbol| symbol.address())
        // Assembly, whose symbol may not say that it is a function.
        .chain([elf.entry()])
        .collect();
    known.sort_unstable();
    for section in elf.sections() {
        let object::SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            continue;
        };
        if sh_flags & u64::from(elf::SHF_EXECINSTR) == 0 {
            continue;
        }
        let range = section.address()..section.address().saturating_add(section.size());
        let mut gaps = functions.gaps(range);
        while let Some(gap) = gaps.next(functions) {
            let size = gap.end - gap.start;
            if size > left || CpuTime::now() > until {
                return;
            }
            left -= size;
            let Some(code) = code_of(file, &section, gap.start, size) else {
                continue;
            };
            let found = code::functions(&code, gap.start, &known, until);
            for address in found.signal_returns {
                functions.signal_return(address, rules);
            }
            for function in &found.functions {
                functions.understood(function, rules);
            }
        }
    }
}

/// A piece of a section, and no more of the file: code is most of it.
fn code_of<'a>(
    file: &File,
    section: &impl object::ObjectSection<'a>,
    address: u64,
    size: u64,
) -> Option<Vec<u8>> {
    let (offset, there) = section.file_range()?;
    let at = address.checked_sub(section.address())?;
    if at.checked_add(size)? > there || size > MAX_CODE {
        return None;
    }
    let mut code = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut code, offset.checked_add(at)?).ok()?;
    Some(code)
}

fn refused(stopped: Stopped) -> Refused {
    match stopped {
        Stopped::Broken => Refused::Malformed,
        Stopped::TooMany => Refused::TooLarge,
        Stopped::TooSlow => Refused::TooSlow,
    }
}

fn is_go(elf: &Elf<'_>) -> bool {
    elf.section_by_name(".note.go.buildid").is_some()
}

/// Rules of a stripped Go program, whose runtime keeps a table of its own. Where that cannot be read, frame pointers are left.
fn by_go_table(
    file: &File,
    elf: &Elf<'_>,
    functions: &mut Functions,
    rules: &mut Rules,
    until: CpuTime,
) -> Result<(), Refused> {
    let table = Headers::read(file).and_then(|headers| GoTable::read(file, &headers, MAX_GO));
    let Ok(Some(table)) = table else {
        return Ok(());
    };
    let mut signal_returns = Vec::new();
    table.frames(|range, name, _| {
        let size = range.end.saturating_sub(range.start);
        if of_go(file, elf, name, range.start, size, functions, rules) {
            signal_returns.push(range.start);
        }
        CpuTime::now() <= until
    });
    let mut full = Ok(());
    table.frames(|mut range, _, depths| {
        // A function reaches to the next one here, but the byte before where a signal handler returns to is that one's.
        if signal_returns.contains(&range.end) {
            range.end -= 1;
        }
        full = functions.of_go(range, depths, rules, MAX_ROWS);
        full.is_ok() && CpuTime::now() <= until
    });
    full.map_err(refused)?;
    if CpuTime::now() > until {
        return Err(Refused::TooSlow);
    }
    Ok(())
}

/// What neither the call frame information of Go nor its table says: where its threads and goroutines begin (its compiler's
/// `TOPFRAME`), and where its signal handlers return to; true for the latter.
fn of_go(
    file: &File,
    elf: &Elf<'_>,
    name: &str,
    address: u64,
    size: u64,
    functions: &mut Functions,
    rules: &mut Rules,
) -> bool {
    /// The system call `rt_sigreturn`.
    const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    let Some(name) = name.strip_prefix("runtime.") else {
        return false;
    };
    match name.strip_suffix(".abi0").unwrap_or(name) {
        "goexit" | "mstart" | "rt0_go" => functions.entry(address, size.min(1 << 12), rules),
        "sigreturn" | "sigreturn__sigaction" => {
            let code = elf
                .sections()
                .find_map(|section| code_of(file, &section, address, 9));
            if code.is_some_and(|code| code == SIGNAL_RETURN) {
                functions.signal_return(address, rules);
                return true;
            }
        }
        _ => {}
    }
    false
}
