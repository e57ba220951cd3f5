//! Everything that readers see: Prometheus metrics, profiles, pages, JSON.
//!
//! All of it is made from the last [`Snapshot`](crate::aggregate::Snapshot), so that no request ever waits for the
//! processing of events, and nothing here changes anything.

mod allocations;
mod api;
mod descriptors;
mod http;
mod listeners;
mod metrics;
mod oom;
mod opened;
mod pages;
mod pools;
pub mod profile;
pub mod record;
mod request;
mod status;

pub use http::{Sources, router, serve};
pub use metrics::{Scrapes, render};
