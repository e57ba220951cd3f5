//! The maps of unwind tables, and the search in them.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap},
    macros::btf_map,
};

use crate::wire::unwind::{
    BLOCK_ROWS, MAX_MAPPINGS, MAX_MODULES, MAX_PAGES, MAX_RULES, MAX_SEGMENTS, Mapping, Module, PAGE_BITS,
    Page, Rule, SEGMENT_BLOCKS, Space, SpaceKey,
};

/// Steps of the search in a page, which has at most as many rows as bytes of code.
const PAGE_STEPS: u32 = PAGE_BITS + 1;

/// A block of rows.
type Block = [u32; BLOCK_ROWS as usize];

/// Rows of all tables.
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
    let low = at as u32 & ((1 << PAGE_BITS) - 1);
    let segment = UNWIND_ROWS.get(page.first / (BLOCK_ROWS * SEGMENT_BLOCKS))?;
    let (mut first, mut count) = (page.first, page.rows);
    let mut step = 0;
    while step < PAGE_STEPS && count > 1 {
        let half = count / 2;
        let middle = row(segment, first + half)? & ((1 << PAGE_BITS) - 1);
        let below = low.wrapping_sub(middle) as i32 >> 31;
        (first, count) = halve(first, count, half, below as u32);
        step += 1;
    }
    Some(row(segment, first)? >> PAGE_BITS)
}

/// Goes on in the lower half where `below` is all ones, else in the upper. Without a branch: the verifier would follow both,
/// at each step of the search.
#[inline(always)]
pub(crate) fn halve(first: u32, count: u32, half: u32, below: u32) -> (u32, u32) {
    (first.wrapping_add(half & !below), half + (count & 1 & !below))
}

#[inline(always)]
fn row(segment: &Array<Block, { SEGMENT_BLOCKS as usize }>, number: u32) -> Option<u32> {
    let block = segment.get((number / BLOCK_ROWS) & (SEGMENT_BLOCKS - 1))?;
    // SAFETY: masked to the block's length, in a way that the compiler cannot take away from the verifier.
    unsafe {
        let at = core::ptr::read_volatile(&raw const number) as usize & (BLOCK_ROWS as usize - 1);
        Some(*block.as_ptr().add(at))
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
