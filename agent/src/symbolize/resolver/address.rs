//! What is at one user address.

use super::{Arc, Symbolizer};
use crate::symbolize::frames::{bare, generated};
use crate::symbolize::module::Via;
use crate::symbolize::process::ProcessKey;
use crate::symbolize::{Frame, Outcome, StackSample, maps, python};

impl Symbolizer {
    /// Whether a thread was interrupted where the loop of its interpreter begins.
    pub(super) fn enters(&mut self, key: ProcessKey, sample: &StackSample, native: &[Vec<Frame>]) -> bool {
        let (Some(here), Some(address)) = (native.first(), sample.user.first()) else {
            return false;
        };
        let mut before = Vec::new();
        python::is_loop(here) && {
            self.user(key, address.saturating_sub(python::ENTERS), &mut before);
            !python::is_loop(&before)
        }
    }

    /// Appends the frames at a user address; also tells whether the answer can be kept with the stack.
    pub(super) fn user(&mut self, key: ProcessKey, address: u64, frames: &mut Vec<Frame>) -> (Outcome, bool) {
        let Some(process) = self.processes.get(&self.config, key, self.batch) else {
            frames.push(bare(&self.unknown_module, address));
            return (Outcome::ProcessGone, false);
        };
        if maps::find(&process.mappings, address).is_none() {
            self.processes.reread_for_address(&self.config, key);
        }
        let Some(process) = self.processes.get(&self.config, key, self.batch) else {
            return (Outcome::ProcessGone, false);
        };
        let found = maps::find(&process.mappings, address);
        let Some(mapping) = found
            .or_else(|| maps::find_grown(&process.mappings, address))
            .cloned()
        else {
            frames.push(bare(&self.unknown_module, address));
            return (Outcome::NoModule, false);
        };
        let via = Via {
            pid: key.1,
            alive: process.alive,
            mapping: &mapping,
        };
        let offset = address - mapping.range.start + mapping.offset;
        if mapping.is_lost() {
            frames.push(bare(&self.unknown_module, address));
            return (Outcome::ProcessGone, true);
        }
        let module = if mapping.is_file() {
            let modules = &mut self.modules;
            *process
                .modules
                .entry(mapping.range.start)
                .or_insert_with(|| modules.find(&self.config, via))
        } else if &*mapping.path == "[vdso]" {
            self.modules.vdso(&self.config)
        } else {
            return generated(&self.config, process, key.1, address, &mapping.path, frames);
        };
        let id = match module {
            Ok(id) => id,
            // A memfd holds an executable (runc starts itself so) or what a JIT made.
            Err(Outcome::ElfError) if mapping.path.starts_with("/memfd:") => {
                return generated(&self.config, process, key.1, address, &mapping.path, frames);
            }
            Err(outcome) => {
                frames.push(bare(&mapping.path, offset));
                return (outcome, true);
            }
        };
        let Some(module) = self.modules.get(id) else {
            // Forgotten since: found again with the next sample.
            process.modules.remove(&mapping.range.start);
            frames.push(bare(&mapping.path, offset));
            return (Outcome::ElfError, false);
        };
        let (path, build_id) = (Arc::clone(&module.path), module.build_id.clone());
        let Some(file_address) = module.segments.address_of(offset) else {
            frames.push(bare(&path, offset));
            return (Outcome::NoSymbol, true);
        };
        if let Err(outcome) = self.look_up(id, via, file_address, self.batch) {
            frames.push(Frame {
                build_id,
                ..bare(&path, file_address)
            });
            return (outcome, false);
        }
        let base = Frame {
            build_id,
            ..bare(&path, file_address)
        };
        match self.addresses.get(&(id, file_address)) {
            Some((parts, outcome)) if !parts.is_empty() => {
                frames.extend(parts.iter().map(|part| Frame {
                    function: part.function.clone(),
                    file: part.file.clone(),
                    line: part.line,
                    inlined: part.inlined,
                    ..base.clone()
                }));
                let nameless = *outcome == Outcome::Ok && parts.iter().all(|part| part.function.is_none());
                (if nameless { Outcome::NoSymbol } else { *outcome }, true)
            }
            answer => {
                let outcome = answer.map_or(Outcome::NoSymbol, |(_, outcome)| *outcome);
                frames.push(base);
                (outcome, true)
            }
        }
    }
}
