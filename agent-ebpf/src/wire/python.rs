//! Frames of CPython: what the kernel side must know of an interpreter to walk them, and what it finds.

/// Frames of a sample at most.
pub const PYTHON_FRAMES: usize = 127;
/// Words of a frame: the address of its code object, then [`PYTHON_ENTRY`] and the instruction.
pub const PYTHON_WORDS: usize = 2;
/// Set in a frame's second word: it was called by the interpreter's C code, so that a run of frames that share one native
/// frame ends here. The low 32 bits are the instruction's number in the code, counted in units of two bytes.
pub const PYTHON_ENTRY: u64 = 1 << 32;
/// Set in a sample's `python_minor`: the list of frames was read to its end.
pub const PYTHON_WHOLE: u8 = 1 << 7;
/// Set in a sample's `python_minor`: the list began with a frame without code, so that the innermost native frame of the
/// interpreter's loop has none: its function has just returned.
pub const PYTHON_RETURNED: u8 = 1 << 6;
/// Interpreters that are known at once.
pub const PYTHON_PROCESSES: u32 = 1024;
/// Bytes of a frame in which everything is that is read of it.
pub const PYTHON_FRAME_BYTES: usize = 72;

/// How the interpreter says which frames C code called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum PythonEntry {
    /// The byte is 1 in the frame itself (3.11).
    Marked = 0,
    /// A frame without code, in which the byte is 3, stands between it and its caller (since 3.12).
    Between = 1,
}

/// An interpreter: where it is, and where it has what, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PythonProcess {
    /// Address of the pointer to the first `PyInterpreterState`.
    pub head: u64,
    /// `PyInterpreterState.next`.
    pub interpreter_next: u16,
    /// `PyInterpreterState.threads.head`.
    pub interpreter_threads: u16,
    /// `PyThreadState.prev`.
    pub thread_previous: u16,
    /// `PyThreadState.interp`.
    pub thread_interpreter: u16,
    /// `PyThreadState.next`.
    pub thread_next: u16,
    /// `PyThreadState.thread_id`.
    pub thread_id: u16,
    /// `PyThreadState.cframe`, or `current_frame` where [`Self::indirect`] is 0.
    pub thread_frame: u16,
    /// Whether the frame is behind one more pointer.
    pub indirect: u16,
    /// `_PyCFrame.current_frame`.
    pub cframe_frame: u16,
    /// `_PyInterpreterFrame.f_code` or `f_executable`.
    pub frame_code: u16,
    /// `_PyInterpreterFrame.previous`.
    pub frame_previous: u16,
    /// `_PyInterpreterFrame.prev_instr` or `instr_ptr`.
    pub frame_instruction: u16,
    /// The byte by which [`Self::entry`] goes.
    pub frame_entry: u16,
    /// `PythonEntry`.
    pub entry: u16,
    /// `PyCodeObject.co_code_adaptive`.
    pub code_instructions: u16,
    /// Minor version.
    pub minor: u16,
}
const _: () = assert!(size_of::<PythonProcess>() == 40);

/// Where the state of a thread was found.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PythonThread {
    /// `PyThreadState.thread_id`: what tells threads of a process apart.
    pub id: u64,
    /// Address of the `PyThreadState`; odd where the thread had none: which state was the newest, and when that was.
    pub state: u64,
}
