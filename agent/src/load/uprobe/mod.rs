//! Programs for uprobe-multi links: many places of a file with one link, of one process, each place with a number of its own
//! (the cookie), and gone within a millisecond after the link is closed. Perf-style uprobes, which are all that aya has, stay
//! live for 35 to 50 ms after that, too long for short windows.

mod sys;

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use agent_ebpf::wire::{AllocClock, AllocCounts, AllocTarget, LiveKey, LiveValue};
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, MapData};

use super::maps::{self, Plain};
use super::status::Verdict;
use super::sys::lookup_all;

/// Names of the programs, in the order of [`UprobePrograms::programs`].
pub(super) const PROGRAMS: [&str; 3] = ["alloc_enter", "alloc_return", "alloc_free"];

/// Loaded programs, attached to nothing.
struct UprobePrograms {
    programs: [OwnedFd; 3],
}

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocProgram {
    /// At the entry of functions that allocate.
    Enter = 0,
    /// At their return instructions.
    Return = 1,
    /// At the entry of functions that free.
    Free = 2,
}

/// Breakpoints in a process; gone when dropped.
#[derive(Debug)]
pub struct UprobeLink {
    _link: OwnedFd,
}

/// A place in a file, and the cookie of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset in the file.
    pub offset: u64,
    /// What the program is told there.
    pub cookie: u64,
}

/// Everything of the kernel side that concerns allocations. Independent of [`super::Loaded`], so that a thread of its own can
/// have it.
pub struct AllocSide {
    programs: UprobePrograms,
    targets: Array<MapData, Plain<AllocTarget>>,
    counts: Array<MapData, Plain<AllocCounts>>,
    clocks: aya::maps::HashMap<MapData, u32, Plain<AllocClock>>,
    live: aya::maps::HashMap<MapData, Plain<LiveKey>, Plain<LiveValue>>,
    live_fd: OwnedFd,
}

/// Loads the programs; `object` is the one that `ebpf` was made of, so its maps are known there by their names.
pub(super) fn load(ebpf: &Ebpf, object: &[u8]) -> Result<[OwnedFd; 3], (Verdict, String)> {
    let broken = |error: anyhow::Error| (Verdict::Broken, super::attach::explain(&error));
    let mut parsed = aya_obj::Object::parse(object)
        .context("parse the BPF object")
        .map_err(broken)?;
    let features = aya::features();
    let btf = features
        .btf()
        .context("the kernel takes no type information of programs")
        .and_then(|features| {
            let btf = parsed.fixup_and_sanitize_btf(features)?;
            let btf = btf.context("the BPF object has no type information")?;
            sys::load_btf(&btf.to_bytes()).context("load the object's type information")
        })
        .map_err(broken)?;
    let objects: Vec<_> = parsed.maps.drain().collect();
    let found = objects.iter().filter_map(|(name, object)| {
        let data = maps::data(ebpf.map(name)?)?;
        Some((name.as_str(), data.fd().as_fd().as_raw_fd(), object))
    });
    let text: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
    parsed
        .relocate_maps(found, &text)
        .context("relocate maps")
        .and_then(|()| parsed.relocate_calls(&text).context("relocate calls"))
        .map_err(broken)?;
    parsed.sanitize_functions(features);
    let mut loaded = Vec::new();
    for name in PROGRAMS {
        let program = parsed.programs.get(name);
        let function = program.and_then(|program| parsed.functions.get(&program.function_key()));
        let (program, function) = program
            .zip(function)
            .with_context(|| format!("the object has no program {name}"))
            .map_err(broken)?;
        let fd = sys::load(&sys::Program {
            name,
            license: &program.license,
            instructions: &function.instructions,
            btf: btf.as_fd(),
            functions: (&function.func_info.func_info_bytes(), function.func_info_rec_size),
            lines: (&function.line_info.line_info_bytes(), function.line_info_rec_size),
        })
        .map_err(|(error, log)| {
            tracing::debug!(%log, "verifier");
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
            let error = anyhow::Error::from(error).context(format!("{name}: the kernel refused it: {tail}"));
            broken(error)
        })?;
        loaded.push(fd);
    }
    loaded
        .try_into()
        .map_err(|_| (Verdict::Broken, "three programs".to_owned()))
}

