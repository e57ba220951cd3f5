//! What was added between two ticks.

use super::scale::Windows;
use super::{Last, View};
use crate::decode::model::{Cause, Histogram, Totals};

/// What came since the last tick; `last` becomes the new view. A value that is momentarily lower (a thread that ended
/// while it was visited) counts as unchanged until it has caught up. Also, what each system call that was counted stands for.
pub(super) fn difference(view: View, last: &mut Last, windows: Windows) -> (Box<Totals>, f64) {
    let mut totals = view.absolute;
    let before = &mut last.totals;
    for cause in Cause::ALL {
        let i = cause.index();
        step(&mut totals.wait_ns[i], &mut before.wait_ns[i]);
        step_wait(&mut totals.wait[i], &mut before.wait[i]);
    }
    // The exact time on the CPU is split by the kernel's own sampled user and system times, as `times(2)` does.
    let (cpu, steal) = used(view.cpu_ns, view.ran_ns, before);
    totals.cpu_steal_ns = steal;
    let (mut user, mut system) = (view.utime, view.stime);
    step(&mut user, &mut last.utime);
    step(&mut system, &mut last.stime);
    if user + system == 0 {
        (user, system) = (last.utime, last.stime);
    }
    let share = if user + system == 0 {
        1.0
    } else {
        user as f64 / (user + system) as f64
    };
    totals.cpu_user_ns = (cpu as f64 * share) as u64;
    totals.cpu_system_ns = cpu - totals.cpu_user_ns.min(cpu);
    step(&mut totals.memory_growth_bytes, &mut before.memory_growth_bytes);
    step(
        &mut totals.memory_returned_bytes,
        &mut before.memory_returned_bytes,
    );
    for (now, before) in [
        (&mut totals.stall_ns, &mut before.stall_ns),
        (&mut totals.stalls, &mut before.stalls),
    ] {
        for (now, before) in now.iter_mut().zip(before) {
            step(now, before);
        }
    }
    step(&mut totals.faults_minor, &mut before.faults_minor);
    step(&mut totals.faults_major, &mut before.faults_major);
    step(&mut totals.oom_kills, &mut before.oom_kills);
    for (now, before) in totals.disk.iter_mut().zip(&mut before.disk) {
        step(&mut now.bytes, &mut before.bytes);
        step_histogram(&mut now.duration, &mut before.duration);
    }
    for (nr, now) in &mut totals.syscalls {
        let before = before.syscalls.entry(*nr).or_default();
        step(&mut now.count, &mut before.count);
        for (errno, count) in &mut now.errors {
            step(count, before.errors.entry(*errno).or_default());
        }
        step_histogram(&mut now.duration, &mut before.duration);
    }
    let factor = windows.factor(&totals, totals.syscalls.values().map(|each| each.count).sum());
    let scale = |count: u64| (count as f64 * factor).round() as u64;
    for now in totals.syscalls.values_mut() {
        now.count = scale(now.count);
        for count in now.errors.values_mut() {
            *count = scale(*count);
        }
        stretch(&mut now.duration, now.count);
    }
    for (whom, now) in &mut totals.conns {
        let before = before.conns.entry(*whom).or_default();
        step(&mut now.opened, &mut before.opened);
        step(&mut now.closed, &mut before.closed);
        for (now, before) in now.failures.iter_mut().zip(&mut before.failures) {
            step(now, before);
        }
        for (now, before) in now.ended.iter_mut().zip(&mut before.ended) {
            step(now, before);
        }
        step(&mut now.exchanges, &mut before.exchanges);
        step(&mut now.once, &mut before.once);
        step(&mut now.sent_bytes, &mut before.sent_bytes);
        step(&mut now.received_bytes, &mut before.received_bytes);
        step(&mut now.retransmits, &mut before.retransmits);
        step_histogram(&mut now.connect, &mut before.connect);
        step_histogram(&mut now.age, &mut before.age);
    }
    (totals, factor)
}

