//! Object → attached probes, one verdict each. The only stage that talks to the kernel's BPF side.

mod account;
mod attach;
mod elements;
mod environment;
mod files;
pub mod maps;
mod measure;
mod object;
mod sampler;
pub mod status;
mod switches;
mod sys;
mod tables;
mod unwind;
mod uprobe;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use agent_ebpf::{
    probe::{Attach, Probe},
    probes,
    wire::{ConnSample, ListenSample, Tuning, WATCHED},
};
use anyhow::{Context as _, Result};
use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, RingBuf},
};

pub use maps::Plain;
pub use measure::Measured;
pub use unwind::UnwindMaps;
pub use uprobe::{AllocProgram, AllocSide, Place, UprobeLink};

pub use self::environment::Environment;
use self::{
    status::{ProbeStatus, Verdict},
    switches::Switches,
};

/// The kernel side, compiled by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TIEBACK_BPF_OBJECT"));

/// The probe that is attached when it is needed only.
const OPENER: &str = "opener";

/// Whether somebody else than the kill switch decides when this probe is attached.
#[must_use]
pub fn on_demand(probe: &str) -> bool {
    matches!(probe, "syscall" | OPENER)
}

/// The loaded kernel side. Dropping it detaches and frees everything; so does the kernel when the agent is killed,
/// because nothing is pinned.
pub struct Loaded {
    ebpf: Ebpf,
    env: Environment,
    statuses: Vec<ProbeStatus>,
    links: attach::Links,
    tuning: Tuning,
    switches: Switches,
    /// Further handles of maps that others hold, so that their memory is counted.
    taken: Vec<OwnedFd>,
    uprobes: Option<[OwnedFd; 3]>,
}

/// The probe whose one program runs at each context switch.
const WAIT: &str = "wait";

impl Loaded {
    /// The knobs at the start: those of full detail.
    pub const DEFAULT_TUNING: Tuning = Tuning {
        wait_mean: 20_000,
        memory_pages: 256,
        syscall_every: 64,
        syscall_stack_every: 4096,
        conn_every: 1,
        window: 0,
        round: 0,
        cpu_period_ns: 1_000_000_000 / 19,
        listeners_only: 0,
        watched: [0; WATCHED],
    };

    /// Loads the object and attaches every probe that can be.
    pub fn new(env: Environment) -> Result<Self> {
        let btf = Btf::from_sys_fs().context(
            "the kernel offers no type information at /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF); \
             Tieback needs Linux 5.18 or newer with BTF",
        )?;
        let mut ebpf = open(&env, &btf)?;
        tables::fill(&mut ebpf, &env)?;
        if let Err(error) = files::learn(&mut ebpf) {
            tracing::warn!("some kinds of descriptors are not told apart: {error:#}");
        }
        let tuning = Tuning {
            cpu_period_ns: 1_000_000_000 / env.cpu_hz.max(1),
            ..Self::DEFAULT_TUNING
        };
        let mut loaded = Self {
            ebpf,
            env,
            statuses: Vec::new(),
            links: attach::Links::default(),
            tuning,
            switches: Switches::default(),
            taken: Vec::new(),
            uprobes: None,
        };
        loaded.set_tuning(|_| ())?;
        for probe in probes::ALL {
            let status = loaded.start(probe, &btf);
            match status.verdict {
                Verdict::Ok => tracing::debug!(probe = probe.name, "attached"),
                Verdict::Disabled => {
                    tracing::info!(probe = probe.name, reason = status.reason, "probe disabled");
                }
                _ => tracing::warn!(
                    probe = probe.name,
                    verdict = status.verdict.as_str(),
                    reason = status.reason,
                    "probe does not run"
                ),
            }
            loaded.statuses.push(status);
        }
        Ok(loaded)
    }

