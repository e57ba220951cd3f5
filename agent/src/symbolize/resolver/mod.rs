//! From sampled addresses to resolved stacks.

mod address;
mod by_file;
mod gone;

use std::sync::Arc;

use super::debug::DebugFiles;
use super::engine::{Engine, Part};
use super::frames::{bare, call_site, own};
use super::kernel::KernelSymbols;
use super::lru::Lru;
use super::module::{ModuleId, Modules};
use super::owner::{Ground, Owners};
use super::pool::Pool;
use super::process::{ProcessKey, Processes};
use super::python::{Codes, Source};
use super::{
    Cause, Frame, Outcome, Owned, PythonStack, Service, SharedStack, Stack, StackSample, SymbolizeStats,
    SymbolizedSample, SymbolizerConfig,
};

/// What makes two stacks the same without resolving them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StackKey {
    generation: u64,
    user: Vec<u64>,
    interrupted: u128,
    unfolded: bool,
    kernel: Vec<u64>,
    python: PythonStack,
    /// Changes when a code object does.
    codes: u64,
    truncated: bool,
    lock_wait: bool,
}

/// A resolved stack, and what is counted each time it is given.
#[derive(Clone, Debug)]
struct Answer {
    stack: SharedStack,
    outcomes: Arc<[Outcome]>,
    owned: Owned,
}

/// Resolves stacks. It is not `Send`: make it on the thread that uses it.
///
/// ```
/// use tieback::symbolize::{Symbolizer, SymbolizerConfig};
/// let symbolizer = Symbolizer::new(SymbolizerConfig::default());
/// assert_eq!(symbolizer.stats().stack_misses, 0);
/// ```
#[derive(Debug)]
pub struct Symbolizer {
    config: SymbolizerConfig,
    engine: Engine,
    kernel: KernelSymbols,
    modules: Modules,
    processes: Processes,
    addresses: Lru<(ModuleId, u64), (Vec<Part>, Outcome)>,
    stacks: Lru<StackKey, Answer>,
    frames: Pool<Frame>,
    codes: Codes,
    owners: Owners,
    unknown_module: Arc<str>,
    truncated: Arc<str>,
    batch: u64,
    stats: SymbolizeStats,
}

impl Symbolizer {
    /// An empty one; nothing is read but the beginning of the kernel's list of symbols.
    #[must_use]
    pub fn new(config: SymbolizerConfig) -> Self {
        let debug_files = DebugFiles::start(&config);
        Self::with(config, debug_files)
    }

    fn with(config: SymbolizerConfig, debug_files: DebugFiles) -> Self {
        Self {
            engine: Engine::new(),
            kernel: KernelSymbols::new(&config),
            modules: Modules::new(&config, debug_files),
            processes: Processes::new(&config),
            addresses: Lru::new(config.max_addresses),
            stacks: Lru::new(config.max_stacks),
            frames: Pool::default(),
            codes: Codes::default(),
            owners: Owners::new(&config.owner_rules),
            unknown_module: "[unknown]".into(),
            truncated: "[truncated]".into(),
            batch: 0,
            stats: SymbolizeStats::default(),
            config,
        }
    }

    /// The kernel hides its symbols, so that kernel frames are addresses only.
    #[must_use]
    pub fn kernel_symbols_hidden(&self) -> bool {
        self.kernel.hidden()
    }

    /// What became of the addresses so far.
    #[must_use]
    pub fn stats(&self) -> SymbolizeStats {
        SymbolizeStats {
            debug_skipped: self.modules.debug_skipped,
            debug_files: self.modules.debug_files.counts,
            fetched: self.modules.debug_files.requests(),
            maps_read: self.processes.maps_read,
            files_read: self.modules.files_read,
            image_bytes: self.modules.image_bytes,
            processes: self.processes.len(),
            modules: self.modules.len(),
            addresses: self.addresses.len(),
            ..self.stats.clone()
        }
    }

    /// Lets go of everything cached, but for the counts of what was done.
    pub fn forget(&mut self) {
        let stats = std::mem::take(&mut self.stats);
        let debug_files = std::mem::take(&mut self.modules.debug_files);
        let skipped = (self.modules.debug_skipped, self.processes.maps_read);
        let files_read = self.modules.files_read;
        *self = Self::with(self.config.clone(), debug_files);
        self.stats = stats;
        (self.modules.debug_skipped, self.processes.maps_read) = skipped;
        self.modules.files_read = files_read;
    }

    /// Resolves one sample; [`Self::resolve_batch`] is cheaper for many.
    pub fn resolve(&mut self, sample: &StackSample, service: Arc<Service>) -> SymbolizedSample {
        self.start_batch();
        self.resolve_next(sample, service)
    }

    /// Resolves samples in the order of their processes, so that each process is checked once. The answers are in the
    /// order of the samples. Processes that `sampled` names meanwhile are noted at once: see [`Self::note_process`].
    pub fn resolve_batch(
        &mut self,
        samples: Vec<(StackSample, Arc<Service>)>,
        mut sampled: impl FnMut() -> Option<ProcessKey>,
    ) -> Vec<SymbolizedSample> {
        self.start_batch();
        let mut samples: Vec<_> = samples.into_iter().enumerate().collect();
        samples.sort_by_key(|(index, (sample, _))| (sample.pid, sample.slot, *index));
        self.look_up_files(&samples, &mut sampled);
        let mut resolved: Vec<_> = samples
            .into_iter()
            .map(|(index, (sample, service))| {
                self.note(&mut sampled);
                (index, self.resolve_next(&sample, service))
            })
            .collect();
        resolved.sort_by_key(|(index, _)| *index);
        resolved.into_iter().map(|(_, sample)| sample).collect()
    }

