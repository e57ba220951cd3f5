//! Profiles: the windows of one service and signal, merged.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::window::{StackKey, StackValue, Window, address};
use crate::symbolize::{Cause, StackKind};

/// Which profile is wanted.
#[derive(Clone, Debug)]
pub struct ProfileQuery<'a> {
    /// `service_namespace`, may be empty.
    pub namespace: &'a str,
    /// `service_name`.
    pub name: &'a str,
    /// One release, or all of them together.
    pub version: Option<&'a str>,
    /// Which signal.
    pub kind: StackKind,
    /// How far back from the end of the last finished window.
    pub since: Duration,
    /// Waits of cause `idle` too.
    pub idle: bool,
}

/// The windows of one service and signal, merged.
#[derive(Clone, Debug)]
pub struct WindowProfile {
    /// `service_name`.
    pub name: String,
    /// `service_namespace`.
    pub namespace: String,
    /// Which signal.
    pub kind: StackKind,
    /// Unix time of its begin in nanoseconds.
    pub start_unix_ns: u64,
    /// Time that the merged windows cover, in nanoseconds.
    pub duration_ns: u64,
    /// Largest first. The unit is nanoseconds for waits and CPU, bytes for memory, and a number for the others.
    pub samples: Vec<StackValue>,
    /// Of live allocations, objects by stack; else none.
    pub objects: Vec<StackValue>,
}

impl WindowProfile {
    /// All of it, and its objects.
    #[must_use]
    pub fn sums(&self) -> (u64, u64) {
        let sum = |values: &[StackValue]| values.iter().map(|value| value.value).sum();
        (sum(&self.samples), sum(&self.objects))
    }
}

/// Merges the windows that a query asks for. `None` when no window is there yet.
pub(super) fn profile(windows: &[Arc<Window>], query: &ProfileQuery<'_>) -> Option<WindowProfile> {
    let end = windows.last()?.end_unix_ns;
    let from = end.saturating_sub(u64::try_from(query.since.as_nanos()).unwrap_or(u64::MAX));
    let mut merged: HashMap<StackKey, StackValue> = HashMap::new();
    let mut duration_ns = 0;
    let mut start_unix_ns = end;
    for window in windows.iter().filter(|window| window.end_unix_ns > from) {
        duration_ns += window.length_ns;
        start_unix_ns = start_unix_ns.min(window.end_unix_ns.saturating_sub(window.length_ns));
        let wanted = window.stacks.iter().filter(|(service, _)| {
            service.name == query.name
                && service.namespace == query.namespace
                && query.version.is_none_or(|version| service.version == version)
        });
        for value in wanted.filter_map(|(_, kinds)| kinds.get(&query.kind)).flatten() {
            if query.idle || value.detail.cause() != Some(Cause::Idle) {
                merged
                    .entry((value.detail, address(&value.stack)))
                    .and_modify(|known| known.value = known.value.saturating_add(value.value))
                    .or_insert_with(|| value.clone());
            }
        }
    }
    let mut samples: Vec<StackValue> = merged.into_values().collect();
    samples.sort_by(|a, b| {
        let key = |value: &StackValue| (Reverse(value.value), value.detail);
        key(a)
            .cmp(&key(b))
            .then_with(|| a.stack.owner.cmp(&b.stack.owner))
    });
    Some(WindowProfile {
        name: query.name.to_owned(),
        namespace: query.namespace.to_owned(),
        kind: query.kind,
        start_unix_ns,
        duration_ns,
        samples,
        objects: Vec::new(),
    })
}
