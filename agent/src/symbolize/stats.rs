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
    /// The process ended before its memory map was read, or the file can no longer be reached.
    ProcessGone,
    /// The module's file could not be opened or read as ELF.
    ElfError,
    /// The file, or its symbol tables alone, are over the limit.
    TooLarge,
    /// Reading the file takes longer than is allowed.
    TooSlow,
    /// What is mapped is not a regular file.
    OddFile,
    /// The library that reads symbols panicked on the file.
    Panic,
    /// The kernel hides its symbols from the agent.
    KernelHidden,
}

impl Outcome {
    /// Every outcome, in the order of the counters.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::NoSymbol,
        Self::NoModule,
        Self::ProcessGone,
        Self::ElfError,
        Self::TooLarge,
        Self::TooSlow,
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
            Self::ProcessGone => "process_gone",
            Self::ElfError => "elf_error",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::OddFile => "odd_file",
            Self::Panic => "panic",
            Self::KernelHidden => "kernel_hidden",
        }
    }
}

/// Counters of the symbolizer; they only grow, except those that say *now*.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolizeStats {
    pub(super) outcomes: [u64; Outcome::ALL.len()],
    /// Stacks answered from the cache of stacks.
    pub stack_hits: u64,
    /// Stacks resolved address by address.
    pub stack_misses: u64,
    /// Addresses that had to be looked up in a file.
    pub address_misses: u64,
    /// Files whose debug sections were over the limit, so that only symbols are used.
    pub debug_skipped: u64,
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

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}
