//! Frames of CPython: the interpreter keeps a list of them for each thread, which is read as it stands.
//!
//! The thread is found by its thread pointer, which is what `pthread_self` gives. Nothing that is read is believed: a wrong
//! pointer ends the walk, and the agent looks at each code object before it takes it for one.

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    helpers::generated::{bpf_loop, bpf_probe_read_user},
    macros::btf_map,
};
use core::ffi::c_void;

use super::task::{current, field, now, offset};
use crate::{
    offsets::{MARK_FLAGS, MISSING},
    wire::python::{
        PYTHON_ENTRY, PYTHON_FRAME_BYTES, PYTHON_FRAMES, PYTHON_PROCESSES, PYTHON_RETURNED, PYTHON_WHOLE,
        PythonEntry, PythonProcess, PythonThread,
    },
};

/// Threads and interpreters that are looked at for the one that runs.
const MAX_THREADS: u32 = 1024;
/// Threads whose state is remembered; a power of two.
const KNOWN: u32 = 4096;
/// Words of the copy of a frame; a power of two.
const COPY: usize = 16;
const _: () = assert!(PYTHON_FRAME_BYTES <= COPY * 8);

/// Interpreters by slot: what was forked has everything where its parent has it.
#[btf_map]
static PYTHON: HashMap<u32, PythonProcess, { PYTHON_PROCESSES as usize }, MARK_FLAGS> = HashMap::new();

/// Where the state of a thread was found, by the low bits of its id.
#[btf_map]
static PYTHON_THREADS: Array<PythonThread, { KNOWN as usize }> = Array::new();

/// A walk's working memory.
#[repr(C)]
pub(crate) struct Walk {
    /// The frame, as it is in the process.
    copy: [u64; COPY],
    /// What [`seek`] looks for.
    id: u64,
    interpreter: u64,
    thread: u64,
    /// The next frame.
    frame: u64,
    /// Words before those of the first frame.
    start: u32,
    len: u32,
    /// [`PYTHON_RETURNED`], or 0.
    returned: u32,
}

/// What the callbacks are given.
struct Context {
    walk: *mut Walk,
    process: *const PythonProcess,
    words: *mut u64,
}

/// Room for all words of a sample, a power of two.
pub(crate) const WORDS: usize = 512;

/// A word of the process, 0 where there is none.
#[inline(always)]
fn word(base: u64, offset: u16) -> u64 {
    let mut word = 0u64;
    let address = base.wrapping_add(offset.into());
    // SAFETY: the helper checks the address, and clears the word where it cannot read.
    unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const c_void) };
    word
}

extern "C" fn seek(_index: u64, context: *mut Context) -> i64 {
    // SAFETY: `bpf_loop` hands through what `find` gave it: two map values.
    let (walk, process) = unsafe { (&mut *(*context).walk, &*(*context).process) };
    if walk.thread == 0 {
        walk.interpreter = word(walk.interpreter, process.interpreter_next);
        if walk.interpreter == 0 {
            return 1;
        }
        walk.thread = word(walk.interpreter, process.interpreter_threads);
        return 0;
    }
    if word(walk.thread, process.thread_id) == walk.id {
        return 1;
    }
    walk.thread = word(walk.thread, process.thread_next);
    0
}

/// Whether this is the state of the thread with this id: one that was freed may say so still, but is in no list.
#[inline(always)]
fn is_state(process: &PythonProcess, state: u64, id: u64) -> bool {
    if word(state, process.thread_id) != id {
        return false;
    }
    let previous = word(state, process.thread_previous);
    let listed = if previous == 0 {
        word(
            word(state, process.thread_interpreter),
            process.interpreter_threads,
        )
    } else {
        word(previous, process.thread_next)
    };
    listed == state
}

/// What is remembered of a thread without a state: that of the thread that came last, which a new one changes, and whose it
/// is, which the new one notes only once it runs; and the time in units of 2^27 ns (0.13 s), for what those do not tell.
/// Odd, which no address is.
#[inline(always)]
fn absent(process: &PythonProcess) -> u64 {
    let newest = word(word(process.head, 0), process.interpreter_threads);
    let id = word(newest, process.thread_id);
    now() >> 27 << 48 | (newest ^ id) & 0xffff_ffff_fffe | 1
}

