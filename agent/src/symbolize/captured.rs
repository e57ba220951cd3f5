//! Files of processes that are gone, by what the kernel side captured with their samples: the numbers of device and inode, size
//! and time of the last change.
//!
//! Other processes mostly have the same file mapped, or had: their memory maps tell its path. Else the filesystem is asked
//! for the number itself. Whichever way, a file counts only if number, size and time are those that were captured.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::headers::{FileIdentity, identity};
use super::maps::Mapping;
use super::module::{ModuleId, Modules, Via, open};
use super::open::open_handle;
use super::process::Processes;
use super::{CapturedCode, CapturedFile, CapturedModule, Outcome, SymbolizerConfig};
use crate::host::open_by_number;

/// Files that are remembered, found or not, at most.
const MAX: usize = 4096;
/// How long a file that was not found is not looked for again, and the way to one that was found is taken for good.
const AGAIN: Duration = Duration::from_secs(2);

/// How a file is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// As another process has it mapped.
    Process(u32, Mapping),
    /// By its number.
    Number,
}

/// A captured file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    file: CapturedFile,
    way: Way,
}

/// What is remembered of a file.
#[derive(Debug)]
struct Known {
    /// `None` where it was not found.
    found: Option<(ModuleId, Arc<str>, Arc<Found>)>,
    looked: Instant,
}

/// The files that were looked for.
#[derive(Debug, Default)]
pub(super) struct CapturedFiles {
    known: HashMap<CapturedFile, Known>,
}

impl Found {
    /// Opens it, by the way that it was found.
    pub(super) fn open(&self, config: &SymbolizerConfig) -> Result<(File, FileIdentity), Outcome> {
        let (file, found) = match &self.way {
            Way::Number => by_number(config, &self.file).map(|(file, _, found)| (file, found))?,
            Way::Process(pid, mapping) => through(config, *pid, mapping)?,
        };
        if is(&self.file, found) {
            Ok((file, found))
        } else {
            Err(Outcome::ProcessGone)
        }
    }
}

/// Whether what was opened is what was captured. The device is left out: some filesystems (btrfs, overlayfs) show another one
/// than they have.
fn is(captured: &CapturedFile, opened: FileIdentity) -> bool {
    let (_, inode, size, mtime, mtime_nsec) = opened;
    (captured.inode, captured.size, captured.mtime) == (inode, size, (mtime, mtime_nsec))
}

/// As a process has it mapped, or had, where it is gone, too.
fn through(config: &SymbolizerConfig, pid: u32, mapping: &Mapping) -> Result<(File, FileIdentity), Outcome> {
    let via = |alive| Via { pid, alive, mapping };
    open(config, via(true)).or_else(|_| open(config, via(false)))
}

fn by_number(
    config: &SymbolizerConfig,
    captured: &CapturedFile,
) -> Result<(File, Arc<str>, FileIdentity), Outcome> {
    let handle = open_by_number(&config.proc, captured.device, captured.inode, captured.generation)
        .map_err(|_| Outcome::ProcessGone)?;
    let (file, metadata) = open_handle(&config.proc, &handle, config.max_file_bytes)?;
    let path = std::fs::read_link(config.proc.join(format!("self/fd/{}", file.as_raw_fd())))
        .map_err(|_| Outcome::ProcessGone)?;
    let path = path.to_string_lossy();
    let path = path.strip_suffix(" (deleted)").unwrap_or(&path);
    Ok((file, Arc::from(path), identity(&metadata)))
}

/// Looks for a file.
fn search(
    config: &SymbolizerConfig,
    modules: &mut Modules,
    processes: &Processes,
    captured: &CapturedFile,
    device: &str,
) -> Option<(ModuleId, Arc<str>, Arc<Found>)> {
    let found = |way| Arc::new(Found { file: *captured, way });
    for (pid, mapping) in processes.that_map(device, captured.inode) {
        if let Ok((file, opened)) = through(config, pid, &mapping)
            && is(captured, opened)
            && let Ok(id) = modules.identified(&file, opened, &mapping.path)
        {
            let path = Arc::clone(&mapping.path);
            return Some((id, path, found(Way::Process(pid, mapping))));
        }
    }
    let (file, path, opened) = by_number(config, captured).ok()?;
    if !is(captured, opened) || !path.starts_with('/') {
        return None;
    }
    let id = modules.identified(&file, opened, &path).ok()?;
    Some((id, path, found(Way::Number)))
}

/// The mapping that was captured, and its file, where it is found.
pub(super) fn mapping(
    config: &SymbolizerConfig,
    modules: &mut Modules,
    processes: &Processes,
    module: &CapturedModule,
) -> (Mapping, Option<ModuleId>) {
    let mut mapping = Mapping {
        range: module.start..module.end,
        offset: module.offset,
        device: "00:00".into(),
        inode: 0,
        path: "".into(),
        found: None,
    };
    let file = match &module.code {
        CapturedCode::Vdso => {
            mapping.path = "[vdso]".into();
            return (mapping, None);
        }
        CapturedCode::Memory => return (mapping, None),
        CapturedCode::File(file) => file,
    };
    // As `/proc/PID/maps` has it.
    mapping.device = format!("{:02x}:{:02x}", file.device.0, file.device.1).into();
    mapping.inode = file.inode;
    let known = modules.captured.known.get(file);
    let fresh = known.filter(|known| {
        let there = known.found.as_ref().is_none_or(|(id, ..)| modules.knows(*id));
        there && known.looked.elapsed() < AGAIN
    });
    let found = match fresh {
        Some(known) => known.found.clone(),
        None => {
            let found = search(config, modules, processes, file, &mapping.device);
            if modules.captured.known.len() >= MAX {
                modules.captured.known.clear();
            }
            let looked = Instant::now();
            let known = Known {
                found: found.clone(),
                looked,
            };
            modules.captured.known.insert(*file, known);
            found
        }
    };
    let Some((id, path, found)) = found else {
        return (mapping, None);
    };
    mapping.path = path;
    mapping.found = Some(found);
    (mapping, Some(id))
}
