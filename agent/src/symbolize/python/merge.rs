//! One stack of native and interpreted frames.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::Frame;

/// The interpreter's loop.
pub(super) const LOOP: &str = "_PyEval_EvalFrameDefault";

/// Runs of named frames, the innermost first: each is what a native frame of the interpreter's loop stands for.
#[derive(Debug, Default)]
pub(in super::super) struct Runs {
    pub(super) runs: VecDeque<Vec<Frame>>,
    /// Further out than the runs there are frames that nobody read.
    pub(super) cut: bool,
}

/// A merged stack.
#[derive(Debug, Default)]
pub(in super::super) struct Merged {
    /// Innermost first, each with the number of the native address that it is at.
    pub(in super::super) frames: Vec<(usize, Frame)>,
    /// Ends before the thread's entry.
    pub(in super::super) cut: bool,
}

impl Runs {
    /// Whether it matters where in the loop a thread was interrupted.
    pub(in super::super) fn any(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Puts the runs in their places. `native` has what each address stands for, innermost first, and `truncated` says that it
    /// does not reach the thread's entry. `entering` says that the innermost frame is the loop's, in its first instructions:
    /// until 3.12 the list of frames begins for a moment with what the C stack had there before.
    pub(in super::super) fn merge(
        mut self,
        native: Vec<Vec<Frame>>,
        truncated: bool,
        entering: bool,
    ) -> Merged {
        let mut skip = 0;
        if !truncated && !self.cut {
            let loops = native.iter().filter(|here| is_loop(here)).count();
            if entering && self.runs.len() == loops {
                self.runs.pop_front();
            }
            // One that begins or ends has no frames in the list; the others' places are counted from the outermost one.
            skip = loops.saturating_sub(self.runs.len());
        }
        let listed: HashSet<_> = self.runs.iter().flatten().filter_map(place).collect();
        let mut merged = Merged::default();
        let last = native.len().saturating_sub(1);
        for (index, here) in native.into_iter().enumerate() {
            if is_loop(&here) && skip == 0 {
                let run = self.runs.pop_front();
                if self.cut && self.runs.is_empty() {
                    let run = run.filter(|run| !run.is_empty()).unwrap_or(here);
                    merged.frames.extend(run.into_iter().map(|frame| (index, frame)));
                    merged.cut = true;
                    return merged;
                }
                // Nameless frames say less than native ones: the process was gone before they were read.
                let run = run.filter(|run| run.iter().any(|frame| frame.function.is_some()));
                let run = run.unwrap_or(here).into_iter();
                merged.frames.extend(run.map(|frame| (index, frame)));
                continue;
            }
            skip -= usize::from(is_loop(&here));
            // With `-X perf`, a piece of code that bears the function's name, too, called the loop.
            if !matches!(&here[..], [only] if place(only).is_some_and(|place| listed.contains(&place))) {
                merged.frames.extend(here.into_iter().map(|frame| (index, frame)));
            }
        }
        // The native walk broke off below them, or the loop has no name where it went on: their order is known all the same.
        merged.cut = self.cut;
        let rest = self.runs.into_iter().flatten();
        merged.frames.extend(rest.map(|frame| (last, frame)));
        merged
    }
}

/// What tells a function of Python.
fn place(frame: &Frame) -> Option<(Arc<str>, Arc<str>)> {
    Some((frame.function.clone()?, frame.file.clone()?))
}

/// Whether an address is in the interpreter's loop.
pub(in super::super) fn is_loop(here: &[Frame]) -> bool {
    here.iter().any(|frame| frame.function.as_deref() == Some(LOOP))
}
