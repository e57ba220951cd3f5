//! What the kernel side keeps and is told of allocations.

/// Functions of one allocator whose calls of each other are not counted, at most.
pub const ALLOC_RANGES: usize = 24;
/// Allocators that are watched at most: one a process and module.
pub const MAX_ALLOC_TARGETS: u32 = 512;
/// Processes whose every allocation is watched at most.
pub const MAX_ALLOC_CLOCKS: u32 = 512;
/// Live sampled allocations at most, all processes together.
pub const MAX_ALLOC_LIVE: u32 = 1 << 16;

index_enum! {
    /// What a watched function does with its arguments.
    AllocCall {
        /// `malloc(size)`, `operator new(size)`, `mallocx(size, flags)`.
        Malloc = "malloc",
        /// `calloc(count, size)`.
        Calloc = "calloc",
        /// `realloc(pointer, size)`, `rallocx(pointer, size, flags)`.
        Realloc = "realloc",
        /// `reallocarray(pointer, count, size)`.
        Reallocarray = "reallocarray",
        /// `aligned_alloc(alignment, size)`, `memalign(alignment, size)`.
        Aligned = "aligned_alloc",
        /// `posix_memalign(pointer to the result, alignment, size)`.
        PosixMemalign = "posix_memalign",
        /// `free(pointer)`, `operator delete(pointer)`, `sdallocx(pointer, size, flags)`.
        Free = "free",
    }
}

/// What the program is told of the place where it runs, packed into the cookie of its uprobe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocSite {
    /// What the function does.
    pub call: AllocCall,
    /// Bytes that the function has pushed at the place of the probe: the return address lies that far above the stack pointer.
    pub pushed: u16,
    /// Index of its [`AllocTarget`].
    pub target: u16,
    /// Where its old pointer is null, it jumps to another function that is watched, too, and counts there.
    pub forwards_null: bool,
    /// The same for an alignment that every allocation has.
    pub forwards_aligned: bool,
    /// Pointers are wanted: calls are followed to their return.
    pub live: bool,
    /// The registers that hold the arguments: the numbers of their words among the saved registers.
    pub arguments: [u8; 3],
}

impl AllocSite {
    /// The cookie.
    #[must_use]
    pub const fn cookie(self) -> u64 {
        self.call as u64
            | (self.forwards_null as u64) << 8
            | (self.forwards_aligned as u64) << 9
            | (self.live as u64) << 10
            | (self.pushed as u64) << 16
            | (self.target as u64) << 32
            | (self.arguments[0] as u64) << 48
            | (self.arguments[1] as u64) << 52
            | (self.arguments[2] as u64) << 56
    }
}

/// Cookie: number of the [`AllocCall`].
#[inline(always)]
#[must_use]
pub const fn cookie_call(cookie: u64) -> u32 {
    cookie as u32 & 0xff
}

/// Cookie: [`AllocSite::forwards_null`].
pub const COOKIE_FORWARDS_NULL: u64 = 1 << 8;
/// Cookie: [`AllocSite::forwards_aligned`].
pub const COOKIE_FORWARDS_ALIGNED: u64 = 1 << 9;
/// Cookie: [`AllocSite::live`].
pub const COOKIE_LIVE: u64 = 1 << 10;

/// A place where a function's result is known, packed into the cookie of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResultSite {
    /// The register that holds it: the number of its word among the saved registers.
    pub word: u8,
    /// Bytes between the stack pointer there and the return address.
    pub pushed: u16,
    /// The function ends there. Elsewhere it may still come to another result, at another such place.
    pub last: bool,
}

impl ResultSite {
    /// Word of the register in which functions return their result.
    pub const AX: u8 = 10;
    /// Word of the register of the first argument.
    pub const DI: u8 = 14;

    /// The cookie.
    #[must_use]
    pub const fn cookie(self) -> u64 {
        self.word as u64 | (self.last as u64) << 8 | (self.pushed as u64) << 16
    }
}

/// Cookie: [`ResultSite::word`].
#[inline(always)]
#[must_use]
pub const fn cookie_word(cookie: u64) -> u64 {
    cookie & 0xff
}

