//! Files that processes have mapped, and the copies of their symbols that are in memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::captured::CapturedFiles;
use super::cpu_time::CpuTime;
use super::debug::{Budget, DebugFiles};
use super::engine::{Engine, Part};
use super::go::GoTable;
use super::headers::{self, FileIdentity, Headers};
use super::image;
use super::layers::Layers;
use super::lru::Lru;
use super::maps::Mapping;
use super::open::{open_in_root, open_regular};
use super::reading::{Reading, Wanted};
use super::sections::Sections;
use super::segments::Segments;
use super::{Outcome, SymbolizerConfig};

/// Numbers a file as some process sees it; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModuleId(u64);

/// A file with code.
#[derive(Debug)]
pub(super) struct Module {
    /// As the process sees it.
    pub(super) path: Arc<str>,
    pub(super) build_id: Option<Arc<str>>,
    /// How its offsets become addresses.
    pub(super) segments: Segments,
    identity: FileIdentity,
    /// Why no symbols can be read from it, once that is known.
    broken: Option<Outcome>,
    /// Its debug information did harm: a panic, or too much time.
    symbols_only: bool,
    /// What its copy took when it was read last.
    bytes: u64,
    budget: Budget,
}

/// Whose mapping a file is reached through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Via<'a> {
    pub(super) pid: u32,
    pub(super) alive: bool,
    pub(super) mapping: &'a Mapping,
}

/// All known files, bounded in number and in bytes.
#[derive(Debug)]
pub(super) struct Modules {
    known: Lru<ModuleId, Module>,
    by_identity: HashMap<(FileIdentity, Arc<str>), ModuleId>,
    /// By what `/proc/PID/maps` says: the only way to a file once its process is gone.
    by_mapping: HashMap<(Arc<str>, u64, Arc<str>), ModuleId>,
    images: Lru<ModuleId, (Layers, Instant)>,
    vdso: Option<Result<ModuleId, Outcome>>,
    /// What could not be looked up yet.
    waiting: HashMap<ModuleId, Wanted>,
    reading: Reading,
    pub(super) captured: CapturedFiles,
    next: u64,
    pub(super) image_bytes: u64,
    pub(super) files_read: u64,
    pub(super) debug_skipped: u64,
    pub(super) debug_files: DebugFiles,
}

