//! Harness and workloads with known answers for Tieback.
//!
//! A test starts the agent and a workload under a service name of its own,
//! lets it run, and compares what `/metrics` says with the truth that the workload printed about itself.
//! Nothing here waits for a fixed time: workloads are gated on their standard input, and the agent is waited for by the
//! end of its windows.

pub mod agent;
pub mod chains;
pub mod elf;
pub mod leak;
pub mod metrics;
pub mod pprof;
pub mod program;
pub mod reference;
pub mod runtime;
pub mod server;
pub mod workloads;

/// Whether the tests run in an emulated machine.
#[must_use]
pub fn in_emulator() -> bool {
    std::env::var_os("TIEBACK_VM").is_some()
}

/// The tolerance of a time: `share`, but no less than `TIEBACK_TEST_LEAST_TOLERANCE` where that is set. Emulated machines
/// without a steady clock need more room for times; counts are exact everywhere and never use it.
#[must_use]
pub fn tolerance(share: f64) -> f64 {
    let least = std::env::var("TIEBACK_TEST_LEAST_TOLERANCE");
    share.max(least.ok().and_then(|text| text.parse().ok()).unwrap_or(0.0))
}

/// Whether `got` is within the [`tolerance`] of `share` (of `want`) of `want`.
#[must_use]
pub fn within(got: f64, want: f64, share: f64) -> bool {
    (got - want).abs() <= want.abs() * tolerance(share)
}

/// Measures a time, again where it is not within `share`, at most `ROUNDS` times, and returns the pair of what was read
/// and what is true that is nearest. On a virtual machine the hypervisor takes a CPU away now and then (steal); that is
/// in a program's own timing and in no thread's account. Noise of that kind spoils single rounds, a wrong measurement
/// spoils all of them.
pub fn nearest(
    share: f64,
    mut round: impl FnMut() -> anyhow::Result<(f64, f64)>,
) -> anyhow::Result<(f64, f64)> {
    const ROUNDS: usize = 5;
    let error = |(got, want): (f64, f64)| (got / want - 1.0).abs();
    let mut best = round()?;
    for _ in 1..ROUNDS {
        if within(best.0, best.1, share) {
            break;
        }
        eprintln!("read {}, expected {}: measuring again", best.0, best.1);
        let next = round()?;
        if error(next) < error(best) {
            best = next;
        }
    }
    Ok(best)
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
            $crate::tolerance(share) * 100.0,
            (got / want - 1.0) * 100.0
        );
    }};
}