/// The state of the running thread; 0 where it has none.
#[inline(always)]
fn find(context: &mut Context, tid: u32) -> u64 {
    // SAFETY: map values.
    let (walk, process) = unsafe { (&mut *context.walk, &*context.process) };
    let Some(known) = PYTHON_THREADS.get_ptr_mut(tid & (KNOWN - 1)) else {
        return 0;
    };
    // SAFETY: a map value. Another CPU may write the half of it meanwhile: what it says is looked at.
    let (id, state) = unsafe { ((*known).id, (*known).state) };
    if id == walk.id {
        // Threads of C libraries are many, and each search is as long as there are threads of Python.
        if state & 1 == 1 && state == absent(process) {
            return 0;
        }
        if is_state(process, state, id) {
            return state;
        }
    }
    walk.thread = 0;
    walk.interpreter = process.head.wrapping_sub(process.interpreter_next.into());
    // SAFETY: the callback has the signature that the helper wants, and the context outlives the call.
    unsafe {
        bpf_loop(
            MAX_THREADS,
            seek as *mut c_void,
            core::ptr::from_mut(context).cast(),
            0,
        )
    };
    // SAFETY: map values.
    let (walk, process) = unsafe { (&*context.walk, &*context.process) };
    let mut state = walk.thread;
    if word(state, process.thread_id) != walk.id {
        state = 0;
    }
    // SAFETY: as above.
    unsafe {
        (*known).id = walk.id;
        (*known).state = if state == 0 { absent(process) } else { state };
    }
    state
}

impl Walk {
    /// A word of the copied frame.
    #[inline(always)]
    fn at(&self, offset: u16) -> u64 {
        let at = (usize::from(offset) / 8) & (COPY - 1);
        // SAFETY: masked to the copy's length.
        unsafe { *(&raw const self.copy).cast::<u64>().add(at) }
    }
}

/// A place among the words of the sample.
#[inline(always)]
fn place(words: *mut u64, at: u32) -> *mut u64 {
    // SAFETY: masked to the room that there is, in a way that the compiler cannot take away from the verifier.
    unsafe { words.add(core::ptr::read_volatile(&raw const at) as usize & (WORDS - 1)) }
}

extern "C" fn step(_index: u64, context: *mut Context) -> i64 {
    // SAFETY: `bpf_loop` hands through what `walk` gave it: map values.
    let (walk, process, words) = unsafe { (&mut *(*context).walk, &*(*context).process, (*context).words) };
    // SAFETY: the helper checks the address; the copy is longer than a frame.
    let failed = unsafe {
        bpf_probe_read_user(
            (&raw mut walk.copy).cast(),
            PYTHON_FRAME_BYTES as u32,
            walk.frame as *const c_void,
        )
    };
    if failed != 0 {
        return 1;
    }
    let byte = walk.at(process.frame_entry) >> (u32::from(process.frame_entry & 7) * 8) & 0xff;
    let between = process.entry == PythonEntry::Between as u16;
    walk.frame = walk.at(process.frame_previous);
    let next = walk.start + walk.len * 2;
    if between && byte == 3 {
        if walk.len > 0 {
            // SAFETY: a word of the sample.
            unsafe { *place(words, next - 1) |= PYTHON_ENTRY };
        } else {
            walk.returned = PYTHON_RETURNED.into();
        }
    } else {
        let code = walk.at(process.frame_code);
        let first = code.wrapping_add(process.code_instructions.into());
        let instruction = walk.at(process.frame_instruction).wrapping_sub(first) >> 1 & 0xffff_ffff;
        let entry = u64::from(!between && byte == 1) * PYTHON_ENTRY;
        // SAFETY: words of the sample.
        unsafe {
            *place(words, next) = code;
            *place(words, next + 1) = instruction | entry;
        }
        walk.len += 1;
    }
    i64::from(walk.frame == 0 || walk.len >= PYTHON_FRAMES as u32)
}

/// Writes the frames of the running thread behind the first `start` of the sample's words; returns how many there are, and
/// the minor version of the interpreter with [`PYTHON_WHOLE`] and [`PYTHON_RETURNED`].
#[inline(always)]
pub(crate) fn walk(walk: *mut Walk, words: *mut u64, start: u32, slot: u32, tid: u32) -> (u32, u16) {
    // The verifier takes all of it away where the kernel does not say where thread pointers are.
    if offset!(task_fsbase) == MISSING {
        return (0, 0);
    }
    let Some(process) = PYTHON.get_ptr(&slot) else {
        return (0, 0);
    };
    let mut context = Context {
        walk,
        process: process.cast(),
        words,
    };
    // SAFETY: a map value of this program's level.
    unsafe {
        (*walk).id = current().load(field!(task_fsbase));
        (*walk).start = start;
        (*walk).len = 0;
        (*walk).returned = 0;
    }
    let state = find(&mut context, tid);
    if state == 0 {
        return (0, 0);
    }
    // SAFETY: map values.
    unsafe {
        let process = &*process;
        let mut frame = word(state, process.thread_frame);
        if process.indirect != 0 {
            frame = word(frame, process.cframe_frame);
        }
        (*walk).frame = frame;
    }
    // Frames without code are no frames of the sample.
    // SAFETY: the callback has the signature that the helper wants, and the context outlives the call.
    unsafe {
        bpf_loop(
            2 * PYTHON_FRAMES as u32,
            step as *mut c_void,
            (&raw mut context).cast(),
            0,
        )
    };
    // SAFETY: map values.
    unsafe {
        let whole = if (*walk).frame == 0 { PYTHON_WHOLE } else { 0 };
        (
            (*walk).len.min(PYTHON_FRAMES as u32),
            (*process).minor | u16::from(whole) | (*walk).returned as u16,
        )
    }
}
