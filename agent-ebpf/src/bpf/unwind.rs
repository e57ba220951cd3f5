//! User stacks: frames are found with tables made from `.eh_frame` and, where a module has none, by frame pointers.
//!
//! The stack is read in large pieces and walked in the copy; a piece costs about as much as a single word (COST.md 2.5).

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use core::ffi::c_void;

use super::{
    python::WORDS,
    tables::{UNWIND_GENERATION, UNWIND_MAPPINGS, UNWIND_RULES, find, halve, space},
    task::Regs,
};
use crate::wire::{
    CapturedModule, FRAME_INTERRUPTED, KERNEL_FRAMES, SAMPLE_MODULES, USER_FRAMES,
    python::{PYTHON_FRAMES, PYTHON_WORDS},
    unwind::{
        CFA_AT_FP, CFA_AT_SP, CFA_END, CFA_FP, CFA_NONE, CFA_PLT, CFA_SP, CODE_GROWTH, FP_AT_CFA, FP_AT_FP,
        FP_AT_SP, FP_LOST, GENERATED, RA_AT_SP, RA_IN_RDI, RULE_SIGNAL, Rule, UnwindResult,
    },
};

/// Words that the modules of a sample take.
const MODULE_WORDS: usize = SAMPLE_MODULES * size_of::<CapturedModule>() / 8;
/// Room for both halves, the frames of an interpreter and modules.
const FRAMES: usize = WORDS;
const _: () = assert!(USER_FRAMES + KERNEL_FRAMES + PYTHON_WORDS * PYTHON_FRAMES + MODULE_WORDS < FRAMES);
/// Bytes of stack copied at once.
pub(crate) const COPY: usize = 2048;
/// Bytes of the copy above the stack pointer below which it is renewed: frames are mostly smaller.
const AHEAD: u64 = 256;
/// Steps of the search among the mappings of a process: up to 4,095.
const MAPPING_STEPS: u32 = 12;

/// A place in the code whose rule was found not long ago. The same callers are met in one stack after the other, and the search
/// for a rule is most of a step.
#[derive(Clone, Copy)]
#[repr(C)]
struct Known {
    /// Address and, in the low 16 bits, the rule; addresses that need more than 48 bits are not remembered.
    place: u64,
    /// [`Room::owner`] of the walk that found it.
    owner: u64,
}

/// Places that are remembered; a power of two.
const KNOWN: usize = 256;

/// Where a walk happens: a map value, of which the verifier knows nothing but the size, so that all walks look the same to it.
#[repr(C)]
pub(crate) struct Room {
    /// The frames, innermost first, with room for those of the kernel and for modules.
    pub(crate) frames: [u64; FRAMES],
    /// Part of the stack; after the walk, room for others.
    pub(crate) copy: [u64; COPY / 8],
    known: [Known; KNOWN],
    /// Generation of the tables, and what tells the process's mappings from others of that generation.
    owner: u64,
    /// Address of the first copied byte.
    base: u64,
    /// Copied bytes.
    copied: u64,
    /// All ones once a copy failed, else 0: those after it end where a page ends at the latest.
    careful: u64,
    ip: u64,
    sp: u64,
    fp: u64,
    /// Of the running frame, until it was used.
    rdi: u64,
    /// The mapping of the last frame: the next one's is mostly the same.
    start: u64,
    end: u64,
    bias: u64,
    module: u32,
    /// Mappings of the process.
    first: u32,
    count: u32,
    len: u32,
    /// [`UnwindResult`].
    result: u32,
    /// `ip` is where the frame was interrupted, not where it will go on.
    exact: u32,
    /// One of the frames is in code that is new, see [`CODE_GROWTH`].
    grown: u32,
}

/// How a frame is left.
enum Way<'a> {
    /// By a rule.
    Rule(&'a Rule),
    /// By its frame pointer.
    FramePointer,
    /// Its address is in no code.
    Astray,
}

impl Room {
    /// Whether the agent has told the mappings of the process that was walked last.
    #[inline(always)]
    pub(crate) fn has_mappings(&self) -> bool {
        self.count != 0
    }

    /// Copies the stack from the stack pointer on, where that is not in the copy with some room above.
    #[inline(always)]
    fn refill(&mut self) {
        let at = self.sp.wrapping_sub(self.base);
        if at < self.copied && self.copied - at > AHEAD {
            return;
        }
        self.base = self.sp & !7;
        // Near its top a stack has less above, and of what goes beyond nothing is copied. To try that again took 0.9 us a frame.
        let size = COPY as u64 - (self.base & self.careful & (COPY as u64 - 1));
        // SAFETY: the helper checks the address; the destination has `COPY` bytes.
        let failed = unsafe {
            bpf_probe_read_user(
                (&raw mut self.copy).cast(),
                size as u32,
                self.base as *const c_void,
            )
        };
        // No branch: two states of the walk would be four after the next copy, for the verifier.
        let failed = (failed >> 63) as u64;
        self.copied = size & !failed;
        self.careful |= failed;
    }

