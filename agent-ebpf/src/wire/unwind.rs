//! Unwind tables: for every address of an executable, how to get from a frame there to its caller's.
//!
//! A table is sorted by address and cut into pages of 64 KiB of code, and these into parts of 256 bytes. A row is two bytes:
//! where in its part it begins, and a number that means a [`Rule`] in its page. Rules are few (compilers do much the same
//! everywhere), so all executables share them, and a page needs a hundred of them at most.
//!
//! A page is a row of words of two bytes: for each part the number of its first row, and one more for the end; the rules of the
//! page; the rows. Row 0 is in force where the page begins and belongs to no part.

/// Bits of an address in a page: it covers `1 << PAGE_BITS` bytes of code.
pub const PAGE_BITS: u32 = 16;
/// Bits of an address that a row holds: a part covers `1 << PART_BITS` bytes of code.
pub const PART_BITS: u32 = 8;
/// Words of a page before its rules: one for each part, and the end.
pub const PAGE_HEAD: u32 = (1 << (PAGE_BITS - PART_BITS)) + 1;
/// Rules of a page at most.
pub const PAGE_RULES: u32 = 1 << 8;
/// Rules that all tables share at most.
pub const MAX_RULES: u32 = 1 << 14;
/// Words of a block: the unit in which tables are written and looked up (1 KiB).
pub const BLOCK_WORDS: u32 = 1 << 9;
/// Blocks of a segment: the unit in which memory for tables is taken and given back (1 MiB).
pub const SEGMENT_BLOCKS: u32 = 1 << 10;
/// Words of a segment.
pub const SEGMENT_WORDS: u32 = BLOCK_WORDS * SEGMENT_BLOCKS;
/// Segments at most, so 64 MiB.
pub const MAX_SEGMENTS: u32 = 64;
/// Pages of all tables at most, so 4 GiB of code.
pub const MAX_PAGES: u32 = 1 << 16;
/// Executables with a table at most.
pub const MAX_MODULES: u32 = 1 << 12;
/// Mappings of all processes at most.
pub const MAX_MAPPINGS: u32 = 1 << 16;

/// [`Rule::cfa`]: nothing is known; generated code and Go keep frame pointers.
pub const CFA_NONE: u8 = 0;
/// [`Rule::cfa`]: there is no caller; this is where a program or a thread begins.
pub const CFA_END: u8 = 1;
/// [`Rule::cfa`]: stack pointer plus offset.
pub const CFA_SP: u8 = 2;
/// [`Rule::cfa`]: frame pointer plus offset.
pub const CFA_FP: u8 = 3;
/// [`Rule::cfa`]: what is stored at the stack pointer plus offset.
pub const CFA_AT_SP: u8 = 4;
/// [`Rule::cfa`]: what is stored at the frame pointer plus offset.
pub const CFA_AT_FP: u8 = 5;
/// [`Rule::cfa`]: a stub of the procedure linkage table, which pushes in its last instructions: stack pointer plus 8, and 8
/// more from byte 11 of its 16 on.
pub const CFA_PLT: u8 = 6;
/// [`Rule::cfa`]: a rule that this program does not know.
pub const CFA_UNSUPPORTED: u8 = 7;

/// [`Rule::fp`]: the caller's frame pointer is still in its register.
pub const FP_SAME: u8 = 0;
/// [`Rule::fp`]: stored at the CFA plus offset.
pub const FP_AT_CFA: u8 = 1;
/// [`Rule::fp`]: stored at the stack pointer plus offset.
pub const FP_AT_SP: u8 = 2;
/// [`Rule::fp`]: stored at the frame pointer plus offset.
pub const FP_AT_FP: u8 = 3;
/// [`Rule::fp`]: lost.
pub const FP_LOST: u8 = 4;

/// [`Rule::ra`]: stored at the CFA plus offset.
pub const RA_AT_CFA: u8 = 0;
/// [`Rule::ra`]: stored at the stack pointer plus offset.
pub const RA_AT_SP: u8 = 1;

