//! The only module that knows every stage: three threads, one that reads the kernel side, one that names
//! and sums, and one that makes unwind tables.

mod alarm;
mod alloc;
mod clock;
mod descriptors;
mod drain;
mod environment;
mod first_stack;
mod growth;
mod kill_switch;
mod naming;
mod own;
mod recording;
mod sampling;
mod stack_cost;
mod unwind;
mod watching;

pub use environment::load;
pub(crate) use own::keep_little_freed_memory;
pub use recording::Recording;
pub use stack_cost::stack_cost;

use std::collections::{BTreeMap, HashSet};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc,
};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aya::maps::{MapData, RingBuf};
use tokio::sync::watch;

use crate::aggregate::{Limits, Snapshot};
use crate::attribute::{Attributor, OomVictim, ServiceRule, SlotId, StackSample, UnwindResult};
use crate::config::{Config, RuleTable};
use crate::decode::{
    events::{Events, More},
    harvest::{Harvest, Windows},
    ranges::take_ranges,
};
use crate::governor::{Governor, calibrate};
use crate::host::Host;
use crate::load::{Loaded, status::ProbeStatus};
use crate::symbolize::SymbolizerConfig;
use crate::telemetry::Telemetry;

use self::alarm::Alarm;
use self::clock::monotonic_ns;
use self::descriptors::Following;
use self::first_stack::Waiting;
use self::growth::GrowthNews;
use self::naming::{Batch, News, name_and_sum, symbols};
use self::sampling::{ListenSampling, PoolSampling, wait_mean};
use self::unwind::Unwinding;
use self::watching::Watching;

/// How often the ring buffer is drained.
const DRAIN: Duration = Duration::from_millis(100);

/// Where readers look: replaced as a whole after each tick.
pub struct Publish {
    /// Services.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// The agent itself.
    pub telemetry: watch::Sender<Arc<Telemetry>>,
    /// Probes.
    pub probes: watch::Sender<Arc<Vec<ProbeStatus>>>,
}

/// Starts both threads. They stop when `stop` is set; everything is detached when the first one ends. Of a recording, they
/// publish what happened until then.
pub fn start(
    host: Host,
    config: Config,
    publish: Publish,
    recording: Option<Recording>,
    stop: Arc<AtomicBool>,
) -> Result<Vec<thread::JoinHandle<Result<()>>>> {
    let (send, receive) = mpsc::sync_channel(16);
    let limits = Limits {
        top: config.top,
        services: config.services_limit,
        peers: config.peers_limit,
        series: config.series_limit,
        retention: config.retention,
        service_idle: config.service_idle,
        alloc_period: config.alloc_period,
        wait_hold: recording::wait_hold(recording.is_some()),
        ..Limits::default()
    };
    let mut symbols = symbols(&config)?;
    if recording.is_some() {
        // Somebody waits for all names.
        symbols.read_burst = Duration::MAX;
    }
    let host_of_names = host.clone();
    let unwind_symbols = symbols.clone();
    let naming = thread::Builder::new()
        .name("symbolize".to_owned())
        .spawn(move || {
            name_and_sum(&host_of_names, &receive, symbols, limits, &publish);
            Ok(())
        })?;
    let service_rules: Vec<ServiceRule> = RuleTable::read_all(&config.service_rules)?;
    let loaded = load(&host, &config)?;
    let reading = thread::Builder::new().name("kernel".to_owned()).spawn(move || {
        Reader::new(host, config, loaded, service_rules, unwind_symbols, send)?.run(&stop, recording)
    })?;
    Ok(vec![reading, naming])
}

/// The thread that reads the kernel side.
struct Reader {
    host: Host,
    config: Config,
    loaded: Loaded,
    ring: RingBuf<MapData>,
    alarm: Alarm,
    events: Events,
    harvest: Harvest,
    attributor: Attributor,
    governor: Governor,
    samples: Vec<StackSample>,
    growth: GrowthNews,
    oom_victims: Vec<(SlotId, OomVictim)>,
    closed: Vec<SlotId>,
    unwound: BTreeMap<UnwindResult, u64>,
    unwinding: Unwinding,
    first_stacks: Waiting,
    pools: PoolSampling,
    listeners: ListenSampling,
    watching: Watching,
    descriptors: Following,
    send: mpsc::SyncSender<News>,
    /// Processes of which the other thread was told in this tick.
    noted: HashSet<(SlotId, u32)>,
    wait_samples: u64,
    start_unix_seconds: f64,
    ticks: u64,
    tick_seconds_total: f64,
    /// Events that no program of a probe saw.
    missed: BTreeMap<&'static str, u64>,
    killed: bool,
}