/// Cookie: [`ResultSite::last`].
pub const COOKIE_LAST: u64 = 1 << 8;

/// Cookie: [`AllocSite::pushed`] or [`ResultSite::pushed`].
#[inline(always)]
#[must_use]
pub const fn cookie_pushed(cookie: u64) -> u64 {
    cookie >> 16 & 0xffff
}

/// Cookie: one of [`AllocSite::arguments`].
#[inline(always)]
#[must_use]
pub const fn cookie_argument(cookie: u64, argument: u32) -> u64 {
    cookie >> (48 + 4 * argument) & 0xf
}

/// Cookie: [`AllocSite::target`].
#[inline(always)]
#[must_use]
pub const fn cookie_target(cookie: u64) -> u32 {
    (cookie >> 32) as u32 & (MAX_ALLOC_TARGETS - 1)
}

/// A watched allocator of a process, as the agent describes it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AllocTarget {
    /// First addresses of its functions in the process, as many as [`Self::ranges`].
    pub from: [u64; ALLOC_RANGES],
    /// First addresses behind them.
    pub to: [u64; ALLOC_RANGES],
    /// How many there are.
    pub ranges: u32,
    /// Mean distance of two samples in allocated bytes.
    pub mean: u32,
    /// Changes whenever `mean` does.
    pub epoch: u32,
    /// 1 while calls count. Breakpoints are there a little earlier and later, which nobody can tell to the microsecond.
    pub on: u32,
}
const _: () = assert!(size_of::<AllocTarget>() == 16 * ALLOC_RANGES + 16);

/// What a watched allocator did while probes were attached; only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AllocCounts {
    /// Times that a probe was hit at the entry of one of its functions while calls count, calls among themselves included.
    pub hits: u64,
    /// Allocated bytes.
    pub bytes: u64,
    /// Allocations.
    pub objects: u64,
    /// Times that a probe was hit while calls do not count.
    pub missed: u64,
}
const _: () = assert!(size_of::<AllocCounts>() == 32);

/// Where the CPU clock met a process whose every allocation is watched; only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AllocClock {
    /// How often it did.
    pub samples: u64,
    /// How often in a probe, on the way there or back.
    pub probes: u64,
}

/// A live allocation that was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct LiveKey {
    /// Its address.
    pub address: u64,
    /// The process.
    pub pid: u32,
    /// Padding.
    pub pad: u32,
}

/// Which sample it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct LiveValue {
    /// Id of its stack event: the thread above, and the thread's count of samples.
    pub sample: u64,
    /// When it was allocated, in nanoseconds of the monotonic clock.
    pub since: u64,
}

/// Id of a sampled allocation.
#[inline(always)]
#[must_use]
pub const fn alloc_sample(tid: u32, count: u32) -> u64 {
    (tid as u64) << 32 | count as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_says_what_the_site_is() {
        let site = AllocSite {
            call: AllocCall::PosixMemalign,
            pushed: 56,
            target: 511,
            forwards_null: false,
            forwards_aligned: true,
            live: true,
            arguments: [14, 3, 12],
        };
        let cookie = site.cookie();
        assert_eq!([0, 1, 2].map(|at| cookie_argument(cookie, at)), [14, 3, 12]);
        assert_eq!(AllocCall::from_index(cookie_call(cookie)), Some(site.call));
        assert_eq!((cookie_pushed(cookie), cookie_target(cookie)), (56, 511));
        assert_eq!(
            cookie & (COOKIE_FORWARDS_NULL | COOKIE_FORWARDS_ALIGNED | COOKIE_LIVE),
            COOKIE_FORWARDS_ALIGNED | COOKIE_LIVE
        );
        let result = ResultSite {
            word: ResultSite::DI,
            pushed: 40,
            last: false,
        };
        let cookie = result.cookie();
        assert_eq!((cookie_word(cookie), cookie_pushed(cookie)), (14, 40));
        assert_eq!(cookie & COOKIE_LAST, 0);
    }
}
