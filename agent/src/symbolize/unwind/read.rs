//! The sections of an ELF file that hold call frame information. The file belongs to somebody else: every size is bounded.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use gimli::{BaseAddresses, DebugFrame, EhFrame, EndianSlice, LittleEndian};
use object::elf::{self, FileHeader64};
use object::read::elf::{ElfFile, ProgramHeader as _};
use object::{LittleEndian as Little, Object as _, ObjectSection as _, ObjectSymbol as _, ReadRef};

use super::super::cpu_time::CpuTime;
use super::super::go::GoTable;
use super::super::headers::Headers;
use super::code;
use super::functions::{Functions, Stopped};
use super::rules::Rules;
use super::table::Table;
use crate::host::Limited;

/// Bytes of a file that are read at most: what a table is made from, and the symbols. Chromium's call frame information is 30 MB.
const MAX_READ: u64 = 96 << 20;
/// Largest section after unpacking.
const MAX_SECTION: u64 = 64 << 20;
/// By how much a section grows at most when it is unpacked: call frame information packs to a fifth, and memory is taken for what a
/// section claims.
const MAX_GROWTH: u64 = 100;
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
    /// Places with a rule that the kernel side does not know.
    pub unsupported: u64,
    /// CPU time that making it took.
    pub took: Duration,
}

type Elf<'a> = ElfFile<'a, FileHeader64<Little>, &'a Limited<'a>>;

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
    let functions = collect(file, rules, until)?;
    let found = functions.found;
    // What was read is let go by now: for large files, each of the two takes tens of megabytes.
    let rows = functions.rows();
    if rows.is_empty() {
        return Err(Refused::NoInformation);
    }
    let table = Table::pack(&rows).ok_or(Refused::TooLarge)?;
    Ok(Built {
        functions: found.functions,
        broken: found.broken,
        unsupported: found.unsupported + table.refused,
        table,
        took: Duration::ZERO,
    })
}

fn collect(file: &File, rules: &mut Rules, until: CpuTime) -> Result<Functions, Refused> {
    let limited = Limited::new(file, MAX_READ);
    let malformed = |limited: &Limited<'_>| {
        if limited.is_over() {
            Refused::TooLarge
        } else {
            Refused::Malformed
        }
    };
    let elf = Elf::parse(&limited).map_err(|_| malformed(&limited))?;
    if elf.elf_header().e_machine.get(Little) != elf::EM_X86_64 {
        return Err(Refused::Machine);
    }
    let mut functions = functions(file, &elf, &limited, rules, until).map_err(|why| match why {
        Refused::Malformed => malformed(&limited),
        why => why,
    })?;
    if is_go(&elf) && elf.section_by_name(".debug_frame").is_none() {
        by_go_table(file, &elf, &mut functions, rules, until)?;
    }
    Ok(functions)
}

fn functions<'a>(
    file: &File,
    elf: &Elf<'a>,
    limited: &'a Limited<'a>,
    rules: &mut Rules,
    until: CpuTime,
) -> Result<Functions, Refused> {
    let mut bases = BaseAddresses::default();
    for section in elf.sections() {
        match section.name() {
            Ok(".text") => bases = bases.set_text(section.address()),
            Ok(".got") => bases = bases.set_got(section.address()),
            _ => {}
        }
    }
    let mut functions = Functions::default();
    if is_go(elf) {
        for symbol in elf.symbols() {
            let name = symbol.name().unwrap_or_default();
            let (address, size) = (symbol.address(), symbol.size());
            of_go(file, elf, name, address, size, &mut functions, rules);
        }
    }
    let eh_frame = match elf.section_by_name(".eh_frame") {
        Some(section) => Some((section.address(), contents(&section)?)),
        None => without_sections(elf, limited).map(|(address, data)| (address, Cow::Borrowed(data))),
    };
    if let Some((address, data)) = eh_frame {
        let mut frame = EhFrame::from(EndianSlice::new(&data, LittleEndian));
        frame.set_address_size(8);
        let bases = bases.clone().set_eh_frame(address);
        functions
            .read(&frame, &bases, rules, (MAX_ROWS, until))
            .map_err(refused)?;
    }
    // Start-up code has `.eh_frame` also where the program itself has the other, so the one does not rule out the other.
    if let Some(section) = elf.section_by_name(".debug_frame") {
        let data = contents(&section)?;
        let mut frame = DebugFrame::from(EndianSlice::new(&data, LittleEndian));
        frame.set_address_size(8);
        functions
            .read(&frame, &bases, rules, (MAX_ROWS, until))
            .map_err(refused)?;
    }
    // Go has many functions that say nothing here, but keep frame pointers.
    if !is_go(elf) {
        from_code(file, elf, &mut functions, rules, until);
    }
    if CpuTime::now() > until {
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
        for gap in functions.gaps(section.address()..section.address().saturating_add(section.size())) {
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

/// What a section holds; linkers may compress what starts with `.debug`.
fn contents<'a>(section: &impl object::ObjectSection<'a>) -> Result<Cow<'a, [u8]>, Refused> {
    let data = section.compressed_data().map_err(|_| Refused::Malformed)?;
    let most = MAX_GROWTH.saturating_mul(data.data.len() as u64).min(MAX_SECTION);
    if section.size() > MAX_SECTION || data.uncompressed_size > most {
        return Err(Refused::TooLarge);
    }
    data.decompress().map_err(|_| Refused::Malformed)
}

/// `.eh_frame` of a file without section headers: its index is a segment of its own (`PT_GNU_EH_FRAME`; LSB 5.0, 10.6.2) and
/// begins with a pointer to it.
fn without_sections<'a>(elf: &Elf<'a>, limited: &'a Limited<'a>) -> Option<(u64, &'a [u8])> {
    let segments = elf.elf_program_headers();
    let index = segments
        .iter()
        .find(|segment| segment.p_type(Little) == elf::PT_GNU_EH_FRAME)?;
    let (offset, address) = (index.p_offset(Little), index.p_vaddr(Little));
    let head: [u8; 8] = limited.read_bytes_at(offset, 8).ok()?.try_into().ok()?;
    // Version 1, and the encoding that every linker uses: relative to itself, four signed bytes.
    if head[..2] != [1, 0x1b] {
        return None;
    }
    let relative = i32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let frame = address.checked_add(4)?.checked_add_signed(i64::from(relative))?;
    let inside = |segment: &&elf::ProgramHeader64<Little>| {
        segment.p_type(Little) == elf::PT_LOAD
            && frame
                .checked_sub(segment.p_vaddr(Little))
                .is_some_and(|at| at < segment.p_filesz(Little))
    };
    let segment = segments.iter().find(inside)?;
    let at = frame - segment.p_vaddr(Little);
    // To the end of its segment: a zero length ends the section before.
    let size = segment.p_filesz(Little).checked_sub(at)?;
    if size > MAX_SECTION {
        return None;
    }
    let data = limited
        .read_bytes_at(segment.p_offset(Little).checked_add(at)?, size)
        .ok()?;
    Some((frame, data))
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