    /// Reads the memory map of a process ahead of its samples, for processes that may not live until these arrive.
    pub fn note_process(&mut self, slot: super::SlotId, pid: u32) {
        self.start_batch();
        self.processes.get(&self.config, (slot, pid), self.batch);
    }

    fn start_batch(&mut self) {
        self.batch += 1;
        self.modules.release_idle(&self.config, &mut self.engine);
        self.kernel.release_idle(self.config.image_idle);
        if self.modules.take_fetched(&self.config, &mut self.engine) {
            // Answers of before lack names and lines.
            self.addresses = Lru::new(self.config.max_addresses);
            self.stacks = Lru::new(self.config.max_stacks);
        }
    }

    fn resolve_next(&mut self, sample: &StackSample, service: Arc<Service>) -> SymbolizedSample {
        let Answer {
            stack,
            outcomes,
            owned,
        } = self.stack(sample);
        for outcome in outcomes.iter() {
            self.stats.add(*outcome);
        }
        self.stats.add_stack(owned);
        SymbolizedSample {
            service,
            kind: sample.kind,
            detail: sample.detail,
            weight: sample.weight,
            own: sample.own,
            stack,
        }
    }

    fn stack(&mut self, sample: &StackSample) -> Answer {
        let key = (sample.slot, sample.pid);
        let key = self
            .processes
            .itself_or_kin(&self.config, key, &sample.user, self.batch);
        let process = self.processes.get(&self.config, key, self.batch);
        let known = process.is_some();
        let alive = process.as_ref().is_some_and(|process| process.alive);
        let source = Source::new(&self.config.proc, key, alive && !sample.python.frames.is_empty());
        let lock_wait = sample.detail.cause() == Some(Cause::Lock);
        let stack_key = StackKey {
            generation: process.as_ref().map_or(0, |process| process.generation),
            user: sample.user.clone(),
            interrupted: sample.interrupted,
            unfolded: sample.unfolded,
            kernel: sample.kernel.clone(),
            python: sample.python.clone(),
            codes: self.codes.version(&source, &sample.python, self.batch),
            truncated: sample.truncated(),
            lock_wait,
        };
        if let Some(answer) = self.stacks.get(&stack_key) {
            self.stats.stack_hits += 1;
            return answer.clone();
        }
        self.stats.stack_misses += 1;
        let mut frames = Vec::with_capacity(sample.kernel.len() + sample.user.len());
        let mut outcomes = Vec::with_capacity(frames.capacity());
        for (index, address) in sample.kernel.iter().enumerate() {
            outcomes.push(
                self.kernel
                    .resolve(*address, call_site(index == 0, *address), &mut frames),
            );
        }
        frames.drain(..own(&frames));
        // Of the frames, where there can be several an address.
        let mut of_frames = vec![Outcome::Ok; frames.len()];
        let names = &mut self.engine.names;
        let (runs, named) = self.codes.runs(&source, names, &sample.python, self.batch);
        let mut stable = (known || sample.user.is_empty()) && named;
        let of_kernel = outcomes.len();
        let mut native = Vec::with_capacity(sample.user.len());
        for (index, address) in sample.user.iter().enumerate() {
            let address = call_site(sample.stopped_at(index), *address);
            let mut here = Vec::with_capacity(1);
            if known {
                let (outcome, fixed) = self.user(key, address, &mut here);
                outcomes.push(outcome);
                stable &= fixed;
            } else {
                here.push(bare(&self.unknown_module, address));
                outcomes.push(Outcome::ProcessGone);
            }
            if sample.unfolded {
                // What it was inlined into comes with the next address.
                here.truncate(1);
            }
            native.push(here);
        }
        let entering = runs.any() && self.enters(key, sample, &native);
        let merged = runs.merge(native, sample.truncated(), entering);
        let truncated = sample.truncated() || merged.cut;
        for (index, frame) in merged.frames {
            of_frames.extend(outcomes.get(of_kernel + index).copied());
            frames.push(frame);
        }
        let executable = self
            .processes
            .get(&self.config, key, self.batch)
            .and_then(|process| process.executable.clone());
        let judged = self.owners.judge(&frames, executable.as_deref());
        let owned = match judged.ground {
            Ground::Own => Owned::Own,
            Ground::Executable => Owned::Executable,
            Ground::Nameless(frame) => Owned::nameless(of_frames[frame]),
            Ground::NoFrame if sample.user.is_empty() => Owned::KernelOnly,
            Ground::NoFrame if truncated => Owned::Truncated,
            Ground::NoFrame => Owned::OnlyLibraries,
        };
        if truncated {
            frames.push(Frame {
                function: Some(Arc::clone(&self.truncated)),
                ..bare(&self.truncated, 0)
            });
        }
        let stack = Arc::new(Stack {
            owner: judged.owner,
            idle: lock_wait && judged.idle,
            truncated,
            frames: frames.into_iter().map(|frame| self.frames.share(frame)).collect(),
        });
        let answer = Answer {
            stack,
            outcomes: outcomes.into(),
            owned,
        };
        // Generated code may be another function the next time, and a gone process has no generation.
        if stable && self.generation(key) == stack_key.generation {
            self.stacks.insert(stack_key, answer.clone());
        }
        answer
    }

    fn generation(&mut self, key: ProcessKey) -> u64 {
        self.processes
            .get(&self.config, key, self.batch)
            .map_or(0, |process| process.generation)
    }
}
