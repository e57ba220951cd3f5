//! A clock for limits of effort.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time that this thread spent on the CPU (`CLOCK_THREAD_CPUTIME_ID`). What a file costs is measured by it: on a busy host the
/// agent waits for its turn, and no file is to blame for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CpuTime(Duration);

impl CpuTime {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Self(Duration::try_from(now).unwrap_or_default())
    }

    pub(super) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

impl Add<Duration> for CpuTime {
    type Output = Self;

    fn add(self, more: Duration) -> Self {
        Self(self.0.saturating_add(more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_costs_nothing() {
        let (began, wall) = (CpuTime::now(), std::time::Instant::now());
        std::thread::sleep(Duration::from_millis(200));
        assert!(began.elapsed() < wall.elapsed() / 2);
        // Ends only if the clock goes on.
        while began.elapsed() < Duration::from_millis(20) {}
        assert!(CpuTime::now() > began + Duration::from_millis(10));
    }
}
