//! Anonymous memory that code grew and that is still there: a picture of the moment, made anew with each tick.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Aggregator, ProfileQuery, Snapshot, StackValue, WindowProfile};
use crate::symbolize::{Owner, Service, SharedStack, StackDetail, StackKind};

/// What is there of one service's growth.
#[derive(Clone, Debug, Default)]
pub struct NetGrowth {
    /// By code, the most first: as many as have series.
    pub code: Vec<(Owner, u64)>,
    /// Of all other code.
    pub other: u64,
    /// By stack.
    pub(super) stacks: Vec<(SharedStack, u64)>,
}

impl NetGrowth {
    fn new(stacks: HashMap<SharedStack, f64>, top: usize) -> Self {
        let stacks: Vec<(SharedStack, u64)> = stacks
            .into_iter()
            .map(|(stack, bytes)| (stack, bytes.round() as u64))
            .collect();
        let mut by_owner: BTreeMap<&Owner, u64> = BTreeMap::new();
        for (stack, bytes) in &stacks {
            *by_owner.entry(&stack.owner).or_default() += bytes;
        }
        let mut code: Vec<(Owner, u64)> = by_owner
            .into_iter()
            .map(|(owner, bytes)| (owner.clone(), bytes))
            .collect();
        // By name where equal: the map is in the order of names, and the sort is stable.
        code.sort_by_key(|(_, bytes)| Reverse(*bytes));
        let other = code.iter().skip(top).map(|(_, bytes)| bytes).sum();
        code.truncate(top);
        Self { code, other, stacks }
    }

    /// How many series it has.
    #[must_use]
    pub fn series(&self) -> usize {
        self.code.len() + usize::from(self.other > 0)
    }
}

impl Aggregator {
    /// What is there now; the next tick's snapshot shows it.
    pub fn set_net_growth(&mut self, all: Vec<(Arc<Service>, SharedStack, f64)>) {
        let mut by_service: HashMap<Arc<Service>, HashMap<SharedStack, f64>> = HashMap::new();
        for (service, stack, bytes) in all {
            let service = self.admit(&service);
            *by_service.entry(service).or_default().entry(stack).or_default() += bytes;
        }
        for (service, state) in &mut self.services {
            let stacks = by_service.remove(service).unwrap_or_default();
            state.net = Arc::new(NetGrowth::new(stacks, self.limits.top));
        }
    }
}

impl Snapshot {
    /// The growth of a service that is still there, by stack, however old; `None` for services that are not known.
    #[must_use]
    pub fn net_profile(&self, query: &ProfileQuery<'_>) -> Option<WindowProfile> {
        self.find(query.namespace, query.name).next()?;
        let versions = self
            .find(query.namespace, query.name)
            .filter(|s| query.version.is_none_or(|version| s.service.version == version));
        let mut samples: Vec<StackValue> = versions
            .flat_map(|service| &service.net.stacks)
            .map(|(stack, value)| StackValue {
                detail: StackDetail::None,
                stack: Arc::clone(stack),
                value: *value,
            })
            .collect();
        samples.sort_by(|a, b| (Reverse(a.value), &a.stack.owner).cmp(&(Reverse(b.value), &b.stack.owner)));
        Some(WindowProfile {
            name: query.name.to_owned(),
            namespace: query.namespace.to_owned(),
            kind: StackKind::Memory,
            start_unix_ns: self.at_unix_ns,
            duration_ns: 0,
            samples,
        })
    }
}