    /// A word of the stack.
    #[inline(always)]
    fn word(&self, address: u64) -> Option<u64> {
        let at = address.wrapping_sub(self.base);
        if at & 7 == 0 && at < self.copied {
            // SAFETY: the offset is below `COPY`, which the mask repeats for the verifier.
            return unsafe {
                let at = core::ptr::read_volatile(&raw const at) as usize & (COPY - 8);
                Some(*(&raw const self.copy).cast::<u8>().add(at).cast::<u64>())
            };
        }
        let mut word = 0u64;
        // SAFETY: the helper checks the address.
        let failed = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const c_void) };
        (failed == 0).then_some(word)
    }

    /// Makes the mapping of an address the current one.
    #[inline(always)]
    fn locate(&mut self, ip: u64) -> bool {
        if ip >= self.start && ip < self.end {
            return true;
        }
        let (mut first, mut count) = (self.first, self.count);
        let mut step = 0;
        while step < MAPPING_STEPS && count > 1 {
            let half = count / 2;
            let Some(middle) = UNWIND_MAPPINGS.get(first + half) else {
                return false;
            };
            // User addresses have 47 or 56 bits.
            let below = ip.wrapping_sub(middle.start) as i64 >> 63;
            (first, count) = halve(first, count, half, below as u32);
            step += 1;
        }
        let Some(found) = UNWIND_MAPPINGS.get(first) else {
            return false;
        };
        if ip < found.start {
            return false;
        }
        self.start = found.start;
        self.end = found.end;
        if ip >= found.end {
            // A file does not grow: what is behind it is another one.
            if found.bias != GENERATED || ip - found.end >= CODE_GROWTH {
                return false;
            }
            self.end = ip.wrapping_add(1);
            self.grown = 1;
        }
        self.bias = found.bias;
        self.module = found.module;
        true
    }

    #[inline(always)]
    fn way(&mut self) -> Way<'static> {
        if self.count == 0 {
            return Way::FramePointer;
        }
        // A call may be a function's last instruction: what follows it is another function.
        let ip = self.ip.wrapping_sub(u64::from(self.exact == 0));
        let known = self.known(ip);
        // SAFETY: an element of this room.
        let (place, owner) = unsafe { ((*known).place, (*known).owner) };
        let found = if place >> 16 == ip && owner == self.owner {
            Some(place as u32 & 0xffff)
        } else {
            if !self.locate(ip) {
                return Way::Astray;
            }
            let found = self
                .module
                .checked_sub(1)
                .and_then(|module| find(module, ip.wrapping_add(self.bias)));
            if let Some(number) = found {
                // SAFETY: as above. Rule 0 is none: the end of a chain of frame pointers asks for the mapping, too.
                unsafe {
                    (*known).place = ip << 16 | u64::from(number);
                    (*known).owner = if number == 0 { 0 } else { self.owner };
                }
            }
            found
        };
        match found.and_then(|number| UNWIND_RULES.get(number)) {
            Some(rule) if rule.cfa != CFA_NONE => Way::Rule(rule),
            _ => Way::FramePointer,
        }
    }

    /// Where an address is remembered.
    #[inline(always)]
    fn known(&mut self, ip: u64) -> *mut Known {
        let hash = ip ^ ip >> 8;
        // SAFETY: the index is masked to the array's length, in a way that the compiler cannot take away from the verifier.
        unsafe {
            let at = core::ptr::read_volatile(&raw const hash) as usize & (KNOWN - 1);
            (&raw mut self.known).cast::<Known>().add(at)
        }
    }

    /// Goes to the caller's frame; how it ended, or `None` to go on.
    #[inline(always)]
    fn step(&mut self) -> Option<UnwindResult> {
        self.refill();
        let rule = match self.way() {
            Way::Rule(rule) => rule,
            Way::FramePointer => return self.by_frame_pointer(),
            Way::Astray => return Some(UnwindResult::NoMapping),
        };
        let offset = i64::from(rule.cfa_offset) as u64;
        let cfa = match rule.cfa {
            CFA_END => return Some(UnwindResult::Complete),
            CFA_SP => self.sp.wrapping_add(offset),
            CFA_FP => self.fp.wrapping_add(offset),
            CFA_AT_SP | CFA_AT_FP => {
                let at = if rule.cfa == CFA_AT_SP { self.sp } else { self.fp };
                let Some(cfa) = self.word(at.wrapping_add(offset)) else {
                    return Some(UnwindResult::Memory);
                };
                cfa
            }
            CFA_PLT => self.sp.wrapping_add(if self.ip & 15 >= 11 { 16 } else { 8 }),
            _ => return Some(UnwindResult::Unsupported),
        };
        // Stacks grow down. Only a signal handler's may be elsewhere than that of the code that it interrupted.
        let on_stack = u64::from(rule.ra != RA_IN_RDI);
        if cfa < self.sp.wrapping_add(on_stack) && rule.flags & RULE_SIGNAL == 0 {
            return Some(UnwindResult::Disorder);
        }
        let ra = if rule.ra == RA_IN_RDI {
            core::mem::take(&mut self.rdi)
        } else {
            let at = if rule.ra == RA_AT_SP { self.sp } else { cfa };
            let Some(ra) = self.word(at.wrapping_add(i64::from(rule.ra_offset) as u64)) else {
                return Some(UnwindResult::Memory);
            };
            ra
        };
        if rule.fp == FP_LOST {
            self.fp = 0;
        } else if rule.fp == FP_AT_CFA || rule.fp == FP_AT_SP || rule.fp == FP_AT_FP {
            let at = match rule.fp {
                FP_AT_CFA => cfa,
                FP_AT_SP => self.sp,
                _ => self.fp,
            };
            let Some(fp) = self.word(at.wrapping_add(i64::from(rule.fp_offset) as u64)) else {
                return Some(UnwindResult::Memory);
            };
            self.fp = fp;
        }
        self.sp = cfa;
        self.exact = u32::from(rule.flags & RULE_SIGNAL);
        if ra == 0 {
            // Where a program or a thread begins, a rule says so.
            return Some(UnwindResult::NoReturn);
        }
        self.ip = ra;
        None
    }

    #[inline(always)]
    fn by_frame_pointer(&mut self) -> Option<UnwindResult> {
        let fp = self.fp;
        if fp == 0 {
            return Some(self.end_of_chain());
        }
        // Frames only go up; anything else is no chain of frame pointers.
        if fp < self.sp || fp & 7 != 0 {
            return Some(UnwindResult::Disorder);
        }
        let (Some(next), Some(ra)) = (self.word(fp), self.word(fp.wrapping_add(8))) else {
            return Some(UnwindResult::Memory);
        };
        self.sp = fp.wrapping_add(16);
        self.fp = next;
        self.exact = 0;
        if ra == 0 {
            return Some(self.end_of_chain());
        }
        self.ip = ra;
        None
    }

    /// What it means that a chain of frame pointers ends here.
    #[inline(always)]
    fn end_of_chain(&self) -> UnwindResult {
        if self.count == 0 {
            UnwindResult::FramePointers
        } else if self.module != 0 {
            UnwindResult::NoRule
        } else {
            UnwindResult::Complete
        }
    }
}