impl Modules {
    pub(super) fn new(config: &SymbolizerConfig, debug_files: DebugFiles) -> Self {
        Self {
            known: Lru::new(config.max_modules),
            by_identity: HashMap::new(),
            by_mapping: HashMap::new(),
            images: Lru::new(config.max_modules),
            vdso: None,
            waiting: HashMap::new(),
            reading: Reading::new(config),
            captured: CapturedFiles::default(),
            next: 0,
            image_bytes: 0,
            files_read: 0,
            debug_skipped: 0,
            debug_files,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn get(&mut self, id: ModuleId) -> Option<&Module> {
        self.known.get(&id).map(|module| &*module)
    }

    /// The file behind a mapping.
    pub(super) fn find(&mut self, config: &SymbolizerConfig, via: Via<'_>) -> Result<ModuleId, Outcome> {
        let mapping = via.mapping;
        if mapping.found.is_some() {
            // It was known when the mapping was, and is no more.
            return Err(Outcome::ProcessGone);
        }
        let by_mapping = (
            Arc::clone(&mapping.device),
            mapping.inode,
            Arc::clone(&mapping.path),
        );
        if !via.alive
            && let Some(id) = self.by_mapping.get(&by_mapping)
        {
            return Ok(*id);
        }
        let (file, identity) = open(config, via)?;
        let id = self.identified(&file, identity, &mapping.path)?;
        if self.by_mapping.len() >= config.max_modules {
            let known = &self.known;
            self.by_mapping.retain(|_, id| known.contains(id));
        }
        if self.by_mapping.len() < config.max_modules {
            self.by_mapping.insert(by_mapping, id);
        }
        Ok(id)
    }

    /// The file that was opened, by this path.
    pub(super) fn identified(
        &mut self,
        file: &File,
        identity: FileIdentity,
        path: &Arc<str>,
    ) -> Result<ModuleId, Outcome> {
        let key = (identity, Arc::clone(path));
        if let Some(id) = self.by_identity.get(&key) {
            return Ok(*id);
        }
        let headers = Headers::read(file)?;
        Ok(self.add(key, headers))
    }

    pub(super) fn knows(&self, id: ModuleId) -> bool {
        self.known.contains(&id)
    }

    /// The vDSO. The kernel maps the same pages into every process, so the agent's own serve for all.
    pub(super) fn vdso(&mut self, config: &SymbolizerConfig) -> Result<ModuleId, Outcome> {
        if let Some(known) = self.vdso
            && known.map_or(true, |id| self.known.contains(&id))
        {
            return known;
        }
        let loaded = own_vdso(&config.proc).and_then(|file| {
            let metadata = file.metadata().map_err(|_| Outcome::ElfError)?;
            let headers = Headers::read(&file)?;
            let until = CpuTime::now() + config.max_parse;
            let image = headers.copy(&file, metadata.len(), config.max_image_bytes, until)?;
            let layers = Layers::new(image, Sections::of(&headers));
            let id = self.add((headers::identity(&metadata), "[vdso]".into()), headers);
            self.image_bytes += layers.bytes();
            self.images.insert(id, (layers, Instant::now()));
            Ok(id)
        });
        self.vdso = Some(loaded);
        loaded
    }

    /// Lets go of what is known of files whose debug files have just come; true when there are any.
    pub(super) fn take_fetched(&mut self, config: &SymbolizerConfig, engine: &mut Engine) -> bool {
        let fetched = self.debug_files.fetched();
        if fetched.is_empty() {
            return false;
        }
        let ids: Vec<ModuleId> = self.by_identity.values().copied().collect();
        for id in ids {
            let build_id = self.known.get(&id).and_then(|module| module.build_id.clone());
            if build_id.is_some_and(|build_id| fetched.contains(&*build_id))
                && let Some((layers, _)) = self.images.remove(&id)
            {
                self.release(config, engine, &layers);
            }
        }
        true
    }

    fn add(&mut self, key: (FileIdentity, Arc<str>), headers: Headers) -> ModuleId {
        let id = ModuleId(self.next);
        self.next += 1;
        let module = Module {
            path: Arc::clone(&key.1),
            build_id: headers.build_id.as_deref().map(Arc::from),
            segments: headers.segments,
            identity: key.0,
            broken: None,
            symbols_only: false,
            bytes: 0,
            budget: Budget::new(),
        };
        self.by_identity.insert(key, id);
        for (_, gone) in self.known.insert(id, module) {
            self.by_identity.remove(&(gone.identity, gone.path));
        }
        id
    }

    /// Takes what waits to be looked up.
    pub(super) fn take_waiting(&mut self) -> HashMap<ModuleId, Wanted> {
        std::mem::take(&mut self.waiting)
    }

    /// What is at an address of a file. Since which batch it is asked for decides whose turn it is, where it has to wait.
    pub(super) fn look_up(
        &mut self,
        config: &SymbolizerConfig,
        engine: &mut Engine,
        id: ModuleId,
        via: Via<'_>,
        address: u64,
        since: u64,
    ) -> Result<Vec<Part>, Outcome> {
        let module = self.known.get(&id).ok_or(Outcome::ElfError)?;
        if let Some(outcome) = module.broken {
            return Err(outcome);
        }
        let read = self.images.get(&id).is_none();
        let reading = CpuTime::now();
        if read {
            if !self.reading.allowed(config, Instant::now()) {
                let wanted = self.waiting.entry(id);
                wanted.or_insert_with(|| Wanted::new(via, since)).add(address);
                return Err(Outcome::Postponed);
            }
            self.files_read += 1;
            let (bytes, identity) = (module.bytes, module.identity);
            // Else there would be more than is allowed until it is read.
            self.make_room(config, engine, bytes);
            let layers = load(config, &mut self.debug_files, via, identity);
            if layers.is_err() {
                self.reading.spend(reading.elapsed());
            }
            if let (Err(outcome), Some(module)) = (&layers, self.known.get(&id)) {
                // A file out of reach may be reached through another process.
                module.broken = (*outcome != Outcome::ProcessGone).then_some(*outcome);
            }
            let layers = layers?;
            self.debug_skipped += layers.debug_skipped();
            self.make_room(config, engine, layers.bytes());
            if let Some(module) = self.known.get(&id) {
                module.bytes = layers.bytes();
            }
            self.image_bytes += layers.bytes();
            for (_, (old, _)) in self.images.insert(id, (layers, Instant::now())) {
                self.release(config, engine, &old);
            }
        }
        let (layers, used) = self.images.get(&id).ok_or(Outcome::ElfError)?;
        *used = Instant::now();
        let began = CpuTime::now();
        let module = self.known.get(&id).ok_or(Outcome::ElfError)?;
        let mut found = layers.look_up(engine, &config.proc, !module.symbols_only, address);
        if matches!(found, Err(Outcome::Panic)) && !module.symbols_only {
            module.symbols_only = true;
            found = layers.look_up(engine, &config.proc, false, address);
        }
        if read {
            // The first look-up sorts and parses.
            self.reading.spend(reading.elapsed());
        }
        // Nobody can stop a look-up, but the next one need not be made.
        let slow = module.budget.spend(began.elapsed(), config.max_parse);
        match (&found, slow, module.symbols_only) {
            (Err(Outcome::Panic), ..) => module.broken = Some(Outcome::Panic),
            (_, true, true) => module.broken = Some(Outcome::TooSlow),
            (_, true, false) => module.symbols_only = true,
            _ => {}
        }
        found
    }

    /// Lets go of copies that nobody needed for a while.
    pub(super) fn release_idle(&mut self, config: &SymbolizerConfig, engine: &mut Engine) {
        while let Some((id, (_, used))) = self.images.oldest()
            && used.elapsed() >= config.image_idle
        {
            let id = *id;
            if let Some((layers, _)) = self.images.remove(&id) {
                self.release(config, engine, &layers);
            }
        }
    }

    fn make_room(&mut self, config: &SymbolizerConfig, engine: &mut Engine, bytes: u64) {
        while self.image_bytes.saturating_add(bytes) > config.max_images_bytes {
            let Some((_, (layers, _))) = self.images.pop_oldest() else {
                break;
            };
            self.release(config, engine, &layers);
        }
    }

    fn release(&mut self, config: &SymbolizerConfig, engine: &mut Engine, layers: &Layers) {
        self.image_bytes = self.image_bytes.saturating_sub(layers.bytes());
        layers.forget(engine, &config.proc);
    }
}

fn load(
    config: &SymbolizerConfig,
    debug_files: &mut DebugFiles,
    via: Via<'_>,
    identity: FileIdentity,
) -> Result<Layers, Outcome> {
    let until = CpuTime::now() + config.max_parse;
    let max = config.max_image_bytes;
    if &*via.mapping.path == "[vdso]" {
        let file = own_vdso(&config.proc)?;
        let len = file.metadata().map_err(|_| Outcome::ElfError)?.len();
        let headers = Headers::read(&file)?;
        let image = headers.copy(&file, len, max, until)?;
        return Ok(Layers::new(image, Sections::of(&headers)));
    }
    let (file, found) = open(config, via)?;
    if found != identity {
        return Err(Outcome::ProcessGone);
    }
    let headers = Headers::read(&file)?;
    let own = headers.copy(&file, identity.2, max, until)?;
    let mut layers = debug_files.complete(config, via, &file, &headers, own, until);
    if !layers.has_debug() {
        let table = GoTable::read(&file, &headers, max.saturating_sub(layers.bytes()));
        debug_files.count_go(&table);
        if let Ok(Some(table)) = table {
            layers.add_go(table);
        }
    }
    Ok(layers)
}

/// Opens the file behind a mapping: by the mapping itself (right whatever the mount namespace, and for deleted files;
/// needs `CAP_CHECKPOINT_RESTORE`), else by its path under the process's root, else, when the process is gone, by its
/// path on the host. A path counts only if it leads to the inode that was mapped.
pub(super) fn open(config: &SymbolizerConfig, via: Via<'_>) -> Result<(File, FileIdentity), Outcome> {
    let Via { pid, alive, mapping } = via;
    if let Some(found) = &mapping.found {
        return found.open(config);
    }
    let max = config.max_file_bytes;
    let mut outcome = Outcome::ProcessGone;
    if alive {
        let process = config.proc.join(pid.to_string());
        let range = format!("map_files/{:x}-{:x}", mapping.range.start, mapping.range.end);
        match open_regular(&config.proc, &process.join(range), max) {
            Ok((file, metadata)) => return Ok((file, headers::identity(&metadata))),
            Err(why @ (Outcome::TooLarge | Outcome::OddFile)) => return Err(why),
            Err(_) => {}
        }
        match open_in_root(&config.proc, &process.join("root"), &mapping.path, max) {
            Ok((file, metadata)) if metadata.ino() == mapping.inode => {
                return Ok((file, headers::identity(&metadata)));
            }
            Ok(_) => {}
            Err(why) => outcome = why,
        }
    }
    // It may have ended meanwhile.
    if outcome == Outcome::ProcessGone {
        match open_regular(&config.proc, &PathBuf::from(&*mapping.path), max) {
            Ok((file, metadata)) if metadata.ino() == mapping.inode => {
                return Ok((file, headers::identity(&metadata)));
            }
            Err(why @ Outcome::TooLarge) => outcome = why,
            _ => {}
        }
    }
    Err(outcome)
}

pub(super) fn own_vdso(proc: &Path) -> Result<File, Outcome> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(proc.join("self/maps")).map_err(|_| Outcome::ElfError)?;
    let mapping = super::maps::parse(&maps)
        .into_iter()
        .find(|m| &*m.path == "[vdso]");
    let range = mapping.ok_or(Outcome::NoModule)?.range;
    let len = usize::try_from(range.end - range.start).map_err(|_| Outcome::TooLarge)?;
    let mut bytes = vec![0; len.min(1 << 20)];
    let memory = File::open(proc.join("self/mem")).map_err(|_| Outcome::ElfError)?;
    memory
        .read_exact_at(&mut bytes, range.start)
        .map_err(|_| Outcome::ElfError)?;
    image::from_bytes(&bytes)
}
