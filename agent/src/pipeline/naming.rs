//! The thread that names what was sampled and sums what was counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use anyhow::Result;

use super::descriptors::{Names, OfServices};
use super::growth::{GrowthNews, NetGrowth};
use super::{Publish, own};
use crate::aggregate::{Aggregator, Limits, MemoryKind, OomKill};
use crate::attribute::{AttributedTick, OomVictim, Service, ServiceInfo, SlotId, StackSample};
use crate::config::{Config, RuleTable};
use crate::host::Host;
use crate::load::status::ProbeStatus;
use crate::symbolize::{
    CapturedModule, DebugFile, DebuginfodConfig, Fetched, Outcome, Owned, OwnerRule, Symbolizer,
    SymbolizerConfig,
};
use crate::telemetry::Telemetry;

/// What goes from the reading thread to the naming one.
pub(super) struct Batch {
    pub(super) tick: AttributedTick,
    pub(super) samples: Vec<(StackSample, Arc<Service>)>,
    /// Modules that came with samples of processes that were not known then.
    pub(super) captured: HashMap<(SlotId, u32), Vec<CapturedModule>>,
    pub(super) growth: GrowthNews,
    pub(super) oom_victims: Vec<(Arc<Service>, OomVictim)>,
    /// Descriptors that stay open.
    pub(super) fds: OfServices,
    pub(super) infos: Vec<(Arc<Service>, ServiceInfo)>,
    pub(super) probes: Vec<ProbeStatus>,
    pub(super) telemetry: Telemetry,
}

/// What the reading thread tells this one.
pub(super) enum News {
    /// A stack of this process was taken.
    Sampled(SlotId, u32),
    /// A tick ended.
    Batch(Box<Batch>),
}

/// What the reading thread told.
struct Inbox<'a> {
    news: &'a mpsc::Receiver<News>,
    /// A tick that ended while another one was named.
    waiting: Option<Box<Batch>>,
}

impl Inbox<'_> {
    /// A process that was sampled, of the news that are there up to the next tick's end: more ticks stay where the reading
    /// thread feels that this one is behind.
    fn sampled(&mut self) -> Option<(SlotId, u32)> {
        if self.waiting.is_some() {
            return None;
        }
        match self.news.try_recv().ok()? {
            News::Sampled(slot, pid) => Some((slot, pid)),
            News::Batch(batch) => {
                self.waiting = Some(batch);
                None
            }
        }
    }

    /// The next tick that ended; until then, processes that are sampled are noted.
    fn batch(&mut self, symbolizer: &mut Symbolizer) -> Option<Batch> {
        if let Some(batch) = self.waiting.take() {
            return Some(*batch);
        }
        loop {
            match self.news.recv().ok()? {
                News::Sampled(slot, pid) => symbolizer.note_process(slot, pid),
                News::Batch(batch) => return Some(*batch),
            }
        }
    }
}