impl Reader {
    fn new(
        host: Host,
        config: Config,
        mut loaded: Loaded,
        rules: Vec<ServiceRule>,
        symbols: SymbolizerConfig,
        send: mpsc::SyncSender<News>,
    ) -> Result<Self> {
        let unwinding = Unwinding::start(loaded.unwind_maps()?, symbols, config.unwind_memory_bytes)?;
        let watching = Watching::start(&mut loaded, &host, &config)?;
        let ring = loaded.events()?;
        let cpus = host.online_cpus()?.len();
        let costs = calibrate(&mut loaded)?;
        let governor = Governor::new(config.syscall_mode, costs, cpus, config.cpu_limit_ratio);
        Ok(Self {
            alarm: Alarm::new(&ring)?,
            ring,
            events: Events::default(),
            harvest: Harvest::new(),
            attributor: Attributor::new(host.clone(), config.min_age, config.services_limit, rules),
            governor,
            samples: Vec::new(),
            growth: GrowthNews::default(),
            oom_victims: Vec::new(),
            closed: Vec::new(),
            unwound: BTreeMap::new(),
            unwinding,
            first_stacks: Waiting::default(),
            pools: PoolSampling::new(),
            listeners: ListenSampling::new(),
            watching,
            descriptors: Following::default(),
            send,
            noted: HashSet::new(),
            wait_samples: 0,
            start_unix_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0.0, |since| since.as_secs_f64()),
            ticks: 0,
            tick_seconds_total: 0.0,
            missed: BTreeMap::new(),
            killed: false,
            host,
            config,
            loaded,
        })
    }

    fn run(&mut self, stop: &AtomicBool, recording: Option<Recording>) -> Result<()> {
        let recorded = self.record(recording);
        self.find()?;
        // What was counted up to here is the agent's own start (calibration included): the first tick begins now.
        self.drain(Instant::now());
        self.harvest.tick(&mut self.loaded, Windows::ALL)?;
        self.governor.finish_tick(&mut self.loaded)?;
        self.governor.go_on(&mut self.loaded)?;
        let mut next_tick = Instant::now() + self.config.interval.min(Duration::from_secs(1));
        let mut next_drain = Instant::now();
        let pause = recorded.map_or(DRAIN, recording::begin);
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if now >= next_drain {
                if let Some(last) = self.kill_switch(now)?
                    && self.send.send(News::Batch(Box::new(last))).is_err()
                {
                    return Ok(());
                }
                self.drain(now);
                self.attributor.settle(now);
                if !self.killed {
                    self.follow(now);
                }
                next_drain = now + pause;
            }
            if !self.killed {
                self.governor.turn(&mut self.loaded, now)?;
                self.pools.turn(&mut self.loaded, now);
                self.listeners.turn(&mut self.loaded, now);
            }
            if now >= next_tick {
                let batch = self.tick(now)?;
                if self.send.send(News::Batch(Box::new(batch))).is_err() {
                    return Ok(());
                }
                next_tick = now + self.config.interval;
            }
            let mut wake = next_drain.min(next_tick);
            if !self.killed {
                let turns = [
                    self.governor.next_turn(),
                    self.pools.next_turn(),
                    self.listeners.next_turn(),
                ];
                wake = turns.into_iter().fold(wake, Instant::min);
            }
            if self.alarm.sleep(wake) {
                next_drain = Instant::now();
            }
        }
        self.end(pause)
    }

    fn tick(&mut self, now: Instant) -> Result<Batch> {
        let began = Instant::now();
        self.drain(now);
        let windows = self.governor.finish_tick(&mut self.loaded)?;
        let mut tick = self.harvest.tick(&mut self.loaded, windows)?;
        self.governor.go_on(&mut self.loaded)?;
        self.pools.finish(&mut self.loaded, &mut tick);
        self.listeners.finish(&mut self.loaded, &mut tick);
        // Before the last look at the ring: a sample is there before what it stands for is given back.
        self.growth.known_ns = monotonic_ns();
        self.growth.ranges = take_ranges(&mut self.loaded)?;
        self.watching.finish(&mut tick, &mut self.samples);
        self.drain(now);
        let late: Vec<_> = self.events.waits().turn().collect();
        for sample in late {
            self.sampled(sample, More::Nothing, now);
        }
        let openings = self.descriptors.attached();
        let allowed = self.governor.allows_openings();
        let fds = self.descriptors.tick(&mut self.loaded, &mut tick, allowed)?;
        // Quiet ones may not have been sampled by anything else, and their stacks are to have all frames.
        for (slot, pid) in &fds.watched {
            self.unwinding.look(*slot, *pid);
        }
        let length = tick.length_ns;
        let attributed = self.attributor.attribute(tick);
        for slot in std::mem::take(&mut self.closed) {
            // Closed while the tick was read: it is read once more in the next one.
            if self.harvest.holds(slot) {
                self.closed.push(slot);
            } else {
                self.attributor.finish(slot, now);
            }
        }
        let samples = std::mem::take(&mut self.samples)
            .into_iter()
            .map(|mut sample| {
                sample.stand_for_all(windows.ratio);
                let service = self.attributor.service_of(sample.slot);
                (sample, service)
            })
            .collect();
        let oom_victims = std::mem::take(&mut self.oom_victims)
            .into_iter()
            .map(|(slot, victim)| (self.attributor.service_of(slot), victim))
            .collect();
        let fds = descriptors::of_services(fds, |slot| self.attributor.service_of(slot));
        let waits = self.events.waits().take_samples();
        self.wait_samples += waits;
        if let Some(mean) = wait_mean(
            self.loaded.tuning().wait_mean,
            waits as f64 / (length as f64 / 1e9),
            self.governor.wait_budget(),
        ) {
            self.loaded.set_tuning(|tuning| tuning.wait_mean = mean)?;
        }
        self.noted.clear();
        self.ticks += 1;
        let telemetry = self.telemetry(windows.ratio, openings, length, began)?;
        Ok(Batch {
            tick: attributed,
            samples,
            captured: self.events.captured().take(),
            growth: std::mem::take(&mut self.growth),
            oom_victims,
            fds,
            infos: self.attributor.infos(),
            probes: self.loaded.statuses(),
            telemetry,
        })
    }
}