    fn start(&mut self, probe: &'static Probe, btf: &Btf) -> ProbeStatus {
        let status = |verdict, reason: String| ProbeStatus {
            probe: probe.name.to_owned(),
            program: probe.hooks.first().map_or("", |hook| hook.program).to_owned(),
            verdict,
            reason,
            attached: verdict == Verdict::Ok,
        };
        if self.env.disabled.contains(probe.name) {
            return status(Verdict::Disabled, "switched off by configuration".to_owned());
        }
        for (field, why) in self.env.layout.missing.values() {
            if probe.fields.contains(field) {
                return status(
                    Verdict::Unsupported,
                    format!("this kernel lacks a field that it reads: {why}"),
                );
            }
        }
        if probe.hooks.iter().any(|hook| hook.attach == Attach::UprobeMulti) {
            return match self.load_uprobes() {
                Ok(()) => status(Verdict::Ok, String::new()),
                Err((verdict, reason)) => status(verdict, reason),
            };
        }
        for hook in probe.hooks {
            match attach::load(&mut self.ebpf, hook, btf) {
                Ok(()) => {}
                Err((verdict, reason)) => return status(verdict, format!("{}: {reason}", hook.program)),
            }
        }
        match self.attach(probe) {
            Ok(()) => {
                if probe.name == OPENER {
                    self.links.detach(probe.name);
                }
                status(Verdict::Ok, String::new())
            }
            Err(error) => {
                self.links.detach(probe.name);
                status(Verdict::Broken, attach::explain(&error))
            }
        }
    }

    /// Loads what is attached process by process, later.
    fn load_uprobes(&mut self) -> Result<(), (Verdict, String)> {
        if !self.env.alloc {
            return Err((
                Verdict::Disabled,
                "no service has it switched on: --alloc SERVICE does".to_owned(),
            ));
        }
        let object = object::for_kernel(OBJECT, &self.env.layout, self.env.direct())
            .map_err(|error| (Verdict::Broken, format!("{error:#}")))?;
        let programs = uprobe::load(&self.ebpf, object.bytes())?;
        uprobe::works(&programs)?;
        self.uprobes = Some(programs);
        Ok(())
    }

    /// Takes what watches allocators; `None` where that is switched off or does not work.
    pub fn alloc_side(&mut self) -> Result<Option<AllocSide>> {
        let Some(programs) = self.uprobes.take() else {
            return Ok(None);
        };
        AllocSide::new(programs, |name| self.take(name)).map(Some)
    }

    fn attach(&mut self, probe: &'static Probe) -> Result<()> {
        for hook in probe.hooks {
            self.links.attach(&mut self.ebpf, probe.name, hook, &self.env)?;
        }
        if probe.name == WAIT {
            self.switches.begin(&self.env.host);
        }
        Ok(())
    }

    /// Runs of `wait_switch`: the kernel counts context switches anyway, and a counter of our own costs more than nothing.
    pub fn switches(&mut self) -> u64 {
        self.switches.read(&self.env.host)
    }

    /// Verdicts of all probes.
    #[must_use]
    pub fn statuses(&self) -> Vec<ProbeStatus> {
        let mut statuses = self.statuses.clone();
        for status in &mut statuses {
            status.attached = self.links.attached(&status.probe);
        }
        statuses
    }

    /// Whether a probe could be loaded and attached.
    #[must_use]
    pub fn works(&self, probe: &str) -> bool {
        self.statuses
            .iter()
            .any(|status| status.probe == probe && status.verdict == Verdict::Ok)
    }

    /// Attaches (`true`) or detaches a probe that works.
    pub fn switch(&mut self, name: &str, on: bool) -> Result<()> {
        if !self.works(name) || self.links.attached(name) == on {
            return Ok(());
        }
        if !on {
            if name == WAIT {
                self.switches.end(&self.env.host);
            }
            self.links.detach(name);
            return Ok(());
        }
        let probe = probes::ALL
            .iter()
            .find(|probe| probe.name == name)
            .context("no such probe")?;
        self.attach(probe)
    }

    /// Starts counting system calls after attaching their hooks, or stops before detaching them; returns the moment
    /// at which counting started or stopped.
    pub fn count_syscalls(&mut self, on: bool) -> Result<Instant> {
        if on {
            self.switch("syscall", true)?;
        }
        let at = self.hold_syscalls(!on)?;
        if !on {
            self.switch("syscall", false)?;
        }
        Ok(at)
    }

    /// Stops counting system calls or goes on, and leaves the hooks where they are; since when.
    pub fn hold_syscalls(&mut self, on: bool) -> Result<Instant> {
        if (self.tuning.window & 1 == 1) == on {
            self.set_tuning(|tuning| tuning.window = tuning.window.wrapping_add(1))?;
        }
        Ok(Instant::now())
    }

