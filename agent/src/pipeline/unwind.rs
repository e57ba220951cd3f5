//! The threads that bring unwind tables to the kernel side: one that does, and one that makes the tables that take long.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError},
};
use std::thread;
use std::time::{Duration, Instant};

use agent_ebpf::wire::python::PythonProcess;
use agent_ebpf::wire::unwind::{BLOCK_WORDS, Mapping, Module, Page, Rule, Space, SpaceKey, UnwindResult};
use anyhow::Result;

use crate::attribute::SlotId;
use crate::load::UnwindMaps;
use crate::symbolize::SymbolizerConfig;
use crate::symbolize::unwind::{Job, Loader, LoaderStats, Made, Sink, Unsupported};
use crate::telemetry::UnwindTelemetry;

/// How often unused tables are looked for.
const TURN: Duration = Duration::from_secs(1);
/// News that wait while tables are made; more are lost, and come again with the next samples.
const QUEUE: usize = 4096;
/// News that come together are taken up for this long before what they changed is settled and shown.
const TOGETHER: Duration = Duration::from_millis(2);
/// How long tables are waited for.
const PATIENCE: Duration = Duration::from_secs(5);

impl Sink for UnwindMaps {
    fn rule(&mut self, number: u32, rule: Rule) -> Result<()> {
        self.rule(number, rule)
    }

    fn segment(&mut self, segment: u32, there: bool) -> Result<()> {
        self.segment(segment, there)
    }

    fn block(&mut self, segment: u32, block: u32, words: &[u16; BLOCK_WORDS as usize]) -> Result<()> {
        self.block(segment, block, words)
    }

    fn page(&mut self, number: u32, page: Page) -> Result<()> {
        self.page(number, page)
    }

    fn module(&mut self, number: u32, module: Module) -> Result<()> {
        self.module(number, module)
    }

    fn mapping(&mut self, number: u32, mapping: Mapping) -> Result<()> {
        self.mapping(number, mapping)
    }

    fn space(&mut self, key: SpaceKey, space: Option<Space>) -> Result<()> {
        self.space(key, space)
    }

    fn python(&mut self, slot: u32, process: Option<PythonProcess>) -> Result<()> {
        self.python(slot, process)
    }

    fn settle(&mut self) -> Result<()> {
        self.settle()
    }
}

enum News {
    Opened(SlotId, u32),
    Sampled(SlotId, u32, UnwindResult),
    Closed(SlotId),
    Exited(SlotId, u32),
    Warm(u32, Sender<()>),
    Look(SlotId, u32),
    Made(Box<Made>),
}

/// Makes the tables that take long, one after the other. It does not keep the other thread alive.
fn make(work: &Receiver<Job>, back: &Weak<SyncSender<News>>) {
    while let Ok(job) = work.recv() {
        let made = Box::new(job.make());
        match back.upgrade().map(|back| back.send(News::Made(made))) {
            Some(Ok(())) => {}
            _ => return,
        }
    }
}

/// Takes up one piece of news.
fn hear<S: Sink>(loader: &mut Loader<S>, news: News, warming: &mut Vec<Sender<()>>) -> Result<()> {
    match news {
        News::Opened(slot, pid) => {
            loader.opened(slot, pid, Instant::now());
            Ok(())
        }
        News::Sampled(slot, pid, result) => loader.sampled(slot, pid, result),
        News::Closed(slot) => loader.closed(slot),
        News::Exited(slot, pid) => loader.exited(slot, pid),
        News::Look(slot, pid) => loader.look(slot, pid),
        News::Made(made) => loader.made(*made),
        News::Warm(pid, reply) => {
            warming.push(reply);
            loader.warm(pid)
        }
    }
}

