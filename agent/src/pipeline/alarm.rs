//! Sleeping until it is time, or until the kernel side calls: for a sample of a process that nobody has looked at yet. Its
//! memory map is best read while it is there: brief programs are gone before the ring buffer is drained by the clock. What names
//! them comes with their samples, but whole stacks need their mappings.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{Timespec, epoll};

/// The least time between two calls that are answered.
const SPACING: Duration = Duration::from_millis(25);
/// Calls that are answered one after the other, and a second on average after these: what a look at a process leads to (its
/// memory map, its mappings for the walk, a program's tables and symbols) is not to cost more in a storm of brief programs.
const AT_ONCE: f64 = 20.0;
const A_SECOND: f64 = 1.0;

/// Sleeps.
#[derive(Debug)]
pub(super) struct Alarm {
    epoll: OwnedFd,
    /// No call is answered before.
    quiet_until: Instant,
    /// Calls that may be answered, as of then.
    allowed: (f64, Instant),
}

impl Alarm {
    /// One that the ring buffer can end.
    pub(super) fn new(ring: impl AsFd) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll_create1")?;
        // By edge: records that call nobody make the ring readable, too.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags).context("epoll_ctl")?;
        Ok(Self {
            epoll,
            quiet_until: Instant::now(),
            allowed: (AT_ONCE, Instant::now()),
        })
    }

    /// A call is answered: says when the next one may be.
    fn answer(&mut self, now: Instant) {
        let (before, since) = self.allowed;
        let more = now.saturating_duration_since(since).as_secs_f64() * A_SECOND;
        let left = (before + more).min(AT_ONCE) - 1.0;
        self.allowed = (left, now);
        let wait = Duration::from_secs_f64((1.0 - left).max(0.0) / A_SECOND);
        self.quiet_until = now + wait.max(SPACING);
    }

    /// Sleeps until then; true if it was called before.
    pub(super) fn sleep(&mut self, until: Instant) -> bool {
        let quiet = until.min(self.quiet_until);
        thread::sleep(quiet.saturating_duration_since(Instant::now()));
        // A call stays until it may be answered. Answered now, each look by the clock would spend what calls are allowed.
        if Instant::now() < self.quiet_until {
            return false;
        }
        let Ok(timeout) = Timespec::try_from(until.saturating_duration_since(Instant::now())) else {
            return false;
        };
        let mut events = Vec::with_capacity(1);
        // A signal ends the sleep early, which does no harm.
        let called = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        );
        if !matches!(called, Ok(1..)) {
            return false;
        }
        self.answer(Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn it_is_ended_by_a_call_and_not_by_what_is_there() -> Result<()> {
        let (ring, mut kernel) = std::io::pipe()?;
        let mut alarm = Alarm::new(&ring)?;
        let soon = || Instant::now() + Duration::from_millis(30);
        assert!(!alarm.sleep(soon()), "nobody called");
        kernel.write_all(b"1")?;
        let (began, late) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        assert!(alarm.sleep(late));
        assert!(began.elapsed() < Duration::from_secs(30), "it slept on");
        assert!(!alarm.sleep(soon()), "what is there calls once");
        Ok(())
    }

    #[test]
    fn looks_by_the_clock_spend_nothing() -> Result<()> {
        let (ring, mut kernel) = std::io::pipe()?;
        let mut alarm = Alarm::new(&ring)?;
        let start = Instant::now();
        alarm.allowed = (0.0, start);
        alarm.answer(start);
        let (allowed, quiet) = (alarm.allowed, alarm.quiet_until);
        kernel.write_all(b"1")?;
        for _ in 0..3 {
            assert!(!alarm.sleep(Instant::now() + Duration::from_millis(5)));
        }
        assert_eq!((alarm.allowed, alarm.quiet_until), (allowed, quiet));
        assert!(
            alarm.sleep(start + Duration::from_secs(60)),
            "the call is still there"
        );
        assert!(Instant::now() >= quiet);
        Ok(())
    }

    #[test]
    fn a_storm_of_calls_is_answered_in_part() -> Result<()> {
        let (ring, _kernel) = std::io::pipe()?;
        let mut alarm = Alarm::new(&ring)?;
        let start = Instant::now();
        let (mut now, mut early, mut answered) = (start, 0, 0);
        while now < start + Duration::from_secs(60) {
            alarm.answer(now);
            answered += 1;
            early += u32::from(now < start + Duration::from_secs(1));
            now = alarm.quiet_until;
        }
        assert!((20..=21).contains(&early), "{early}, 25 ms apart");
        // 20 that were allowed, and one a second of a minute.
        assert!((78..=81).contains(&answered), "{answered}");
        Ok(())
    }
}
