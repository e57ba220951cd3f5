//! Threads, slots and tuning.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap, Queue, RingBuf},
    helpers::{bpf_probe_read_kernel_buf, generated::bpf_ringbuf_output},
    macros::btf_map,
};
use core::ffi::c_void;

use super::{
    count::{add, lost},
    task::{Kernel, Regs, constant, field, offset, ran, rq_clock},
};
use crate::offsets::MARK_DIRECT;
use crate::wire::{
    EVENT_CLOSED, EVENT_OPENED, Lost, MAX_SLOTS, Program, SLOT_KERNEL, SLOT_NONE, STATE_NEW, STATE_OFF,
    STATE_ON, STATE_UNSEEN, Slot, SlotEvent, Thread, Tuning,
};

/// Threads by their id, where `pid_max` is small enough; one entry otherwise.
#[btf_map]
static THREADS: Array<Thread, 32768> = Array::new();

/// Threads by their id, where `pid_max` is large; one entry otherwise.
#[btf_map]
static THREADS_HASH: HashMap<u32, Thread, 65536> = HashMap::new();

/// Slots by the low bits of their id.
#[btf_map]
static SLOTS: Array<Slot, { MAX_SLOTS as usize }> = Array::new();

/// Ids of free slots; the agent puts them back with a new generation.
#[btf_map]
static FREE_SLOTS: Queue<u32, { MAX_SLOTS as usize }> = Queue::new();

/// A thread whose every byte is zero, to insert into `THREADS_HASH`.
#[btf_map]
static THREAD_ZERO: Array<Thread, 1> = Array::new();

/// Everything rare: lives of slots, sampled stacks.
#[btf_map]
static EVENTS: RingBuf<u8, { 4 << 20 }> = RingBuf::new();

/// Knobs.
#[btf_map]
static TUNING: Array<Tuning, 1> = Array::new();

/// Process id of the agent: it is counted like any other, but not sampled.
#[unsafe(no_mangle)]
static AGENT_TGID: Global<u32> = Global::new(0);

/// The agent drains the ring by a timer, so nobody is woken.
const NO_WAKEUP: u64 = 1;
/// But for a record that it must see at once.
const FORCE_WAKEUP: u64 = 2;

const PF_KTHREAD: u32 = 0x0020_0000;

/// The knobs.
#[inline(always)]
pub(crate) fn tuning() -> Option<&'static Tuning> {
    TUNING.get(0)
}

/// Whether this process may be sampled.
#[inline(always)]
pub(crate) fn sampled(tgid: u32) -> bool {
    tgid != AGENT_TGID.load()
}

/// Whether `THREADS` is indexed by the thread's id.
#[inline(always)]
fn direct() -> bool {
    constant::<MARK_DIRECT>() != 0
}

/// State of a thread that is known.
#[inline(always)]
pub(crate) fn thread(tid: u32) -> Option<*mut Thread> {
    if direct() {
        THREADS.get_ptr_mut(tid)
    } else {
        THREADS_HASH.get_ptr_mut(tid)
    }
}

/// State of a thread, made where it is missing.
#[inline(always)]
fn thread_or_insert(tid: u32) -> Option<*mut Thread> {
    if direct() {
        return THREADS.get_ptr_mut(tid);
    }
    if let Some(thread) = THREADS_HASH.get_ptr_mut(tid) {
        return Some(thread);
    }
    let zero = THREAD_ZERO.get(0)?;
    let _ = THREADS_HASH.insert(tid, zero, 0);
    THREADS_HASH.get_ptr_mut(tid)
}

/// Forgets a thread.
#[inline(always)]
pub(crate) fn forget(tid: u32, thread: *mut Thread) {
    if !direct() {
        let _ = THREADS_HASH.remove(tid);
        return;
    }
    reset(thread);
}

/// Makes a thread as if never seen.
#[inline(always)]
pub(crate) fn reset(thread: *mut Thread) {
    // SAFETY: a map value; one word at a time, because the compiler's memset is no BPF function.
    unsafe {
        let words = thread.cast::<u64>();
        let mut i = 0;
        while i < size_of::<Thread>() / 8 {
            core::ptr::write_volatile(words.add(i), 0);
            i += 1;
        }
    }
}

/// The slot with this id.
#[inline(always)]
pub(crate) fn slot(id: u32) -> Option<*mut Slot> {
    SLOTS.get_ptr_mut(id & (MAX_SLOTS - 1))
}

/// Whether this id was not given back: a program image has it.
#[inline(always)]
pub(crate) fn in_use(id: u32) -> bool {
    // SAFETY: a map value.
    slot(id).is_some_and(|slot| unsafe { (*slot).id } == id)
}

/// Gives a process a slot of its own; the parent's where none is free.
#[inline(always)]
pub(crate) fn open_slot(task: Kernel, tgid: u32, parent: u32, program: Program) -> u32 {
    let Ok(Some(id)) = FREE_SLOTS.pop() else {
        lost(program, Lost::Slots);
        return if parent == SLOT_NONE { SLOT_KERNEL } else { parent };
    };
    if let Some(slot) = slot(id) {
        // SAFETY: a map value that only this program owns until the id is used.
        unsafe { (*slot).id = id };
    }
    let mut event = SlotEvent {
        kind: EVENT_OPENED,
        slot: id,
        pid: tgid,
        parent,
        comm: [0; 16],
    };
    // SAFETY: the helper checks the address.
    let _ = unsafe {
        bpf_probe_read_kernel_buf(task.0.wrapping_add(offset!(task_comm) as usize), &mut event.comm)
    };
    emit(&event, program);
    id
}