/// Brings tables until nobody has news any more.
fn bring<S: Sink>(
    mut loader: Loader<S>,
    news: &Receiver<News>,
    jobs: &SyncSender<Job>,
    shown: &Mutex<LoaderStats>,
) {
    let mut next = Instant::now() + TURN;
    let mut warming: Vec<Sender<()>> = Vec::new();
    loop {
        let wake = loader.due().map_or(next, |due| due.min(next));
        let mut done = match news.recv_timeout(wake.saturating_duration_since(Instant::now())) {
            Ok(first) => {
                let until = Instant::now() + TOGETHER;
                let mut done = hear(&mut loader, first, &mut warming);
                while done.is_ok()
                    && Instant::now() < until
                    && let Ok(more) = news.try_recv()
                {
                    done = hear(&mut loader, more, &mut warming);
                }
                done
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < next => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                next = Instant::now() + TURN;
                loader.turn()
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if done.is_ok() {
            done = loader.ahead(Instant::now());
        }
        if let Err(error) = done.and(loader.settle()) {
            tracing::warn!(error = format!("{error:#}"), "unwind tables");
        }
        if let Some(job) = loader.job()
            && jobs.send(job).is_err()
        {
            tracing::error!("the thread for large unwind tables is gone");
        }
        if !loader.is_waiting() {
            for reply in warming.drain(..) {
                // Who asked may have given up.
                let _ = reply.send(());
            }
        }
        *shown.lock().unwrap_or_else(PoisonError::into_inner) = loader.stats();
    }
}

/// The threads, as the others see them. They end when this is dropped.
pub(super) struct Unwinding {
    send: Arc<SyncSender<News>>,
    stats: Arc<Mutex<LoaderStats>>,
}

impl Unwinding {
    pub(super) fn start(maps: UnwindMaps, config: SymbolizerConfig, max_bytes: u64) -> Result<Self> {
        let (send, receive) = mpsc::sync_channel(QUEUE);
        let send = Arc::new(send);
        // Room for one, because the next is given out when one is done.
        let (jobs, work) = mpsc::sync_channel(1);
        let back = Arc::downgrade(&send);
        thread::Builder::new()
            .name("unwind-large".to_owned())
            .spawn(move || make(&work, &back))?;
        let stats = Arc::new(Mutex::new(LoaderStats::default()));
        let shown = Arc::clone(&stats);
        let loader = Loader::new(config, maps, max_bytes);
        thread::Builder::new()
            .name("unwind".to_owned())
            .spawn(move || bring(loader, &receive, &jobs, &shown))?;
        Ok(Self { send, stats })
    }

    pub(super) fn sampled(&self, slot: SlotId, pid: u32, result: UnwindResult) {
        self.tell(News::Sampled(slot, pid, result));
    }

    pub(super) fn opened(&self, slot: SlotId, pid: u32) {
        self.tell(News::Opened(slot, pid));
    }

    pub(super) fn closed(&self, slot: SlotId) {
        self.tell(News::Closed(slot));
    }

    pub(super) fn exited(&self, slot: SlotId, pid: u32) {
        self.tell(News::Exited(slot, pid));
    }

    /// Brings what is missing of a process as it is now.
    pub(super) fn look(&self, slot: SlotId, pid: u32) {
        self.tell(News::Look(slot, pid));
    }

    /// Brings the tables of a process's libraries, which the next program will have, too.
    pub(super) fn warm(&self, pid: u32) {
        let (reply, answer) = mpsc::channel();
        self.tell(News::Warm(pid, reply));
        // Without an answer they come later.
        let _ = answer.recv_timeout(PATIENCE);
    }

    fn tell(&self, news: News) {
        if let Err(TrySendError::Disconnected(_)) = self.send.try_send(news) {
            tracing::error!("the thread for unwind tables is gone");
        }
    }

    pub(super) fn telemetry(&self) -> UnwindTelemetry {
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = stats.refused.iter().map(|(why, count)| (why.as_str(), *count));
        UnwindTelemetry {
            built: stats.built,
            refused: refused
                .chain([("no_room", stats.full)])
                .map(|(why, count)| (why.to_owned(), count))
                .collect(),
            broken_functions: stats.broken_functions,
            unsupported_rows: Unsupported::ALL
                .iter()
                .zip(stats.unsupported_rows)
                .map(|(why, count)| (why.as_str().to_owned(), count))
                .collect(),
            build_seconds: stats.build_time.as_secs_f64(),
            row_bytes: stats.row_bytes,
            interpreters: stats
                .interpreters
                .iter()
                .map(|(result, count)| ((*result).to_owned(), *count))
                .collect(),
        }
    }
}
