//! One profile of one service in the formats of other tools: pprof, folded stacks, a flame graph.

use std::borrow::Cow;

use super::metrics::peer_name;
use crate::aggregate::{Frame, Service, SharedStack, StackDetail, StackKind, StackValue, WindowProfile};

mod folded;
mod pprof;
mod proto;
mod svg;

pub use folded::folded;
pub use pprof::pprof;
pub use svg::svg;

/// The sampled stacks of one service and one kind over a span of time.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Whose.
    pub service: Service,
    /// What the values are: see [`sample_type`].
    pub kind: StackKind,
    /// Of live allocations: objects, not bytes.
    pub objects: bool,
    /// Unix time of the beginning, in nanoseconds.
    pub start_unix_ns: u64,
    /// Length in nanoseconds.
    pub duration_ns: u64,
    /// Mean value that one sample stood for, in the unit of the kind; 0 when unknown.
    pub period: i64,
    /// A stack may occur more than once.
    pub samples: Vec<Sample>,
}

/// Key and value: the `cause` of a wait and its `stall`, the `peer` of a connection.
pub type Label = (&'static str, Cow<'static, str>);

/// A stack and its value.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Whose value.
    pub stack: SharedStack,
    /// What tells it from others of this stack.
    pub labels: Vec<Label>,
    /// In the unit of the kind, scaled to the exact total.
    pub value: i64,
}

/// Name and unit of a kind's values, as pprof names them.
#[must_use]
pub const fn sample_type(kind: StackKind) -> (&'static str, &'static str) {
    match kind {
        StackKind::Wait => ("wait", "nanoseconds"),
        StackKind::Cpu => ("cpu", "nanoseconds"),
        StackKind::Syscall => ("syscalls", "count"),
        StackKind::Memory => ("growth", "bytes"),
        StackKind::Conn => ("connections", "count"),
        StackKind::Alloc => ("alloc_space", "bytes"),
        StackKind::AllocObjects => ("alloc_objects", "count"),
        StackKind::AllocLive => ("inuse_space", "bytes"),
        StackKind::Fd => ("descriptors", "count"),
    }
}

impl Profile {
    /// Merged windows as the profile of a service.
    #[must_use]
    pub fn new(service: Service, windows: &WindowProfile) -> Self {
        Self {
            service,
            kind: windows.kind,
            objects: false,
            start_unix_ns: windows.start_unix_ns,
            duration_ns: windows.duration_ns,
            // Weights differ from sample to sample: there is no period.
            period: 0,
            samples: samples(&windows.samples),
        }
    }

    /// What pprof files have of these windows: of live allocations objects, too, as Go's heap profiles do.
    #[must_use]
    pub fn all(service: &Service, windows: &WindowProfile) -> Vec<Self> {
        let mut all = vec![Self::new(service.clone(), windows)];
        if windows.kind == StackKind::AllocLive {
            all.push(Self {
                objects: true,
                samples: samples(&windows.objects),
                ..Self::new(service.clone(), windows)
            });
        }
        all
    }

    /// Name and unit of the values.
    const fn sample_type(&self) -> (&'static str, &'static str) {
        if self.objects {
            ("inuse_objects", "count")
        } else {
            sample_type(self.kind)
        }
    }

    /// `namespace/name version`, without what is empty.
    fn title(&self) -> String {
        let mut title = String::new();
        if !self.service.namespace.is_empty() {
            title = format!("{}/", self.service.namespace);
        }
        title.push_str(&self.service.name);
        if !self.service.version.is_empty() {
            title.push(' ');
            title.push_str(&self.service.version);
        }
        title
    }
}

fn samples(values: &[StackValue]) -> Vec<Sample> {
    let sample = |sample: &StackValue| Sample {
        stack: sample.stack.clone(),
        labels: match sample.detail {
            StackDetail::Wait { cause, memory, .. } => {
                let stall = memory.then_some(("stall", "memory".into()));
                [("cause", cause.as_str().into())]
                    .into_iter()
                    .chain(stall)
                    .collect()
            }
            StackDetail::Opened(peer) => vec![("peer", peer_name(peer))],
            _ => Vec::new(),
        },
        value: i64::try_from(sample.value).unwrap_or(i64::MAX),
    };
    values.iter().map(sample).collect()
}

/// A frame's name for people: its function, else its module in brackets.
pub(super) fn frame_name(frame: &Frame) -> String {
    match &frame.function {
        Some(function) => function.to_string(),
        None => {
            let base = base_name(&frame.module);
            format!("[{}]", base.trim_start_matches('[').trim_end_matches(']'))
        }
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').find(|part| !part.is_empty()).unwrap_or(path)
}

#[cfg(test)]
mod tests;