/// Sends a record of fixed size.
#[inline(always)]
pub(crate) fn emit<T: Copy>(record: &T, program: Program) {
    send(
        core::ptr::from_ref(record).cast(),
        size_of::<T>() as u64,
        program,
        false,
    );
}

/// Sends `len` bytes, and wakes the agent where they cannot wait until it looks by itself.
#[inline(always)]
pub(crate) fn send(record: *const c_void, len: u64, program: Program, urgent: bool) {
    // SAFETY: the verifier checks that `record` has `len` readable bytes.
    let sent = unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            record.cast_mut(),
            len,
            if urgent { FORCE_WAKEUP } else { NO_WAKEUP },
        )
    };
    if sent != 0 {
        lost(program, Lost::Ring);
    }
}

/// Takes up a thread that was never seen: one that runs since before the agent.
#[inline(never)]
pub(crate) fn adopt(task: *const u8, on_cpu: bool, program: Program) -> u32 {
    let task = Kernel(task);
    let tid: u32 = task.load(field!(task_pid));
    let tgid: u32 = task.load(field!(task_tgid));
    let Some(thread) = thread_or_insert(tid) else {
        lost(program, Lost::Threads);
        return SLOT_NONE;
    };
    let flags: u32 = task.load(field!(task_flags));
    let id = if flags & PF_KTHREAD != 0 {
        SLOT_KERNEL
    } else {
        match thread_or_insert(tgid) {
            // SAFETY: map values.
            Some(leader) if unsafe { (*leader).slot } > SLOT_KERNEL => unsafe { (*leader).slot },
            Some(leader) => {
                let id = open_slot(task, tgid, SLOT_NONE, program);
                // SAFETY: a map value.
                unsafe { (*leader).slot = id };
                id
            }
            None => SLOT_KERNEL,
        }
    };
    // SAFETY: a map value.
    unsafe {
        (*thread).slot = id;
        (*thread).tgid = tgid;
        (*thread).since = rq_clock(super::task::current());
        (*thread).run_delay = task.load(field!(task_run_delay));
        (*thread).regs = Regs::of(task).address() as u64;
        (*thread).anon_pages = anon_pages(task);
        (*thread).cause = crate::wire::Cause::Other as u8;
        if (*thread).state == STATE_UNSEEN {
            ran_before(id, ran(task, on_cpu, (*thread).since));
            (*thread).state = if on_cpu { STATE_ON } else { STATE_OFF };
        }
    }
    hold(id);
    id
}

/// What a thread has had of a CPU was not this slot's.
#[inline(always)]
pub(crate) fn ran_before(id: u32, ran_ns: u64) {
    if let Some(slot) = slot(id) {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*slot).dead.ran_ns }, ran_ns.wrapping_neg());
    }
}

/// A thread of this slot began.
#[inline(always)]
pub(crate) fn hold(id: u32) {
    if let Some(slot) = slot(id) {
        // SAFETY: a map value.
        add(unsafe { &raw mut (*slot).refs }, 1);
    }
}

/// One thread of the slot less; the last one closes it. Two that end at once may both see none left, so the agent
/// takes the event twice.
#[inline(always)]
pub(crate) fn release(slot: *mut Slot, id: u32, pid: u32, program: Program) {
    if id <= SLOT_KERNEL {
        return;
    }
    // SAFETY: a map value.
    let left = unsafe {
        add(&raw mut (*slot).refs, u64::MAX);
        core::ptr::read_volatile(&raw const (*slot).refs)
    };
    if left == 0 {
        emit(
            &SlotEvent {
                kind: EVENT_CLOSED,
                slot: id,
                pid,
                parent: 0,
                comm: [0; 16],
            },
            program,
        );
    }
}

/// Takes up a new thread at its creation.
#[inline(always)]
pub(crate) fn begin(child: Kernel, slot: u32, program: Program) {
    let tid: u32 = child.load(field!(task_pid));
    let Some(thread) = thread_or_insert(tid) else {
        lost(program, Lost::Threads);
        return;
    };
    reset(thread);
    // SAFETY: a map value.
    unsafe {
        (*thread).slot = slot;
        (*thread).tgid = child.load(field!(task_tgid));
        (*thread).regs = Regs::of(child).address() as u64;
        (*thread).since = rq_clock(super::task::current());
        (*thread).anon_pages = anon_pages(child);
        (*thread).cause = crate::wire::Cause::Runqueue as u8;
        (*thread).state = STATE_NEW;
    }
    hold(slot);
}

/// Anonymous resident pages of a task's address space, as the kernel's own approximate counter has them.
#[inline(always)]
pub(crate) fn anon_pages(task: Kernel) -> i64 {
    rss_pages(task.follow(field!(task_mm)), 1)
}

/// Counter `kind` of `MM_FILEPAGES`, `MM_ANONPAGES`, `MM_SWAPENTS`, `MM_SHMEMPAGES` (linux/mm_types_task.h).
#[inline(always)]
pub(crate) fn rss_pages(mm: Kernel, kind: u32) -> i64 {
    if mm.0.is_null() {
        return 0;
    }
    mm.read::<i64>(offset!(mm_rss).wrapping_add(kind * RSS_STRIDE.load()))
        .unwrap_or(0)
        .max(0)
}

/// Bytes between two resident counters: the size of a per-CPU counter, or of an atomic.
#[unsafe(no_mangle)]
static RSS_STRIDE: Global<u32> = Global::new(8);
