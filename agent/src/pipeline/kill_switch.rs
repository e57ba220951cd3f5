//! Letting go of the kernel at a wish, and taking up again what runs.

use std::time::Instant;

use anyhow::Result;

use super::Reader;
use super::naming::Batch;
use crate::load::on_demand;

impl Reader {
    /// Detaches everything while the kill switch's file exists, and attaches it again when it is gone. Returns what was
    /// counted until then.
    pub(super) fn kill_switch(&mut self, now: Instant) -> Result<Option<Batch>> {
        let killed = self.host.exists(&self.config.kill_switch);
        if killed == self.killed {
            return Ok(None);
        }
        tracing::warn!(killed, path = %self.config.kill_switch.display(), "kill switch");
        // Before and after: what begins meanwhile was not watched from its beginning, either.
        self.watching.forget();
        let mut last = None;
        if killed {
            self.governor.pause(&mut self.loaded)?;
            self.descriptors.pause(&mut self.loaded)?;
            last = Some(self.tick(now)?);
        } else {
            // What happened meanwhile was not seen: everything is found anew, as at the start.
            self.drain(now);
            for slot in self.harvest.reset(&mut self.loaded)? {
                self.attributor.finish(slot, now);
                self.unwinding.closed(slot);
                self.first_stacks.closed(slot);
            }
            self.closed.clear();
        }
        self.killed = killed;
        for probe in agent_ebpf::probes::ALL {
            if !on_demand(probe.name) {
                self.loaded.switch(probe.name, !killed)?;
            }
        }
        if !killed {
            self.governor.resume(now);
            self.find()?;
        }
        Ok(last)
    }

    /// Takes up all that runs already.
    pub(super) fn find(&mut self) -> Result<()> {
        // Twice: listening sockets must be known before the connections that they accepted, and may be those of a younger
        // process, or of a higher descriptor.
        for listeners_only in [1, 0] {
            self.loaded
                .set_tuning(|tuning| tuning.listeners_only = listeners_only)?;
            let programs: Vec<&str> = self.loaded.iterators().collect();
            for program in programs {
                self.loaded.visit(program, &mut Vec::new())?;
            }
        }
        Ok(())
    }
}
