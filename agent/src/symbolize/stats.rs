//! What became of each address.

/// How the look-up of one address ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A function was found.
    Ok,
    /// The module is known, but no symbol covers the address.
    NoSymbol,
    /// No file or JIT code is mapped at the address.
    NoModule,
    /// Code that a runtime made, and that its perf map does not name.
    Generated,
    /// The process ended before its memory map was read, or the file can no longer be reached.
    ProcessGone,
    /// The module's file could not be opened or read as ELF.
    ElfError,
    /// The file, or its symbol tables alone, are over the limit.
    TooLarge,
    /// Reading the file takes longer than is allowed.
    TooSlow,
    /// Not looked up yet: reading files takes no more than a share of a CPU.
    Postponed,
    /// What is mapped is not a regular file.
    OddFile,
    /// The library that reads symbols panicked on the file.
    Panic,
    /// The kernel hides its symbols from the agent.
    KernelHidden,
}

impl Outcome {
    /// Every outcome, in the order of the counters.
    pub const ALL: [Self; 12] = [
        Self::Ok,
        Self::NoSymbol,
        Self::NoModule,
        Self::Generated,
        Self::ProcessGone,
        Self::ElfError,
        Self::TooLarge,
        Self::TooSlow,
        Self::Postponed,
        Self::OddFile,
        Self::Panic,
        Self::KernelHidden,
    ];

    /// The value of the label `result`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoSymbol => "no_symbol",
            Self::NoModule => "no_module",
            Self::Generated => "generated",
            Self::ProcessGone => "process_gone",
            Self::ElfError => "elf_error",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Postponed => "postponed",
            Self::OddFile => "odd_file",
            Self::Panic => "panic",
            Self::KernelHidden => "kernel_hidden",
        }
    }
}

/// What the search for the debug file of a file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DebugFile {
    /// Found by the build id.
    BuildId,
    /// Found by the debug link.
    DebugLink,
    /// Found among those that were fetched from a server.
    Debuginfod,
    /// Symbols were packed in the file itself.
    DebugData,
    /// Go's own table of functions took the place of debug information.
    GoTable,
    /// The file lacks something, and no file that has it was found.
    None,
    /// A file was found where it should be, but is of another build.
    Mismatch,
    /// Over the limit of size.
    TooLarge,
    /// Over the limit of time.
    TooSlow,
    /// No regular file, or one that cannot be read as ELF.
    Malformed,
}

impl DebugFile {
    /// Every result, in the order of the counters.
    pub const ALL: [Self; 10] = [
        Self::BuildId,
        Self::DebugLink,
        Self::Debuginfod,
        Self::DebugData,
        Self::GoTable,
        Self::None,
        Self::Mismatch,
        Self::TooLarge,
        Self::TooSlow,
        Self::Malformed,
    ];

    /// The value of the label `result`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BuildId => "build_id",
            Self::DebugLink => "debug_link",
            Self::Debuginfod => "debuginfod",
            Self::DebugData => "debugdata",
            Self::GoTable => "go_table",
            Self::None => "none",
            Self::Mismatch => "mismatch",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::Malformed => "malformed",
        }
    }
}

/// How a request for a debug file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fetched {
    /// It came.
    Fetched,
    /// No server has it.
    NotFound,
    /// The server could not be reached, took too long or answered with an error.
    Failed,
    /// It is over the limit.
    TooLarge,
    /// What came is no ELF file of that build.
    Mismatch,
    /// It could not be written.
    CacheFailed,
}

impl Fetched {
    /// Every result, in the order of the counters.
    pub const ALL: [Self; 6] = [
        Self::Fetched,
        Self::NotFound,
        Self::Failed,
        Self::TooLarge,
        Self::Mismatch,
        Self::CacheFailed,
    ];

    /// The value of the label `result`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::NotFound => "not_found",
            Self::Failed => "failed",
            Self::TooLarge => "too_large",
            Self::Mismatch => "mismatch",
            Self::CacheFailed => "cache_failed",
        }
    }
}