/// [`Rule::ra`]: in `rdi`, of the frame that runs only: `vfork` has its return address there, because the child uses the stack.
pub const RA_IN_RDI: u8 = 2;

/// [`Rule::flags`]: the kernel's way back from a signal handler: its caller was interrupted, it did not call.
pub const RULE_SIGNAL: u8 = 1;

/// How to get from a frame to its caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Rule {
    /// `CFA_*`: the canonical frame address, the caller's stack pointer (DWARF 5, section 6.4).
    pub cfa: u8,
    /// `FP_*`: the caller's frame pointer.
    pub fp: u8,
    /// `RA_*`: the return address.
    pub ra: u8,
    /// `RULE_*`.
    pub flags: u8,
    /// Bytes to add for `cfa`.
    pub cfa_offset: i32,
    /// Bytes to add for `fp`.
    pub fp_offset: i32,
    /// Bytes to add for `ra`.
    pub ra_offset: i32,
}
const _: () = assert!(size_of::<Rule>() == 16);

/// A row: the low [`PART_BITS`] of the address from which on its rule holds, and above them the rule's number in the page.
#[inline(always)]
#[must_use]
pub const fn row(address: u64, rule: u8) -> u16 {
    (rule as u16) << PART_BITS | (address as u16 & ((1 << PART_BITS) - 1))
}

/// Where a page of code is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Page {
    /// Number of its first word, counted through all segments; all of its words are in one. Without words, the rule that is in
    /// force in the whole page.
    pub first: u32,
    /// Rules that it has; 0 without words.
    pub rules: u32,
}

/// The table of an executable.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Module {
    /// Address of the first byte of its first page, as the file has it.
    pub base: u64,
    /// Index of its first page.
    pub first_page: u32,
    /// How many pages it has.
    pub pages: u32,
}

/// An executable mapping of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// To add to an address of the process for that of the file.
    pub bias: u64,
    /// Index of its table, plus one; 0 without.
    pub module: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<Mapping>() == 32);

/// Whose mappings: a process of a slot, or with pid 0 the processes of the slot that have none of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SpaceKey {
    /// Slot.
    pub slot: u32,
    /// Process id or 0.
    pub pid: u32,
}

/// The mappings of a process, in the order of their addresses.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Space {
    /// Index of the first.
    pub first: u32,
    /// How many there are.
    pub count: u32,
}

/// Code this close above memory that a program made executable is what it has added to it since: compilers take theirs in steps
/// (64 KiB by default in HotSpot, 256 KiB in V8), where they have reserved room for it. More than a program compiles between two
/// looks at its mappings.
pub const CODE_GROWTH: u64 = 4 << 20;
/// [`Mapping::bias`] of memory without a file, which may grow so.
pub const GENERATED: u64 = u64::MAX;

index_enum! {
    /// How the walk of a user stack ended.
    UnwindResult {
        /// At the place where the program or the thread began.
        Complete = "complete",
        /// At the end of a chain of frame pointers, of a process whose tables are not loaded yet.
        FramePointers = "frame_pointers",
        /// Where the program or the thread began, by way of code that it has compiled since its mappings were read.
        NewCode = "new_code",
        /// At an address that is in no code of the process.
        NoMapping = "no_mapping",
        /// In code that says nothing about its frames and keeps no frame pointer, of an executable that else does.
        NoRule = "no_rule",
        /// At a rule that the walk does not know.
        Unsupported = "unsupported_rule",
        /// At a return address of zero, where the rule for its frame promised another.
        NoReturn = "no_return_address",
        /// At memory that could not be read.
        Memory = "unreadable_memory",
        /// At a frame that is not above the one that it called.
        Disorder = "disordered_frames",
        /// At the most frames that a sample holds.
        TooDeep = "too_deep",
    }
}

impl UnwindResult {
    /// The walk came to where the program or the thread began.
    #[must_use]
    pub const fn whole(self) -> bool {
        matches!(self, Self::Complete | Self::NewCode)
    }
}
