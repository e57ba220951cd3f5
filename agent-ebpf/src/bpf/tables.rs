//! The maps of unwind tables, and the search in them.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap},
    macros::btf_map,
};

use crate::wire::unwind::{
    BLOCK_WORDS, MAX_MAPPINGS, MAX_MODULES, MAX_PAGES, MAX_RULES, MAX_SEGMENTS, Mapping, Module, PAGE_BITS,
    PAGE_HEAD, PART_BITS, Page, Rule, SEGMENT_BLOCKS, SEGMENT_WORDS, Space, SpaceKey,
};

/// Steps of the search in a part of a page, which has at most as many rows as bytes of code, and the one before them.
const PART_STEPS: u32 = PART_BITS + 1;

/// A block of words.
type Block = [u16; BLOCK_WORDS as usize];

/// Words of all tables.
#[btf_map]
static UNWIND_ROWS: ArrayOfMaps<Array<Block, { SEGMENT_BLOCKS as usize }>, { MAX_SEGMENTS as usize }> =
    ArrayOfMaps::new();

/// Pages of all tables.
#[btf_map]
static UNWIND_PAGES: Array<Page, { MAX_PAGES as usize }> = Array::new();

/// Tables.
#[btf_map]
static UNWIND_MODULES: Array<Module, { MAX_MODULES as usize }> = Array::new();

/// Rules of all tables.
#[btf_map]
pub(crate) static UNWIND_RULES: Array<Rule, { MAX_RULES as usize }> = Array::new();

/// Mappings of all processes.
#[btf_map]
pub(crate) static UNWIND_MAPPINGS: Array<Mapping, { MAX_MAPPINGS as usize }> = Array::new();

/// Which of them are whose.
#[btf_map]
static UNWIND_SPACES: HashMap<SpaceKey, Space, 8192> = HashMap::new();

/// Changes before and after anything in these maps does, so that what was remembered of them is known to be old.
#[btf_map]
pub(crate) static UNWIND_GENERATION: Array<u32, 1> = Array::new();

/// The number of the rule at an address of a module's file.
#[inline(always)]
pub(crate) fn find(module: u32, address: u64) -> Option<u32> {
    let module = UNWIND_MODULES.get(module)?;
    let at = address.wrapping_sub(module.base);
    if at >> PAGE_BITS >= u64::from(module.pages) {
        return None;
    }
    let page = UNWIND_PAGES.get(module.first_page + (at >> PAGE_BITS) as u32)?;
    if page.rules == 0 {
        return Some(page.first);
    }
    let segment = UNWIND_ROWS.get(page.first / SEGMENT_WORDS)?;
    let part = page.first + ((at >> PART_BITS) as u32 & ((1 << (PAGE_BITS - PART_BITS)) - 1));
    let (from, to) = (word(segment, part)?, word(segment, part + 1)?);
    let rules = page.first + PAGE_HEAD;
    let low = at as u32 & ((1 << PART_BITS) - 1);
    // The row before those of the part is in force where it begins.
    let mut first = (rules + page.rules + from).wrapping_sub(1);
    let mut count = to.wrapping_sub(from).wrapping_add(1);
    let mut step = 0;
    while step < PART_STEPS && count > 1 {
        let half = count / 2;
        let middle = word(segment, first.wrapping_add(half))? & ((1 << PART_BITS) - 1);
        let below = low.wrapping_sub(middle) as i32 >> 31;
        (first, count) = halve(first, count, half, below as u32);
        step += 1;
    }
    word(segment, rules + (word(segment, first)? >> PART_BITS))
}

/// Goes on in the lower half where `below` is all ones, else in the upper. Without a branch: the verifier would follow both,
/// at each step of the search.
#[inline(always)]
pub(crate) fn halve(first: u32, count: u32, half: u32, below: u32) -> (u32, u32) {
    (first.wrapping_add(half & !below), half + (count & 1 & !below))
}

#[inline(always)]
fn word(segment: &Array<Block, { SEGMENT_BLOCKS as usize }>, number: u32) -> Option<u32> {
    let block = segment.get((number / BLOCK_WORDS) & (SEGMENT_BLOCKS - 1))?;
    // SAFETY: masked to the block's length, in a way that the compiler cannot take away from the verifier.
    unsafe {
        let at = core::ptr::read_volatile(&raw const number) as usize & (BLOCK_WORDS as usize - 1);
        Some(u32::from(*block.as_ptr().add(at)))
    }
}

/// Mappings of a process, or those of another process of its slot.
#[inline(always)]
pub(crate) fn space(slot: u32, pid: u32) -> Space {
    let own = SpaceKey { slot, pid };
    let shared = SpaceKey { slot, pid: 0 };
    // SAFETY: the agent replaces values as a whole.
    unsafe { UNWIND_SPACES.get(own).or_else(|| UNWIND_SPACES.get(shared)) }
        .copied()
        .unwrap_or_default()
}
