mod code;
mod damaged;
mod files;
mod kernel;
mod loader;

use std::time::Duration;

use super::super::cpu_time::CpuTime;

/// More time than any of these files needs, also without optimization.
const LONG: Duration = Duration::from_secs(60);

fn late() -> CpuTime {
    CpuTime::now() + LONG
}
