//! Prometheus, pprof, HTTP and pages: everything here reads the last finished snapshot and nothing else.

mod http;
mod metrics;
mod page;
pub mod profile;
mod status;

use std::sync::{Arc, PoisonError, RwLock};

pub use http::router;
pub use metrics::render;

use crate::aggregate::Snapshot;
use crate::load::status::ProbeStatus;
use crate::telemetry::Telemetry;

/// What readers see: replaced as a whole after each tick, so that no reader ever waits for event processing.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Services.
    pub snapshot: Arc<Snapshot>,
    /// Probes.
    pub probes: Vec<ProbeStatus>,
    /// The agent itself.
    pub telemetry: Telemetry,
}

/// The place where the pipeline publishes and HTTP reads.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<RwLock<Arc<Published>>>);

impl Board {
    /// Replaces what readers see.
    pub fn publish(&self, published: Published) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(published);
    }

    /// What readers see now.
    #[must_use]
    pub fn read(&self) -> Arc<Published> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}