pub(super) fn name_and_sum(
    host: &Host,
    receive: &mpsc::Receiver<News>,
    symbols: SymbolizerConfig,
    limits: Limits,
    publish: &Publish,
) {
    let fetching = !symbols.debuginfod.urls.is_empty();
    let mut symbolizer = Symbolizer::new(symbols);
    let mut aggregator = Aggregator::new(limits);
    let mut net = NetGrowth::default();
    let mut openers = Names::default();
    let (mut sheds, mut over) = (0, false);
    let mut inbox = Inbox {
        news: receive,
        waiting: None,
    };
    while let Some(batch) = inbox.batch(&mut symbolizer) {
        let began = Instant::now();
        symbolizer.captured(batch.captured);
        let (ids, stacks): (Vec<u64>, Vec<_>) = batch.fds.stacks.into_iter().unzip();
        let mut samples = symbolizer.resolve_batch(batch.samples, || inbox.sampled());
        net.tick(host, batch.growth, &samples);
        aggregator.set_net_growth(net.all());
        let stacks = symbolizer.resolve_batch(stacks, || inbox.sampled());
        for (id, sample) in ids.into_iter().zip(stacks) {
            openers.insert(id, &sample);
            samples.push(sample);
        }
        aggregator.open_fds(openers.open(&batch.fds.open));
        aggregator.tick(batch.tick, samples, &batch.infos);
        for (service, victim) in batch.oom_victims {
            log_oom_kill(&aggregator.oom_kill(service, victim));
        }
        let mut telemetry = batch.telemetry;
        let stats = symbolizer.stats();
        for outcome in Outcome::ALL {
            telemetry
                .symbolize
                .insert(outcome.as_str().to_owned(), stats.count(outcome));
        }
        for result in Owned::ALL {
            telemetry
                .owners
                .insert(result.as_str().to_owned(), stats.owned(result));
        }
        for result in DebugFile::ALL {
            telemetry
                .debug_files
                .insert(result.as_str().to_owned(), stats.debug_files(result));
        }
        for result in Fetched::ALL.into_iter().filter(|_| fetching) {
            let count = stats.fetched(result);
            telemetry
                .debug_file_requests
                .insert(result.as_str().to_owned(), count);
        }
        telemetry
            .debug_files
            .insert("refused".to_owned(), stats.debug_skipped);
        telemetry
            .lost
            .insert(("memory".to_owned(), "no_address".to_owned()), net.unlocated);
        telemetry.symbol_bytes = stats.image_bytes;
        telemetry.kernel_symbols_hidden = symbolizer.kernel_symbols_hidden();
        // What a tick needs is needed again after a whole window only.
        own::give_back_freed_memory();
        telemetry.resident_bytes = host.own_resident_bytes().unwrap_or(0);
        if telemetry.resident_bytes + telemetry.bpf_map_bytes > telemetry.memory_limit_bytes {
            // Symbols are the largest part by far, and can be read again.
            symbolizer.forget();
            sheds += 1;
            if !over {
                tracing::warn!(
                    resident_bytes = telemetry.resident_bytes,
                    bpf_map_bytes = telemetry.bpf_map_bytes,
                    limit = telemetry.memory_limit_bytes,
                    "over the memory limit: cached symbols are let go after each tick"
                );
            }
            over = true;
        } else {
            over = false;
        }
        telemetry.memory_sheds = sheds;
        telemetry.tick_seconds += began.elapsed().as_secs_f64();
        // Readers that are gone do not stop the counting.
        let _ = publish.probes.send(Arc::new(batch.probes));
        let _ = publish.telemetry.send(Arc::new(telemetry));
        let _ = publish.snapshot.send(aggregator.snapshot());
    }
}

fn log_oom_kill(kill: &OomKill) {
    let growth: Vec<String> = kill
        .growth
        .iter()
        .map(|(code, bytes)| format!("{} ({}) {bytes}", code.function, code.file))
        .collect();
    let [anon, file] =
        [MemoryKind::Anon, MemoryKind::File].map(|kind| kill.victim.resident_bytes[kind.index()]);
    tracing::warn!(
        service = kill.service.name,
        namespace = kill.service.namespace,
        version = kill.service.version,
        pid = kill.victim.pid,
        comm = kill.victim.comm,
        anon_bytes = anon,
        file_bytes = file,
        grown_bytes = growth.join(", "),
        "killed by the kernel for memory"
    );
}

/// How stacks are named, by the configuration.
pub(super) fn symbols(config: &Config) -> Result<SymbolizerConfig> {
    let owner_rules: Vec<OwnerRule> = RuleTable::read_all(&config.owner_rules)?;
    Ok(SymbolizerConfig {
        proc: config.host_root.join("proc"),
        root: root_of_host(&config.host_root),
        owner_rules,
        debuginfod: DebuginfodConfig {
            urls: config.debuginfod_urls.clone(),
            cache: config.debuginfod_cache.clone(),
            ..DebuginfodConfig::default()
        },
        ..SymbolizerConfig::default()
    })
}

/// Where the host's own debug files are: for an agent in a container without mounts, the first process has the host's root.
fn root_of_host(configured: &Path) -> PathBuf {
    let of_first = configured.join("proc").join("1").join("root");
    if configured.parent().is_none() && of_first.is_dir() {
        of_first
    } else {
        configured.to_owned()
    }
}
