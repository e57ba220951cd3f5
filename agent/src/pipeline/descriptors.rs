//! Descriptors that stay open: turns the hook on openings on and off, and follows what it sampled.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use anyhow::Result;

use super::clock::monotonic_ns;
use crate::aggregate::OpenFd;
use crate::attribute::{Service, SlotId, StackSample};
use crate::decode::descriptors::{Sampled, sampled};
use crate::decode::model::{FdKind, Tick};
use crate::load::Loaded;
use crate::signals::fd::{Descriptors, Plan};
use crate::symbolize::{SharedStack, SymbolizedSample};

/// The reading thread's part.
#[derive(Default)]
pub(super) struct Following {
    pub(super) descriptors: Descriptors,
    plan: Plan,
}

/// What the reading thread tells the naming one in a tick.
#[derive(Default)]
pub(super) struct News {
    /// Stacks whose descriptors stay, with their ids.
    pub(super) stacks: Vec<(u64, StackSample)>,
    /// All descriptors that stay.
    pub(super) open: Vec<Sampled>,
    /// Processes that are watched from now on.
    pub(super) watched: Vec<(SlotId, u32)>,
}

/// The same with services.
#[derive(Default)]
pub(super) struct OfServices {
    pub(super) stacks: Vec<(u64, (StackSample, Arc<Service>))>,
    pub(super) open: Vec<Sampled>,
}

/// Adds the services.
pub(super) fn of_services(news: News, mut service: impl FnMut(SlotId) -> Arc<Service>) -> OfServices {
    let stacks = news.stacks.into_iter().map(|(id, sample)| {
        let service = service(sample.slot);
        (id, (sample, service))
    });
    OfServices {
        stacks: stacks.collect(),
        open: news.open,
    }
}

impl Following {
    /// Ends a tick. Nothing is hooked unless `allowed`.
    pub(super) fn tick(&mut self, loaded: &mut Loaded, tick: &mut Tick, allowed: bool) -> Result<News> {
        let fds = &mut self.descriptors;
        fds.count(tick);
        // Nothing was ever sampled while nothing was ever watched.
        let stayed = if self.plan == Plan::default() {
            fds.open(Vec::new())
        } else {
            fds.open(sampled(loaded)?)
        };
        let plan = fds.plan(allowed && loaded.works("opener"));
        let fresh = plan.watched.iter().filter(|pid| !self.plan.watched.contains(pid));
        let watched = fresh.filter_map(|pid| Some((fds.slot_of(*pid)?, *pid))).collect();
        self.apply(loaded, plan)?;
        Ok(News {
            stacks: stayed.stacks,
            open: stayed.open,
            watched,
        })
    }

    fn apply(&mut self, loaded: &mut Loaded, plan: Plan) -> Result<()> {
        if plan.watched != self.plan.watched {
            loaded.set_tuning(|tuning| tuning.watched = plan.watched)?;
        }
        if plan.attached != self.plan.attached {
            tracing::debug!(attached = plan.attached, pids = ?plan.watched, "openings of descriptors");
            loaded.switch("opener", plan.attached)?;
        }
        self.plan = plan;
        Ok(())
    }

    /// Whether openings are sampled now.
    pub(super) fn attached(&self) -> bool {
        self.plan.attached
    }

    /// Stops: everything is about to be detached.
    pub(super) fn pause(&mut self, loaded: &mut Loaded) -> Result<()> {
        self.descriptors.forget();
        self.apply(loaded, Plan::default())
    }
}

/// The naming thread's part: the names of stacks while their descriptors are open.
#[derive(Default)]
pub(super) struct Names(HashMap<u64, (Arc<Service>, SharedStack)>);

impl Names {
    /// A stack was named.
    pub(super) fn insert(&mut self, id: u64, sample: &SymbolizedSample) {
        self.0
            .insert(id, (Arc::clone(&sample.service), Arc::clone(&sample.stack)));
    }

    /// The descriptors that stay, with what opened them.
    pub(super) fn open(&mut self, open: &[Sampled]) -> Vec<OpenFd> {
        let ids: HashSet<u64> = open.iter().map(|fd| fd.id).collect();
        self.0.retain(|id, _| ids.contains(id));
        let now_ns = monotonic_ns();
        let mut found: BTreeMap<(u64, FdKind), OpenFd> = BTreeMap::new();
        for fd in open {
            let Some((service, stack)) = self.0.get(&fd.id) else {
                continue;
            };
            let age_ns = now_ns.saturating_sub(fd.at_ns);
            let of_stack = found.entry((fd.id, fd.kind)).or_insert_with(|| OpenFd {
                service: Arc::clone(service),
                stack: Arc::clone(stack),
                kind: fd.kind,
                count: 0,
                age_ns,
            });
            of_stack.count += u64::from(fd.every);
            of_stack.age_ns = of_stack.age_ns.max(age_ns);
        }
        found.into_values().collect()
    }
}
