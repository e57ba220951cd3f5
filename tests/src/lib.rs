//! Harness and workloads with known answers for Tieback.
//!
//! A test starts the agent  and a workload under a service name of its own,
//! lets it run, and compares what `/metrics` says with the truth that the workload printed about itself.
//! Nothing here waits for a fixed time: workloads are gated on their standard input, and the agent is waited for by
//! its tick counter.

pub mod agent;
pub mod metrics;
pub mod program;
pub mod server;
pub mod workloads;

/// Tolerances are multiplied by this (`TIEBACK_TEST_TOLERANCE_FACTOR`, 1 unless set). Virtual machines without a
/// steady clock need more room for times; counts are exact everywhere and never use it.
#[must_use]
pub fn tolerance_factor() -> f64 {
    std::env::var("TIEBACK_TEST_TOLERANCE_FACTOR")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1.0)
}

/// Whether `got` is within `share` (of `want`, times [`tolerance_factor`]) of `want`.
#[must_use]
pub fn within(got: f64, want: f64, share: f64) -> bool {
    (got - want).abs() <= want.abs() * share * tolerance_factor()
}

/// Asserts that a value is within a share of the expected one and says both when it is not.
#[macro_export]
macro_rules! assert_within {
    ($got:expr, $want:expr, $share:expr, $($what:tt)+) => {{
        let (got, want, share): (f64, f64, f64) = ($got, $want, $share);
        assert!(
            $crate::within(got, want, share),
            "{}: read {got}, expected {want} ± {}% (off by {:+.2}%)",
            format!($($what)+),
            share * 100.0 * $crate::tolerance_factor(),
            (got / want - 1.0) * 100.0
        );
    }};
}
