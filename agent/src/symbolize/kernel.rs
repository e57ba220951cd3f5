//! Kernel symbols.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::{Engine, Part};
use super::lru::Lru;
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
    engine: Engine,
    loaded: Instant,
    /// When the list was last asked, while it is in memory.
    asked: Option<Instant>,
    cache: Lru<u64, (Vec<Part>, Outcome)>,
    module: Arc<str>,
}

impl KernelSymbols {
    pub(super) fn new(config: &SymbolizerConfig) -> Self {
        let kallsyms = config.proc.join("kallsyms");
        Self {
            hidden: all_zero(&kallsyms),
            kallsyms,
            engine: Engine::new(),
            loaded: Instant::now(),
            asked: None,
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
        let frame = |function: Option<Arc<str>>| Frame {
            function,
            file: None,
            line: 0,
            module: Arc::clone(&self.module),
            build_id: None,
            address,
            inlined: false,
            kernel: true,
        };
        match self.cache.get(&look_up) {
            Some((parts, outcome)) if !parts.is_empty() => {
                frames.extend(parts.iter().map(|part| frame(part.function.clone())));
                *outcome
            }
            Some((_, outcome)) => {
                frames.push(frame(None));
                *outcome
            }
            None => Outcome::NoSymbol,
        }
    }

    /// Lets go of the list, 8 MiB, when it was not asked for a while: what is on hot paths is known by then.
    pub(super) fn release_idle(&mut self, idle: Duration) {
        if self.asked.is_some_and(|asked| asked.elapsed() >= idle) {
            self.asked = None;
            self.engine.forget_all();
        }
    }

    fn look_up(&mut self, address: u64) -> (Vec<Part>, Outcome) {
        if self.hidden {
            return (Vec::new(), Outcome::KernelHidden);
        }
        self.asked = Some(Instant::now());
        let mut found = self.engine.kernel(&self.kallsyms, address);
        if found.is_err() && self.loaded.elapsed() >= RELOAD_EVERY {
            self.engine.forget_all();
            self.loaded = Instant::now();
            found = self.engine.kernel(&self.kallsyms, address);
        }
        match found {
            Ok(parts) => (parts, Outcome::Ok),
            Err(outcome) => (Vec::new(), outcome),
        }
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
        assert!(kernel.asked.is_some());
        kernel.release_idle(Duration::ZERO);
        assert!(kernel.asked.is_none());
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
