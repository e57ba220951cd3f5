//! What identifies the modules of a stack, captured with it: for processes that may be gone before anybody reads their memory
//! map.
//!
//! Mappings are in a maple tree (Linux 6.1, `include/linux/maple_tree.h`), which is read here without its lock, in the process
//! itself. `bpf_find_vma` would take the lock, but where interrupts are off, which is the case in most samples, it can
//! give it back only once. What is read while another thread changes the tree may be no mapping any more: it counts only if it
//! says that it is of this address space and has the address, and the agent believes it only of files that it finds.

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};
use core::{arch::asm, ffi::c_void};

use super::{
    count::lost,
    task::{Kernel, current, field, offset},
    unwind::{COPY, Room},
};
use crate::{
    offsets::MISSING,
    wire::{
        CapturedModule, FRAME_INTERRUPTED, Lost, MODULE_EXECUTABLE, MODULE_VDSO, Program, SAMPLE_MODULES,
        USER_FRAMES,
    },
};

/// Words of a record that a module takes.
pub(crate) const MODULE_WORDS: u32 = (size_of::<CapturedModule>() / 8) as u32;

/// Levels of the tree at most: the 65,530 mappings that a process may have need six.
const LEVELS: u32 = 8;
/// Words of a node after its first, which leads to its parent.
const NODE: usize = 31;
/// Bounds that a node has at most.
const PIVOTS: usize = 15;
/// Kinds of nodes: leaves, and inner nodes that know the gaps below them. A tree of mappings has no others.
const LEAF: u64 = 1;
const INNER: u64 = 3;

const VM_EXEC: u64 = 4;

/// All ones where a number is below another one, else none, both being less than half of all numbers. No branch, of which the
/// verifier would follow both ways, and the compiler is not asked for its opinion.
#[inline(always)]
fn below(one: u64, other: u64) -> u64 {
    let mut difference = one.wrapping_sub(other);
    // SAFETY: changes one register.
    unsafe { asm!("{} s>>= 63", inout(reg) difference, options(pure, nomem, nostack, preserves_flags)) };
    difference
}

/// Modules being captured, in the room of a walk that is over.
#[repr(C)]
struct Capture {
    modules: [CapturedModule; SAMPLE_MODULES],
    node: [u64; NODE],
    mm: Kernel,
    root: u64,
    executable: u64,
    vdso: u64,
    count: u32,
    /// Something could not be read.
    failed: u32,
}
const _: () = assert!(size_of::<Capture>() <= COPY);

impl Capture {
    /// Whether a module has this address.
    #[inline(always)]
    fn has(&self, address: u64) -> bool {
        let mut has = 0;
        let mut each = 0;
        while each < SAMPLE_MODULES {
            let module = &self.modules[each];
            let from = address.wrapping_sub(module.start);
            has |= below(from, module.end.wrapping_sub(module.start)) & !below(from, 0);
            each += 1;
        }
        has != 0
    }

    /// The entry of the tree at this address: a mapping, or null.
    #[inline(always)]
    fn entry(&mut self, address: u64) -> Option<u64> {
        let mut entry = self.root;
        let mut level = 0;
        while level < LEVELS {
            // Which kind of node it is (`mte_node_type`).
            let kind = entry >> 3 & 15;
            let (pivot, slot, inner) = match kind {
                LEAF => (offset!(range_pivot), offset!(range_slot), false),
                INNER => (offset!(inner_pivot), offset!(inner_slot), true),
                _ => return None,
            };
            let node = Kernel((entry & !0xff) as *const u8).0.wrapping_add(8);
            // SAFETY: the helper checks the address; the destination has that size.
            let failed = unsafe {
                bpf_probe_read_kernel(
                    (&raw mut self.node).cast(),
                    (NODE * 8) as u32,
                    node.cast::<c_void>(),
                )
            };
            if failed != 0 {
                return None;
            }
            let at = self.slot(address, pivot, slot);
            // SAFETY: the index is masked to less than the array's length and one, and the array is not the last field.
            entry = unsafe {
                let at = core::ptr::read_volatile(&raw const at) as usize & NODE;
                *(&raw const self.node).cast::<u64>().add(at)
            };
            if !inner {
                return Some(entry);
            }
            level += 1;
        }
        None
    }

    /// Which word of the node has what is at the address: the slot of the first bound that is not below it. Without branches, of
    /// which the verifier would follow both.
    #[inline(always)]
    fn slot(&self, address: u64, pivot: u32, slot: u32) -> u64 {
        let (first, slots) = (
            u64::from(pivot / 8).wrapping_sub(1),
            u64::from(slot / 8).wrapping_sub(1),
        );
        let pivots = slots.wrapping_sub(first);
        let (mut going, mut index) = (u64::MAX, 0u64);
        let mut each = 0;
        while each < PIVOTS {
            let at = first.wrapping_add(each as u64);
            // SAFETY: as in `entry`.
            let bound = unsafe {
                let at = core::ptr::read_volatile(&raw const at) as usize & NODE;
                *(&raw const self.node).cast::<u64>().add(at)
            };
            // The highest bound is the largest number, which as half of it is not negative.
            going &= below(bound >> 1, address >> 1);
            // One more where all ones are. (Masked with a constant, Linux 6.18 follows both cases.)
            index = index.wrapping_sub(going);
            each += 1;
        }
        // Behind the last bound are slots, some of which are empty.
        slots.wrapping_add(index.min(pivots))
    }

