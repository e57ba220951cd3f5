//! Addresses of many samples, looked up file by file.

use std::collections::HashMap;

use super::{Arc, Symbolizer, call_site};
use crate::symbolize::module::{ModuleId, Via};
use crate::symbolize::process::ProcessKey;
use crate::symbolize::reading::Wanted;
use crate::symbolize::{Outcome, Service, StackSample, maps};

impl Symbolizer {
    /// Looks up what the samples of a batch need and is not known yet: each file is read at most once for it. A large one may
    /// leave no room for another, and in the order of the samples the two would take turns.
    /// Processes that `sampled` names meanwhile are noted.
    pub(super) fn look_up_files(
        &mut self,
        samples: &[(usize, (StackSample, Arc<Service>))],
        sampled: &mut impl FnMut() -> Option<ProcessKey>,
    ) {
        let mut wanted: HashMap<ModuleId, Wanted> = self.modules.take_waiting();
        for (_, (sample, _)) in samples {
            self.note(sampled);
            let key = (sample.slot, sample.pid);
            let key = self
                .processes
                .itself_or_kin(&self.config, key, &sample.user, self.batch);
            for (index, address) in sample.user.iter().enumerate() {
                let address = call_site(sample.stopped_at(index), *address);
                self.want(key, address, &mut wanted);
            }
        }
        // Those that wait for longest come first: there may not be time for all.
        let mut wanted: Vec<(ModuleId, Wanted)> = wanted.into_iter().collect();
        wanted.sort_by_key(|(_, wanted)| wanted.since);
        for (id, wanted) in wanted {
            let via = wanted.via();
            for address in &wanted.addresses {
                self.note(sampled);
                // What is not found is told where a sample asks for it.
                let _ = self.look_up(id, via, *address, wanted.since);
            }
        }
    }

    /// Notes processes that were sampled meanwhile.
    pub(super) fn note(&mut self, sampled: &mut impl FnMut() -> Option<ProcessKey>) {
        while let Some(process) = sampled() {
            self.processes.get(&self.config, process, self.batch);
        }
    }

    /// Notes an address whose file is known, and which is not.
    fn want(&mut self, key: ProcessKey, address: u64, wanted: &mut HashMap<ModuleId, Wanted>) {
        let Some(process) = self.processes.get(&self.config, key, self.batch) else {
            return;
        };
        let Some(mapping) = maps::find(&process.mappings, address).filter(|mapping| mapping.is_file()) else {
            return;
        };
        let via = Via {
            pid: key.1,
            alive: process.alive,
            mapping,
        };
        let modules = &mut self.modules;
        let module = process.modules.entry(mapping.range.start);
        let Ok(id) = *module.or_insert_with(|| modules.find(&self.config, via)) else {
            return;
        };
        let offset = address - mapping.range.start + mapping.offset;
        let module = self.modules.get(id);
        let Some(address) = module.and_then(|module| module.segments.address_of(offset)) else {
            return;
        };
        if self.addresses.contains(&(id, address)) {
            return;
        }
        let wanted = wanted.entry(id);
        wanted
            .or_insert_with(|| Wanted::new(via, self.batch))
            .add(address);
    }

    /// Makes an address known. It is not where nothing can be said now and something may be later. `since` is the batch that
    /// asked for it first.
    pub(super) fn look_up(
        &mut self,
        id: ModuleId,
        via: Via<'_>,
        address: u64,
        since: u64,
    ) -> Result<(), Outcome> {
        if self.addresses.get(&(id, address)).is_some() {
            return Ok(());
        }
        self.stats.address_misses += 1;
        let found = self
            .modules
            .look_up(&self.config, &mut self.engine, id, via, address, since);
        let answer = match found {
            Ok(parts) => (parts, Outcome::Ok),
            Err(outcome @ (Outcome::ProcessGone | Outcome::Postponed)) => return Err(outcome),
            Err(outcome) => (Vec::new(), outcome),
        };
        self.addresses.insert((id, address), answer);
        Ok(())
    }
}