/// How the owner of a stack was found, or why it is `(unknown)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owned {
    /// By a frame of the service's own code.
    Own,
    /// By a frame of the executable, all of which is a runtime's or a library's.
    Executable,
    /// Unknown: the whole stack is in libraries and runtimes.
    OnlyLibraries,
    /// Unknown: the part that was walked is in libraries and runtimes.
    Truncated,
    /// Unknown: there is no user half.
    KernelOnly,
    /// Unknown: the frame of the service's own code has no name, for this reason.
    Nameless(Outcome),
}

impl Owned {
    /// Every result, in the order of the counters.
    pub const ALL: [Self; 15] = [
        Self::Own,
        Self::Executable,
        Self::OnlyLibraries,
        Self::Truncated,
        Self::KernelOnly,
        Self::Nameless(Outcome::NoSymbol),
        Self::Nameless(Outcome::NoModule),
        Self::Nameless(Outcome::Generated),
        Self::Nameless(Outcome::ProcessGone),
        Self::Nameless(Outcome::ElfError),
        Self::Nameless(Outcome::TooLarge),
        Self::Nameless(Outcome::TooSlow),
        Self::Nameless(Outcome::Postponed),
        Self::Nameless(Outcome::OddFile),
        Self::Nameless(Outcome::Panic),
    ];

    /// The value of the label `result`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Executable => "executable",
            Self::OnlyLibraries => "only_libraries",
            Self::Truncated => "truncated",
            Self::KernelOnly => "kernel_only",
            Self::Nameless(outcome) => outcome.as_str(),
        }
    }

    /// A frame without a name whose look-up ended so. That it ended well then only says that the symbol had no name.
    pub(super) const fn nameless(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Ok | Outcome::KernelHidden => Self::Nameless(Outcome::NoSymbol),
            other => Self::Nameless(other),
        }
    }
}

/// Counters of the symbolizer; they only grow, except those that say *now*.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolizeStats {
    pub(super) outcomes: [u64; Outcome::ALL.len()],
    pub(super) owned: [u64; Owned::ALL.len()],
    pub(super) debug_files: [u64; DebugFile::ALL.len()],
    pub(super) fetched: [u64; Fetched::ALL.len()],
    /// Stacks answered from the cache of stacks.
    pub stack_hits: u64,
    /// Stacks resolved address by address.
    pub stack_misses: u64,
    /// Addresses that had to be looked up in a file.
    pub address_misses: u64,
    /// Files whose debug sections are over the limits or malformed, so that only symbols are used.
    pub debug_skipped: u64,
    /// Files read for their symbols; one that was let go and is needed again counts again.
    pub files_read: u64,
    /// Memory maps read.
    pub maps_read: u64,
    /// Now: bytes of files kept in memory.
    pub image_bytes: u64,
    /// Now: processes whose memory map is kept.
    pub processes: usize,
    /// Now: files known.
    pub modules: usize,
    /// Now: addresses cached.
    pub addresses: usize,
}

impl SymbolizeStats {
    /// Addresses that ended this way; a cached answer counts again each time it is given.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// Searches for debug files that came to this.
    #[must_use]
    pub fn debug_files(&self, result: DebugFile) -> u64 {
        self.debug_files[result as usize]
    }

    /// Requests for debug files that ended so.
    #[must_use]
    pub fn fetched(&self, result: Fetched) -> u64 {
        self.fetched[result as usize]
    }

    /// Stacks whose owner was found so, or not found.
    #[must_use]
    pub fn owned(&self, result: Owned) -> u64 {
        let at = Owned::ALL.iter().position(|each| *each == result);
        at.map_or(0, |at| self.owned[at])
    }

    pub(super) fn add_stack(&mut self, result: Owned) {
        if let Some(at) = Owned::ALL.iter().position(|each| *each == result) {
            self.owned[at] += 1;
        }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}