    /// Adds the module at an address; `None` where something could not be read.
    #[inline(always)]
    fn add(&mut self, address: u64) -> Option<()> {
        let entry = self.entry(address)?;
        if entry == 0 {
            // Nothing is mapped: the stack went astray.
            return Some(());
        }
        let vma = Kernel(entry as *const u8);
        let start: u64 = vma.read(offset!(vma_start))?;
        let end: u64 = vma.read(offset!(vma_end))?;
        let mm: u64 = vma.read(offset!(vma_mm))?;
        if mm != self.mm.0 as u64 || address < start || address >= end {
            return None;
        }
        let flags: u64 = vma.read(offset!(vma_flags))?;
        if flags & VM_EXEC == 0 {
            return Some(());
        }
        let page_offset: u64 = vma.read(offset!(vma_pgoff))?;
        let file: u64 = vma.read(offset!(vma_file))?;
        let mut module = CapturedModule {
            start,
            end,
            page_offset,
            inode: 0,
            size: 0,
            mtime: 0,
            mtime_nsec: 0,
            device: 0,
            generation: 0,
            flags: if start == self.vdso { MODULE_VDSO } else { 0 },
        };
        if file != 0 {
            let inode = Kernel(file as *const u8).deref(offset!(file_inode))?;
            module.inode = inode.read(offset!(inode_number))?;
            module.size = inode.read(offset!(inode_size))?;
            module.mtime = inode.read(offset!(inode_mtime))?;
            module.mtime_nsec = inode.read(offset!(inode_mtime_nsec))?;
            module.generation = inode.read(offset!(inode_generation))?;
            module.device = inode.deref(offset!(inode_sb))?.read(offset!(sb_dev))?;
            module.flags = if file == self.executable {
                MODULE_EXECUTABLE
            } else {
                0
            };
        }
        let at = self.count;
        self.count = at.wrapping_add(1);
        // SAFETY: the index is masked to the array's length.
        unsafe {
            let at = core::ptr::read_volatile(&raw const at) as usize & (SAMPLE_MODULES - 1);
            *(&raw mut self.modules).cast::<CapturedModule>().add(at) = module;
        }
        Some(())
    }
}

/// The modules of one frame.
extern "C" fn frame(index: u64, room: *mut *mut Room) -> i64 {
    // SAFETY: `bpf_loop` hands through what `capture` below gave it; nobody else uses the copy of the stack by now.
    let (room, capture) = unsafe {
        let room = *room;
        (room, &mut *(&raw mut (*room).copy).cast::<Capture>())
    };
    // SAFETY: the index is masked to less than the array's length.
    let address = unsafe {
        let at = core::ptr::read_volatile(&raw const index) as usize & USER_FRAMES;
        *(&raw const (*room).frames).cast::<u64>().add(at)
    };
    // A call may be the last instruction of its module.
    let address = (address & !FRAME_INTERRUPTED).wrapping_sub(u64::from(index != 0));
    // The kernel's half: `[vsyscall]`.
    if address >> 56 != 0 || capture.has(address) {
        return 0;
    }
    if capture.add(address).is_none() {
        capture.failed += 1;
    }
    i64::from(capture.count >= SAMPLE_MODULES as u32)
}

/// Captures the modules of the stack that was walked, and puts them behind its frames: how many.
#[inline(never)]
pub(crate) fn capture(room: *mut Room, user_len: u32, kernel_len: u32, program: Program) -> u32 {
    let missing = [
        offset!(mm_root),
        offset!(range_slot),
        offset!(inner_slot),
        offset!(vma_mm),
        offset!(vma_flags),
        offset!(vma_file),
        offset!(inode_mtime),
        offset!(inode_mtime_nsec),
        offset!(inode_generation),
    ];
    let mut each = 0;
    while each < missing.len() {
        if missing[each] == MISSING {
            return 0;
        }
        each += 1;
    }
    let mm = current().follow(field!(task_mm));
    if mm.0.is_null() {
        return 0;
    }
    // SAFETY: a map value of this program's level.
    let capture = unsafe { &mut *(&raw mut (*room).copy).cast::<Capture>() };
    let mut each = 0;
    while each < SAMPLE_MODULES {
        let module = &raw mut capture.modules[each];
        // SAFETY: volatile, because the compiler's memset is no BPF function.
        unsafe {
            core::ptr::write_volatile(&raw mut (*module).start, 0);
            core::ptr::write_volatile(&raw mut (*module).end, 0);
        }
        each += 1;
    }
    (capture.count, capture.failed, capture.mm) = (0, 0, mm);
    capture.root = mm.read(offset!(mm_root)).unwrap_or(0);
    capture.executable = mm.read(offset!(mm_exe_file)).unwrap_or(0);
    capture.vdso = if offset!(mm_vdso) == MISSING {
        0
    } else {
        mm.read(offset!(mm_vdso)).unwrap_or(0)
    };
    // How the root is marked where it is a node (`xa_is_node`): always, but for an address space of one mapping.
    if capture.root & 3 != 2 || capture.root <= 4096 {
        return 0;
    }
    let mut context = room;
    // SAFETY: the callback has the signature that the helper wants, and `context` outlives the call.
    unsafe {
        bpf_loop(
            user_len & USER_FRAMES as u32,
            frame as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
    if capture.failed != 0 {
        lost(program, Lost::Modules);
    }
    let count = capture.count.min(SAMPLE_MODULES as u32);
    let at = (user_len & USER_FRAMES as u32) + (kernel_len & USER_FRAMES as u32);
    // SAFETY: behind 127 and 64 frames there is room for eight modules; the verifier sees that it is inside of the room.
    let failed = unsafe {
        let at = core::ptr::read_volatile(&raw const at) as usize & 0xff;
        let to = (&raw mut (*room).frames).cast::<u64>().add(at);
        bpf_probe_read_kernel(
            to.cast(),
            count * MODULE_WORDS * 8,
            (&raw const capture.modules).cast(),
        )
    };
    if failed == 0 { count } else { 0 }
}
