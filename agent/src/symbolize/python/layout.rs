//! Where CPython has what, by minor version: printed by `offsetof` from the headers of 3.11.2, 3.11.7, 3.12.1 and 3.13.0.

use agent_ebpf::wire::python::{PythonEntry, PythonProcess};

/// The oldest minor version of Python 3 whose frames are known.
pub(super) const OLDEST: u16 = 11;

/// Offsets of one minor version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// `_PyRuntimeState.interpreters.head`.
    pub(super) head: u64,
    /// What the kernel side is told; without an address.
    pub(super) process: PythonProcess,
    /// `PyCodeObject.co_filename`.
    pub(super) code_file: usize,
    /// `PyCodeObject.co_qualname`.
    pub(super) code_name: usize,
    /// `PyCodeObject.co_firstlineno`.
    pub(super) code_line: usize,
    /// `PyCodeObject.co_linetable`.
    pub(super) code_lines: usize,
    /// Size of a `PyASCIIObject`, which its characters follow.
    pub(super) ascii: u64,
    /// Size of a `PyCompactUnicodeObject`, likewise.
    pub(super) compact: u64,
}

const V11: Layout = Layout {
    head: 40,
    process: PythonProcess {
        head: 0,
        interpreter_next: 0,
        interpreter_threads: 16,
        thread_previous: 0,
        thread_interpreter: 16,
        thread_next: 8,
        thread_id: 152,
        thread_frame: 56,
        indirect: 1,
        cframe_frame: 8,
        frame_code: 32,
        frame_previous: 48,
        frame_instruction: 56,
        frame_entry: 68,
        entry: PythonEntry::Marked as u16,
        code_instructions: 184,
        minor: 11,
    },
    code_file: 112,
    code_name: 128,
    code_line: 72,
    code_lines: 136,
    ascii: 48,
    compact: 72,
};

const V12: Layout = Layout {
    head: 40,
    process: PythonProcess {
        interpreter_threads: 72,
        thread_id: 136,
        cframe_frame: 0,
        frame_code: 0,
        frame_previous: 8,
        frame_entry: 70,
        entry: PythonEntry::Between as u16,
        code_instructions: 192,
        minor: 12,
        ..V11.process
    },
    code_line: 68,
    ascii: 40,
    compact: 56,
    ..V11
};

const V13: Layout = Layout {
    head: 632,
    process: PythonProcess {
        interpreter_next: 7264,
        interpreter_threads: 7344,
        thread_id: 152,
        thread_frame: 72,
        indirect: 0,
        code_instructions: 200,
        minor: 13,
        ..V12.process
    },
    ..V12
};

/// The layout of a minor version.
pub(super) fn of(minor: u16) -> Option<&'static Layout> {
    match minor {
        11 => Some(&V11),
        12 => Some(&V12),
        13 => Some(&V13),
        _ => None,
    }
}

/// Bytes of `_Py_DebugOffsets` that are looked at: the beginning of `_PyRuntime` since 3.13.
pub(super) const TOLD: usize = 352;

/// Whether an interpreter that tells its own layout (since 3.13) has the known one, and is none without a global lock,
/// which has others.
pub(super) fn agrees(layout: &Layout, told: &[u8; TOLD]) -> bool {
    let number = |at: usize| {
        let bytes = told.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes)
    };
    let process = &layout.process;
    let fields = [
        (16, 0),
        (40, layout.head),
        (64, process.interpreter_next.into()),
        (72, process.interpreter_threads.into()),
        (160, process.thread_previous.into()),
        (168, process.thread_next.into()),
        (176, process.thread_interpreter.into()),
        (184, process.thread_frame.into()),
        (192, process.thread_id.into()),
        (232, process.frame_previous.into()),
        (240, process.frame_code.into()),
        (248, process.frame_instruction.into()),
        (264, process.frame_entry.into()),
        (280, layout.code_file as u64),
        (296, layout.code_name as u64),
        (304, layout.code_lines as u64),
        (312, layout.code_line as u64),
        (344, process.code_instructions.into()),
    ];
    told.starts_with(b"xdebugpy") && fields.iter().all(|(at, value)| number(*at) == Some(*value))
}