    /// Runs an iterator probe once and adds what it writes to `bytes`.
    pub fn visit(&mut self, program: &str, bytes: &mut Vec<u8>) -> Result<()> {
        attach::visit(&mut self.ebpf, program, bytes)
    }

    /// Hands out a record of each open connection, some at a time; none while `pool` is detached.
    pub fn connections(&mut self, some: impl FnMut(&[ConnSample])) -> Result<()> {
        match self.links.sampler("pool") {
            Some(sampler) => sampler.connections(conns(&self.ebpf)?, some),
            None => Ok(()),
        }
    }

    /// Adds what open connections moved until now to what is counted of them.
    pub fn settle(&mut self) -> Result<()> {
        match self.links.sampler("conn") {
            Some(sampler) => sampler.settle(conns(&self.ebpf)?),
            None => Ok(()),
        }
    }

    /// Adds a record of each listening socket to `samples`; none while `listen` is detached.
    pub fn listeners(&mut self, samples: &mut Vec<ListenSample>) -> Result<()> {
        match self.links.sampler("listen") {
            Some(sampler) => sampler.listeners(samples),
            None => Ok(()),
        }
    }

    /// Changes the knobs of the kernel side.
    pub fn set_tuning(&mut self, change: impl FnOnce(&mut Tuning)) -> Result<()> {
        change(&mut self.tuning);
        let mut map: Array<_, Plain<Tuning>> = Array::try_from(
            self.ebpf
                .map_mut("TUNING")
                .context("the object has no map TUNING")?,
        )?;
        map.set(0, Plain(self.tuning), 0)?;
        Ok(())
    }

    /// The knobs as they are.
    #[must_use]
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Access to the maps, for `decode`.
    pub fn maps(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Takes the maps of unwind tables, to be written by another thread.
    pub fn unwind_maps(&mut self) -> Result<UnwindMaps> {
        UnwindMaps::take(|name| self.take(name))
    }

    /// Takes the ring buffer of events, to be read without the rest.
    pub fn events(&mut self) -> Result<RingBuf<MapData>> {
        Ok(RingBuf::try_from(self.take("EVENTS")?)?)
    }

    fn take(&mut self, name: &str) -> Result<Map> {
        let map = self.ebpf.take_map(name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        if let Some(data) = maps::data(&map) {
            self.taken.push(data.fd().as_fd().try_clone_to_owned()?);
        }
        Ok(map)
    }

    /// Probes of which some program is an iterator that the agent runs on each tick.
    pub fn iterators(&self) -> impl Iterator<Item = &'static str> {
        probes::ALL
            .iter()
            .filter(|probe| self.links.attached(probe.name))
            .flat_map(|probe| probe.hooks)
            .filter(|hook| matches!(hook.attach, Attach::Iter(_)))
            .map(|hook| hook.program)
    }
}

/// Creates the maps, and finishes the programs for this kernel.
fn open(env: &Environment, btf: &Btf) -> Result<Ebpf> {
    let direct = env.direct();
    let object = object::for_kernel(OBJECT, &env.layout, direct)?;
    let agent = std::process::id();
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(btf))
        .override_global("AGENT_TGID", &agent, true)
        .override_global("RSS_STRIDE", &env.layout.rss_stride, true)
        .map_max_entries("THREADS", if direct { env.pid_max } else { 1 })
        .map_max_entries("THREADS_HASH", if direct { 1 } else { 65_536 });
    if !env.alloc {
        for map in ["ALLOC_TARGETS", "ALLOC_COUNTS", "ALLOC_LIVE", "ALLOC_CLOCKS"] {
            loader.map_max_entries(map, 1);
        }
    }
    for (map, entries) in &env.room {
        loader.map_max_entries(map, *entries);
    }
    loader.load(object.bytes()).context(
        "the kernel refused the BPF object; run as root or with CAP_BPF and CAP_PERFMON, and see `tieback doctor`",
    )
}

/// The map of connections.
fn conns(ebpf: &Ebpf) -> Result<BorrowedFd<'_>> {
    let map = ebpf.map("CONNS").and_then(maps::data);
    Ok(map.context("the object has no map CONNS")?.fd().as_fd())
}