/// Whether the kernel makes such links: it is asked for one in a file that does not exist, and says so where it knows them.
pub(super) fn works(programs: &[OwnedFd; 3]) -> Result<(), (Verdict, String)> {
    let nowhere = c"/proc/self/no-such-file";
    match sys::link(programs[0].as_fd(), nowhere, &[0], &[0], std::process::id()) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err((
            Verdict::Unsupported,
            "this kernel has no uprobe-multi links: it needs Linux 6.6".to_owned(),
        )),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err((
            Verdict::Broken,
            super::attach::explain(&anyhow::Error::from(error).context("make a uprobe-multi link")),
        )),
        _ => Ok(()),
    }
}

impl AllocSide {
    /// Puts programs and maps together.
    pub(super) fn new(
        programs: [OwnedFd; 3],
        mut take: impl FnMut(&str) -> Result<aya::maps::Map>,
    ) -> Result<Self> {
        let live = take("ALLOC_LIVE")?;
        let live_fd = maps::data(&live)
            .context("ALLOC_LIVE is no map that can be read")?
            .fd()
            .as_fd()
            .try_clone_to_owned()?;
        Ok(Self {
            programs: UprobePrograms { programs },
            targets: Array::try_from(take("ALLOC_TARGETS")?)?,
            counts: Array::try_from(take("ALLOC_COUNTS")?)?,
            clocks: aya::maps::HashMap::try_from(take("ALLOC_CLOCKS")?)?,
            live: aya::maps::HashMap::try_from(live)?,
            live_fd,
        })
    }

    /// Attaches a program at these places of a file in one process.
    pub fn attach(
        &self,
        program: AllocProgram,
        path: &Path,
        places: &[Place],
        pid: u32,
    ) -> io::Result<UprobeLink> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
        let cookies: Vec<u64> = places.iter().map(|place| place.cookie).collect();
        let program = self.programs.programs[program as usize].as_fd();
        sys::link(program, &path, &offsets, &cookies, pid).map(|link| UprobeLink { _link: link })
    }

    /// Describes a watched allocator.
    pub fn set_target(&mut self, index: u32, target: AllocTarget) -> Result<()> {
        Ok(self.targets.set(index, Plain(target), 0)?)
    }

    /// What a watched allocator did so far.
    pub fn counts(&self, index: u32) -> Result<AllocCounts> {
        Ok(self.counts.get(&index, 0)?.0)
    }

    /// From now on it is counted where the CPU clock meets a process.
    pub fn clock(&mut self, pid: u32) -> Result<()> {
        Ok(self.clocks.insert(pid, Plain(AllocClock::default()), 0)?)
    }

    /// Where it met the process since then; nothing where that is not counted.
    pub fn clocked(&self, pid: u32) -> AllocClock {
        self.clocks.get(&pid, 0).map(|clock| clock.0).unwrap_or_default()
    }

    /// It is counted no more.
    pub fn unclock(&mut self, pid: u32) {
        // It may never have been.
        let _ = self.clocks.remove(&pid);
    }

    /// All sampled allocations that live.
    pub fn live(&self) -> Result<Vec<(LiveKey, LiveValue)>> {
        let pairs = lookup_all::<Plain<LiveKey>, Plain<LiveValue>>(self.live_fd.as_fd())
            .context("read the table of live allocations")?;
        Ok(pairs.into_iter().map(|(key, value)| (key.0, value.0)).collect())
    }

    /// Forgets an allocation, of a process that is gone.
    pub fn forget(&mut self, key: LiveKey) {
        // It may have been freed just now.
        let _ = self.live.remove(&Plain(key));
    }
}