/// Time on the CPU since the last tick, and the time when a hypervisor had it. Their sum is exact; as neither may shrink, one
/// that was read a moment too early is made up for later.
fn used(on_cpu: u64, ran: u64, before: &mut Totals) -> (u64, u64) {
    let (had, stolen) = (before.cpu_user_ns, before.cpu_steal_ns);
    let on_cpu = on_cpu.max(had + stolen);
    before.cpu_steal_ns = on_cpu.saturating_sub(ran).clamp(stolen, on_cpu - had);
    before.cpu_user_ns = on_cpu - before.cpu_steal_ns;
    (before.cpu_user_ns - had, before.cpu_steal_ns - stolen)
}

fn step(now: &mut u64, before: &mut u64) {
    let absolute = *now;
    *now = absolute.saturating_sub(*before);
    *before = absolute.max(*before);
}

fn step_histogram(now: &mut Histogram, before: &mut Histogram) {
    if now.any() {
        for (now, before) in now.buckets_mut().iter_mut().zip(before.buckets_mut()) {
            step(now, before);
        }
    }
    step(&mut now.sum_ns, &mut before.sum_ns);
}

/// As [`step_histogram`], of counts that the kernel side keeps in 32 bits: they never dip, but begin anew.
fn step_wait(now: &mut Histogram, before: &mut Histogram) {
    if now.any() || before.any() {
        for (now, before) in now.buckets_mut().iter_mut().zip(before.buckets_mut()) {
            let absolute = *now;
            *now = u64::from((absolute as u32).wrapping_sub(*before as u32));
            *before = absolute;
        }
    }
    step(&mut now.sum_ns, &mut before.sum_ns);
}

/// Scales a histogram of a sample of the calls to all of them.
fn stretch(hist: &mut Histogram, count: u64) {
    let sampled: u64 = hist.buckets().iter().sum();
    if sampled == 0 || sampled >= count {
        return;
    }
    let factor = count as f64 / sampled as f64;
    let mut carried = 0.0;
    for bucket in hist.buckets_mut() {
        let exact = *bucket as f64 * factor + carried;
        *bucket = exact.round() as u64;
        carried = exact - *bucket as f64;
    }
    hist.sum_ns = (hist.sum_ns as f64 * factor) as u64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::model::HISTOGRAM_BUCKETS;

    #[test]
    fn a_dip_is_not_counted_twice() {
        let (mut last, mut sum) = (0, 0);
        for absolute in [10, 25, 20, 25, 31] {
            let mut now = absolute;
            step(&mut now, &mut last);
            sum += now;
        }
        assert_eq!(sum, 31);
    }

    #[test]
    fn what_was_stolen_is_apart_and_nothing_is_counted_twice() {
        let (mut before, mut sum, mut most) = (Totals::default(), (0, 0), 0);
        // Nothing was; some; a thread is missing; it is back; the account is late; it is no longer.
        for (on_cpu, ran) in [
            (100, 100),
            (220, 190),
            (150, 130),
            (230, 200),
            (330, 290),
            (430, 400),
        ] {
            let (cpu, steal) = used(on_cpu, ran, &mut before);
            sum = (sum.0 + cpu, sum.1 + steal);
            most = on_cpu.max(most);
            assert_eq!(sum.0 + sum.1, most);
        }
        assert_eq!(sum, (390, 40));
    }

    #[test]
    fn counts_of_waits_may_begin_anew() {
        let (mut last, mut sum) = (Histogram::default(), 0);
        for absolute in [7, u32::MAX - 2, 4, 4] {
            let mut now = Histogram::default();
            now.buckets_mut()[3] = u64::from(absolute);
            step_wait(&mut now, &mut last);
            sum += now.buckets()[3];
        }
        assert_eq!(sum, (1 << 32) + 4);
    }

    #[test]
    fn a_sampled_histogram_is_scaled_to_the_count() {
        let mut buckets = [0; HISTOGRAM_BUCKETS];
        (buckets[0], buckets[5]) = (2, 1);
        let mut hist = Histogram::new(buckets, 300);
        stretch(&mut hist, 100);
        assert_eq!(hist.buckets().iter().sum::<u64>(), 100);
        assert_eq!(hist.buckets()[0], 67);
        assert_eq!(hist.sum_ns, 10_000);
    }
}
