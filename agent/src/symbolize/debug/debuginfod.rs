//! Debug files from servers (`GET /buildid/ID/debuginfo`), for those who switch it on.
//!
//! A thread of its own fetches; nobody waits for it. Until it has answered, frames have the names that are known, and then
//! they are looked up anew.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::cache::Cache;
use super::unpack::copy;
use crate::symbolize::headers::Headers;
use crate::symbolize::lru::Lru;
use crate::symbolize::{DebuginfodConfig, Fetched, Outcome};

/// Build ids that wait to be asked for; more are asked for when they are needed the next time.
const QUEUE: usize = 64;
/// Build ids whose last request is remembered.
const REMEMBERED: usize = 8192;

/// Asks a thread, and hears from it.
#[derive(Debug)]
pub(super) struct Client {
    ask: SyncSender<String>,
    fetched: Receiver<String>,
    asked: Lru<String, Instant>,
    again: Duration,
    cache: Cache,
    counts: Arc<Counts>,
}

type Counts = [AtomicU64; Fetched::ALL.len()];

impl Client {
    /// Starts the thread; it ends with the client.
    pub(super) fn start(config: &DebuginfodConfig) -> std::io::Result<Self> {
        let (ask, asked) = mpsc::sync_channel(QUEUE);
        let (tell, fetched) = mpsc::sync_channel(QUEUE);
        let cache = Cache::new(&config.cache, config.max_cache_bytes);
        let counts = Arc::new(Counts::default());
        let fetcher = Fetcher {
            config: config.clone(),
            cache: cache.clone(),
            counts: Arc::clone(&counts),
        };
        std::thread::Builder::new()
            .name("debuginfod".to_owned())
            .spawn(move || fetcher.run(&asked, &tell))?;
        Ok(Self {
            ask,
            fetched,
            asked: Lru::new(REMEMBERED),
            again: config.again,
            cache,
            counts,
        })
    }

    /// Where the debug file of a build is once it was fetched.
    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.cache.path(id)
    }

    /// Has a debug file fetched, unless that was tried a short while ago.
    pub(super) fn want(&mut self, id: &str) {
        let id = id.to_owned();
        if self.asked.get(&id).is_some_and(|at| at.elapsed() < self.again) {
            return;
        }
        if self.ask.try_send(id.clone()).is_ok() {
            self.asked.insert(id, Instant::now());
        }
    }

    /// Build ids whose files have come since the last call.
    pub(super) fn fetched(&self) -> HashSet<String> {
        self.fetched.try_iter().collect()
    }

    pub(super) fn count(&self, result: Fetched) -> u64 {
        self.counts[result as usize].load(Ordering::Relaxed)
    }
}

struct Fetcher {
    config: DebuginfodConfig,
    cache: Cache,
    counts: Arc<Counts>,
}

impl Fetcher {
    fn run(&self, asked: &Receiver<String>, tell: &SyncSender<String>) {
        let agent = self.agent();
        while let Ok(id) = asked.recv() {
            let result = self.fetch(&agent, &id);
            self.counts[result as usize].fetch_add(1, Ordering::Relaxed);
            if result != Fetched::Fetched {
                self.cache.discard();
            } else if tell.send(id).is_err() {
                return;
            }
        }
    }

    fn agent(&self) -> ureq::Agent {
        // The certificates that the host trusts, read once; none are needed for plain HTTP.
        let trusted = if self.config.urls.iter().any(|url| url.starts_with("https:")) {
            rustls_native_certs::load_native_certs().certs
        } else {
            Vec::new()
        };
        let trusted = trusted
            .iter()
            .map(|c| Certificate::from_der(c.as_ref()).to_owned());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::from(trusted))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let timeout = self.config.timeout;
        ureq::Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .user_agent(concat!("tieback/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(timeout.min(Duration::from_secs(10))))
            .timeout_recv_response(Some(timeout.min(Duration::from_secs(30))))
            .timeout_global(Some(timeout))
            .build()
            .new_agent()
    }

    /// Asks one server after the other; the answer of the last one counts.
    fn fetch(&self, agent: &ureq::Agent, id: &str) -> Fetched {
        let mut last = Fetched::NotFound;
        for url in &self.config.urls {
            last = self.fetch_from(agent, url, id);
            if last == Fetched::Fetched {
                break;
            }
        }
        last
    }

    fn fetch_from(&self, agent: &ureq::Agent, url: &str, id: &str) -> Fetched {
        let url = format!("{}/buildid/{id}/debuginfo", url.trim_end_matches('/'));
        let until = Instant::now() + self.config.timeout;
        let Ok(mut response) = agent.get(&url).call() else {
            return Fetched::Failed;
        };
        match response.status().as_u16() {
            200 => {}
            404 => return Fetched::NotFound,
            _ => return Fetched::Failed,
        }
        let max = self.config.max_file_bytes;
        if response
            .body()
            .content_length()
            .is_some_and(|length| length > max)
        {
            return Fetched::TooLarge;
        }
        let Ok(file) = self.cache.begin() else {
            return Fetched::CacheFailed;
        };
        let body = response.body_mut().as_reader().take(max.saturating_add(1));
        match copy(body, &file, 0, max, || Instant::now() > until) {
            Ok(_) => {}
            Err(Outcome::TooLarge) => return Fetched::TooLarge,
            Err(_) => return Fetched::Failed,
        }
        match Headers::read(&file) {
            Ok(headers) if headers.build_id.as_deref() == Some(id) => {}
            _ => return Fetched::Mismatch,
        }
        match self.cache.keep(id) {
            Ok(()) => Fetched::Fetched,
            Err(_) => Fetched::CacheFailed,
        }
    }
}
