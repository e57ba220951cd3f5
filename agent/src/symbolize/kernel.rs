//! Kernel symbols.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kallsyms::Kallsyms;
use super::lru::Lru;
use super::name::Names;
use super::{Frame, Outcome, SymbolizerConfig};

/// Kernel addresses kept; the hot paths into the scheduler are a few hundred.
const MAX_ADDRESSES: usize = 16_384;
/// Modules and BPF programs come and go: an unknown address may cause the list to be read again this often.
const RELOAD_EVERY: Duration = Duration::from_secs(600);

/// Resolves kernel addresses by `/proc/kallsyms`.
#[derive(Debug)]
pub(super) struct KernelSymbols {
    kallsyms: PathBuf,
    hidden: bool,
    names: Names,
    loaded: Instant,
    /// The list, and when it was last asked.
    list: Option<(Kallsyms, Instant)>,
    cache: Lru<u64, (Option<Arc<str>>, Outcome)>,
    module: Arc<str>,
}

impl KernelSymbols {
    pub(super) fn new(config: &SymbolizerConfig) -> Self {
        let kallsyms = config.proc.join("kallsyms");
        Self {
            hidden: all_zero(&kallsyms),
            kallsyms,
            names: Names::default(),
            loaded: Instant::now(),
            list: None,
            cache: Lru::new(MAX_ADDRESSES),
            module: "[kernel]".into(),
        }
    }

    /// The kernel gives no addresses to this process (`kernel.kptr_restrict` without `CAP_SYSLOG`).
    pub(super) fn hidden(&self) -> bool {
        self.hidden
    }

    /// Appends the frames at an address.
    pub(super) fn resolve(&mut self, address: u64, look_up: u64, frames: &mut Vec<Frame>) -> Outcome {
        if self.cache.get(&look_up).is_none() {
            let answer = self.look_up(look_up);
            self.cache.insert(look_up, answer);
        }
        let (function, outcome) = self
            .cache
            .get(&look_up)
            .map_or((None, Outcome::NoSymbol), |(function, outcome)| {
                (function.clone(), *outcome)
            });
        frames.push(Frame {
            function,
            file: None,
            line: 0,
            module: Arc::clone(&self.module),
            build_id: None,
            address,
            inlined: false,
            kernel: true,
        });
        outcome
    }

    /// Lets go of the list when it was not asked for a while: what is on hot paths is known by then.
    pub(super) fn release_idle(&mut self, idle: Duration) {
        self.list.take_if(|(_, asked)| asked.elapsed() >= idle);
    }

    fn look_up(&mut self, address: u64) -> (Option<Arc<str>>, Outcome) {
        if self.hidden {
            return (None, Outcome::KernelHidden);
        }
        let mut found = self.find(address);
        if matches!(found, Ok(None)) && self.loaded.elapsed() >= RELOAD_EVERY {
            self.list = None;
            found = self.find(address);
        }
        match found {
            Ok(Some(name)) => (Some(name), Outcome::Ok),
            Ok(None) => (None, Outcome::NoSymbol),
            Err(_) => (None, Outcome::ElfError),
        }
    }

    /// Asks the list, which is read where it is not in memory.
    fn find(&mut self, address: u64) -> std::io::Result<Option<Arc<str>>> {
        let (list, asked) = match &mut self.list {
            Some(list) => list,
            none => {
                self.loaded = Instant::now();
                none.insert((Kallsyms::read(&self.kallsyms)?, self.loaded))
            }
        };
        *asked = Instant::now();
        Ok(list.find(address).and_then(|name| self.names.share(&name)))
    }
}

/// Whether the first symbols have no address; only per-CPU symbols of a few kernels are at 0 otherwise.
fn all_zero(kallsyms: &Path) -> bool {
    let Ok(file) = std::fs::File::open(kallsyms) else {
        return true;
    };
    BufReader::new(file).lines().take(1000).all(|line| {
        line.is_ok_and(|line| {
            line.split(' ')
                .next()
                .is_some_and(|address| address.bytes().all(|b| b == b'0'))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols(kallsyms: &str) -> (tempfile::TempDir, KernelSymbols) {
        let proc = tempfile::tempdir().unwrap();
        std::fs::write(proc.path().join("kallsyms"), kallsyms).unwrap();
        let config = SymbolizerConfig {
            proc: proc.path().into(),
            ..SymbolizerConfig::default()
        };
        let symbols = KernelSymbols::new(&config);
        (proc, symbols)
    }

    #[test]
    fn names_by_kallsyms() {
        let (_proc, mut kernel) = symbols(
            "ffffffff81000000 T _text\nffffffff81000100 T do_futex\nffffffff81000200 T __schedule\n\
             ffffffff81000300 T schedule\n",
        );
        assert!(!kernel.hidden());
        let mut frames = Vec::new();
        assert_eq!(
            kernel.resolve(0xffff_ffff_8100_0210, 0xffff_ffff_8100_020f, &mut frames),
            Outcome::Ok
        );
        assert_eq!(frames[0].function.as_deref(), Some("__schedule"));
        assert_eq!((&*frames[0].module, frames[0].kernel), ("[kernel]", true));
        assert_eq!(frames[0].address, 0xffff_ffff_8100_0210);
        // What was let go is read again when there is something new.
        kernel.release_idle(Duration::from_secs(3600));
        assert!(kernel.list.is_some());
        kernel.release_idle(Duration::ZERO);
        assert!(kernel.list.is_none());
        for (address, name) in [(0x0210, "__schedule"), (0x0310, "schedule")] {
            let address = 0xffff_ffff_8100_0000 + address;
            assert_eq!(kernel.resolve(address, address, &mut frames), Outcome::Ok);
            assert_eq!(frames.last().unwrap().function.as_deref(), Some(name));
        }
    }

    #[test]
    fn hidden_symbols_are_said_to_be_hidden() {
        let (_proc, mut kernel) = symbols("0000000000000000 T _text\n0000000000000000 T do_futex\n");
        assert!(kernel.hidden());
        let mut frames = Vec::new();
        assert_eq!(
            kernel.resolve(0xffff_ffff_8100_0210, 1, &mut frames),
            Outcome::KernelHidden
        );
        assert_eq!(frames[0].function, None);
        assert_eq!(frames[0].address, 0xffff_ffff_8100_0210);
    }
}
