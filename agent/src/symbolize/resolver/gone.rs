//! Processes that ended before anybody read their memory map.

use std::collections::HashMap;

use super::{Arc, Symbolizer};
use crate::symbolize::process::ProcessKey;
use crate::symbolize::{CapturedModule, captured};

impl Symbolizer {
    /// Takes up the modules that came with samples of processes, where these are gone by now.
    pub fn captured(&mut self, captured: HashMap<ProcessKey, Vec<CapturedModule>>) {
        self.start_batch();
        for (key, mut modules) in captured {
            let was_read = self.processes.was_read(&self.config, key, self.batch, &modules);
            if was_read {
                modules = self.processes.missing(&self.config, key, modules);
            }
            let mut executable = None;
            let mut mappings = Vec::with_capacity(modules.len());
            for module in modules {
                let (mapping, id) =
                    captured::mapping(&self.config, &mut self.modules, &self.processes, &module);
                if module.executable && mapping.is_file() {
                    executable = Some(Arc::clone(&mapping.path));
                }
                mappings.push((mapping, id));
            }
            if was_read {
                self.processes.add(key, mappings);
            } else {
                self.processes.capture(key, self.batch, executable, mappings);
            }
        }
    }
}
