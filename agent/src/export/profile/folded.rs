//! Folded stacks: `root;...;leaf value` lines, what flame graph tools read.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Profile, frame_name};
use crate::aggregate::{Frame, Stack};

/// One line a distinct stack, outermost frame first, sorted. Kernel frames end in `_[k]`, inlined ones in `_[i]`.
#[must_use]
pub fn folded(profile: &Profile) -> String {
    let mut lines: BTreeMap<String, i64> = BTreeMap::new();
    for sample in profile.samples.iter().filter(|sample| sample.value > 0) {
        let sum = lines.entry(line(&sample.stack)).or_default();
        *sum = sum.saturating_add(sample.value);
    }
    lines.into_iter().fold(String::new(), |mut out, (stack, value)| {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{stack} {value}");
        out
    })
}

fn line(stack: &Stack) -> String {
    let mut names: Vec<_> = stack.frames.iter().rev().map(|frame| name(frame)).collect();
    if names.is_empty() {
        names.push("[unknown]".into());
    }
    names.join(";")
}

/// A name that cannot be taken for two frames, two lines or a value.
fn name(frame: &Frame) -> String {
    let mut name: String = frame_name(frame)
        .chars()
        .map(|c| match c {
            ';' => ':',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect();
    if name
        .rsplit_once(' ')
        .is_some_and(|(_, last)| last.parse::<f64>().is_ok())
    {
        name = name.replace(' ', "_");
    }
    if frame.kernel {
        name.push_str("_[k]");
    } else if frame.inlined {
        name.push_str("_[i]");
    }
    name
}
