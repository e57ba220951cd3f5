//! Limits and sources of symbolization.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{OwnerRule, Seen};

/// Everything that bounds the symbolizer; the defaults suit a host with a few hundred processes.
#[derive(Clone, Debug)]
pub struct SymbolizerConfig {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// The host's root: debug files are looked for here, after the process's own root.
    pub root: PathBuf,
    /// Largest file that is opened for symbols, in bytes. What a file costs is what is read of it, which has limits of its own.
    pub max_file_bytes: u64,
    /// Most bytes of symbol tables and debug sections kept of one file; a file whose debug sections are larger keeps
    /// its symbol tables only.
    pub max_image_bytes: u64,
    /// Most bytes kept of all files together.
    pub max_images_bytes: u64,
    /// A file that no look-up needed for this long is let go (resolved addresses stay cached).
    pub image_idle: Duration,
    /// CPU time that reading one file may take: over it, its debug information is given up, then the file.
    pub max_parse: Duration,
    /// Share of one CPU that reading files may take on average; what is needed meanwhile waits.
    pub read_share: f64,
    /// CPU time that is saved up for it at most, and there at the start.
    pub read_burst: Duration,
    /// Processes whose memory map is kept.
    pub max_processes: usize,
    /// Files known at one time.
    pub max_modules: usize,
    /// Resolved addresses kept.
    pub max_addresses: usize,
    /// Resolved stacks kept.
    pub max_stacks: usize,
    /// Largest perf map file (`/tmp/perf-PID.map`) that is read, in bytes.
    pub max_perf_map_bytes: u64,
    /// A memory map older than this is read again when its process is seen.
    pub maps_max_age: Duration,
    /// Memory maps that were read for unwind tables: both sides have it in common.
    pub seen: Arc<Seen>,
    /// Servers of debug files.
    pub debuginfod: DebuginfodConfig,
    /// The user's owner rules, tried before the built-in ones.
    pub owner_rules: Vec<OwnerRule>,
}

/// Servers of debug files, and what fetching may take.
#[derive(Clone, Debug)]
pub struct DebuginfodConfig {
    /// Base addresses, asked in this order; none: nothing is ever asked for.
    pub urls: Vec<String>,
    /// Directory where fetched files are kept.
    pub cache: PathBuf,
    /// Most bytes kept there.
    pub max_cache_bytes: u64,
    /// Largest file that is fetched, in bytes.
    pub max_file_bytes: u64,
    /// Longest time that one server has for one file.
    pub timeout: Duration,
    /// When the same file is asked for again.
    pub again: Duration,
}

impl Default for DebuginfodConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            cache: PathBuf::from("/var/cache/tieback"),
            max_cache_bytes: 512 << 20,
            max_file_bytes: 128 << 20,
            timeout: Duration::from_secs(120),
            again: Duration::from_secs(600),
        }
    }
}

impl Default for SymbolizerConfig {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/").join("proc"),
            root: PathBuf::from("/"),
            max_file_bytes: 64 << 30,
            max_image_bytes: 48 << 20,
            max_images_bytes: 24 << 20,
            image_idle: Duration::from_secs(30),
            max_parse: Duration::from_secs(5),
            read_share: 0.03,
            read_burst: Duration::from_secs(10),
            max_processes: 1024,
            max_modules: 4096,
            max_addresses: 65_536,
            max_stacks: 2048,
            max_perf_map_bytes: 32 << 20,
            maps_max_age: Duration::from_secs(30),
            seen: Arc::default(),
            debuginfod: DebuginfodConfig::default(),
            owner_rules: Vec::new(),
        }
    }
}