extern "C" fn step(index: u64, room: *mut *mut Room) -> i64 {
    // SAFETY: `bpf_loop` hands through what `walk` below gave it.
    let room = unsafe { &mut **room };
    if let Some(result) = room.step() {
        // Here and not after the walk: a branch there would be a second state for all that follows, for the verifier.
        let result = match result {
            UnwindResult::Complete if room.grown != 0 => UnwindResult::NewCode,
            // It was something else.
            _ if room.grown != 0 => UnwindResult::NoMapping,
            result => result,
        };
        room.result = result as u32;
        return 1;
    }
    // The step's number is the frame's.
    let frame = index as u32;
    // SAFETY: the index is masked to the array's length.
    unsafe {
        let at = core::ptr::read_volatile(&raw const frame) as usize & USER_FRAMES;
        *(&raw mut room.frames).cast::<u64>().add(at + 1) =
            room.ip | (FRAME_INTERRUPTED * u64::from(room.exact));
    }
    room.len = frame + 2;
    0
}

/// Walks the stack of the running user thread; returns the number of frames and how it ended.
#[inline(always)]
pub(crate) fn walk(room: *mut Room, regs: Regs, slot: u32, pid: u32) -> (u32, UnwindResult) {
    let space = space(slot, pid);
    // SAFETY: a map value of this program's level.
    unsafe {
        let room = &mut *room;
        (room.ip, room.sp, room.fp) = (regs.ip(), regs.sp(), regs.fp());
        room.rdi = regs.arg0();
        room.frames[0] = room.ip;
        (room.base, room.copied, room.careful) = (room.sp, 0, 0);
        // Volatile: a call of `memset`, else.
        core::ptr::write_volatile(&raw mut room.start, 0);
        core::ptr::write_volatile(&raw mut room.end, 0);
        // 0 is nobody's.
        let generation = UNWIND_GENERATION.get(0).copied().unwrap_or(0);
        room.owner = u64::from(generation.wrapping_add(1)) << 32 | u64::from(space.first);
        (room.first, room.count) = (space.first, space.count);
        (room.len, room.result, room.exact) = (1, UnwindResult::TooDeep as u32, 1);
        room.grown = 0;
    }
    let mut context = room;
    // The last step finds no room for a caller, but may find that there is none.
    // SAFETY: the callback has the signature that the helper wants, and `context` outlives the call.
    unsafe {
        bpf_loop(
            USER_FRAMES as u32,
            step as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
    // SAFETY: as above.
    let (len, result) = unsafe { ((*room).len, (*room).result) };
    (
        len.min(USER_FRAMES as u32),
        UnwindResult::from_index(result).unwrap_or(UnwindResult::TooDeep),
    )
}
