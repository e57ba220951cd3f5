//! Which exact total a sampled stack is a sample of, and the division of futex time between `lock` and `idle`.

use crate::symbolize::{
    Cause, ConnFailure, Direction, Histogram, Peer, StackDetail, StackKind, SymbolizedSample, Totals,
};

/// What tells the code series of one signal apart, besides the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CodeScope {
    /// Nothing: the signal has one total.
    Whole,
    /// The cause of a wait.
    Cause(Cause),
    /// The number of a system call.
    Syscall(u16),
}

/// A set of samples that share one exact total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Group {
    pub(super) kind: StackKind,
    pub(super) scope: CodeScope,
    /// Futex waits that turned out to be idleness: `idle` too, but a total of their own, because no other idle time
    /// is sampled.
    pub(super) parked: bool,
}

/// How the weights of a group's samples relate to its exact total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// They are samples of all of it: scale them to it.
    Scale,
    /// They are samples of the waits that *ended*, whose durations sum up to this many nanoseconds; the rest of the
    /// exact total belongs to waits that still last.
    Ended(u64),
    /// Each stands for itself; what they do not cover was not sampled.
    Claim,
}

/// Splits futex time: the tick's exact time under `Lock` moves to `Idle` by the share of idle stacks among the
/// tick's samples of futex waits. Returns the nanoseconds moved. The durations' histogram stays under `lock` as it
/// is: single waits cannot be told apart, and a histogram that is divided by shares would no longer be exact.
pub(super) fn move_parked(totals: &mut Totals, idle_share: f64) -> u64 {
    let locked = totals.wait_ns[Cause::Lock.index()];
    let moved = ((locked as f64 * idle_share).round() as u64).min(locked);
    totals.wait_ns[Cause::Lock.index()] = locked - moved;
    let idle = &mut totals.wait_ns[Cause::Idle.index()];
    *idle = idle.saturating_add(moved);
    moved
}

/// Whether a futex wait is idleness: not where the kernel held the thread up in the call, to read what had been evicted.
fn parked(sample: &SymbolizedSample) -> bool {
    sample.stack.idle && !matches!(sample.detail, StackDetail::Wait { memory: true, .. })
}

/// Weights of one service's futex samples in a tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FutexShares {
    all: f64,
    idle: f64,
}

impl FutexShares {
    pub(super) fn add(&mut self, sample: &SymbolizedSample) {
        if sample.detail.cause() == Some(Cause::Lock) && sample.weight > 0.0 {
            self.all += sample.weight;
            if parked(sample) {
                self.idle += sample.weight;
            }
        }
    }

    /// The part that was idleness; nothing where there is no sample.
    pub(super) fn idle_share(self) -> f64 {
        if self.all > 0.0 {
            (self.idle / self.all).clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// The group of a sample and the detail under which windows keep it.
pub(super) fn of_sample(sample: &SymbolizedSample) -> (Group, StackDetail) {
    let kind = sample.kind;
    match (kind, sample.detail) {
        (
            StackKind::Wait,
            StackDetail::Wait {
                cause: Cause::Lock,
                call,
                ..
            },
        ) if parked(sample) => {
            let scope = CodeScope::Cause(Cause::Idle);
            (
                Group {
                    kind,
                    scope,
                    parked: true,
                },
                StackDetail::wait(Cause::Idle, call),
            )
        }
        (StackKind::Wait, StackDetail::Wait { cause, .. }) => (
            Group {
                kind,
                scope: CodeScope::Cause(cause),
                parked: false,
            },
            sample.detail,
        ),
        (StackKind::Wait, _) => {
            let scope = CodeScope::Cause(Cause::Other);
            (
                Group {
                    kind,
                    scope,
                    parked: false,
                },
                StackDetail::wait(Cause::Other, None),
            )
        }
        (StackKind::Syscall, StackDetail::Syscall(number)) => {
            let number = super::names::known_syscall(number);
            (
                Group {
                    kind,
                    scope: CodeScope::Syscall(number),
                    parked: false,
                },
                StackDetail::Syscall(number),
            )
        }
        (StackKind::Syscall, _) => {
            let number = super::names::known_syscall(u16::MAX);
            (
                Group {
                    kind,
                    scope: CodeScope::Syscall(number),
                    parked: false,
                },
                StackDetail::Syscall(number),
            )
        }
        (StackKind::Conn, _) => (whole(kind), sample.detail),
        (
            StackKind::Cpu
            | StackKind::Memory
            | StackKind::Fd
            | StackKind::Alloc
            | StackKind::AllocObjects
            | StackKind::AllocLive,
            _,
        ) => (whole(kind), StackDetail::None),
    }
}

const fn whole(kind: StackKind) -> Group {
    Group {
        kind,
        scope: CodeScope::Whole,
        parked: false,
    }
}

/// The exact totals of a tick by group, after [`move_parked`] with the same share.
pub(super) fn exact(totals: &Totals, moved: u64, idle_share: f64) -> Vec<(Group, u64, Rule)> {
    let mut groups = Vec::new();
    for &cause in Cause::ALL {
        let group = Group {
            kind: StackKind::Wait,
            scope: CodeScope::Cause(cause),
            parked: false,
        };
        let ended = sum(&totals.wait[cause.index()]);
        let ns = totals.wait_ns[cause.index()];
        match cause {
            Cause::Lock => {
                let parked_ended = ((ended as f64 * idle_share).round() as u64).min(ended);
                groups.push((group, ns, Rule::Ended(ended - parked_ended)));
                let idle = CodeScope::Cause(Cause::Idle);
                let parked = Group {
                    scope: idle,
                    parked: true,
                    ..group
                };
                groups.push((parked, moved, Rule::Ended(parked_ended)));
            }
            Cause::Idle => groups.push((group, ns.saturating_sub(moved), Rule::Ended(ended))),
            _ => groups.push((group, ns, Rule::Ended(ended))),
        }
    }
    groups.push((
        whole(StackKind::Cpu),
        totals.cpu_user_ns.saturating_add(totals.cpu_system_ns),
        Rule::Scale,
    ));
    groups.push((whole(StackKind::Memory), totals.memory_growth_bytes, Rule::Scale));
    groups.push((whole(StackKind::Alloc), totals.alloc_bytes, Rule::Scale));
    groups.push((whole(StackKind::AllocObjects), totals.alloc_objects, Rule::Scale));
    groups.push((whole(StackKind::Fd), totals.fd_growth, Rule::Scale));
    for (&number, calls) in &totals.syscalls {
        let scope = CodeScope::Syscall(super::names::known_syscall(number));
        groups.push((
            Group {
                kind: StackKind::Syscall,
                scope,
                parked: false,
            },
            calls.count,
            Rule::Scale,
        ));
    }
    // Who opens a connection over a Unix socket is seen where system calls are.
    let calls = totals.syscalls.values().any(|calls| calls.count > 0);
    let outgoing = || {
        let seen = |direction, peer| direction == Direction::Out && (calls || peer != Peer::Unix);
        let conns = totals.conns.iter();
        conns
            .filter(move |&(&(direction, peer), _)| seen(direction, peer))
            .map(|(_, conn)| conn)
    };
    let opened = outgoing().fold(0u64, |sum, conn| sum.saturating_add(conn.opened));
    // Samples are of attempts. Where some fail, the rest are not known to have opened something (one that times out, or whose peer was
    // counted among others, weighs as much as one that did); each takes what it weighs.
    // What is reset was open: an attempt is refused.
    let mut failures = ConnFailure::ALL.iter().filter(|why| **why != ConnFailure::Reset);
    let all_opened = failures.all(|why| outgoing().all(|conn| conn.failures[why.index()] == 0));
    let rule = if all_opened { Rule::Scale } else { Rule::Claim };
    groups.push((whole(StackKind::Conn), opened, rule));
    groups.retain(|(_, amount, rule)| *amount > 0 || matches!(rule, Rule::Ended(1..)));
    groups
}

fn sum(histogram: &Histogram) -> u64 {
    histogram.sum_ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::fixture;

    #[test]
    fn a_parked_thread_that_waits_for_evicted_memory_is_not_idle() {
        let snapshot = fixture::snapshot();
        let sample = fixture::wait(
            &snapshot.services[0].service,
            Cause::Lock,
            9,
            fixture::stack("worker::park", true),
        );
        let told = |sample: &SymbolizedSample| {
            let mut shares = FutexShares::default();
            shares.add(sample);
            (of_sample(sample).0.parked, shares.idle_share())
        };
        assert_eq!(told(&sample), (true, 1.0));
        let sample = fixture::for_memory(sample);
        assert_eq!(told(&sample), (false, 0.0));
        assert_eq!(of_sample(&sample).1, sample.detail);
    }

    #[test]
    fn who_opens_connections_over_unix_sockets_is_seen_where_system_calls_are() {
        let mut totals = Totals::default();
        for (peer, opened) in [(Peer::Unix, 7), (Peer::Other, 2)] {
            totals.conns.entry((Direction::Out, peer)).or_default().opened = opened;
        }
        let opened = |totals: &Totals| {
            let groups = exact(totals, 0, 0.0);
            let conn = groups.iter().find(|(group, ..)| group.kind == StackKind::Conn);
            conn.map(|(_, opened, _)| *opened)
        };
        assert_eq!(opened(&totals), Some(2));
        totals.syscalls.entry(1).or_default();
        assert_eq!(opened(&totals), Some(2), "none was counted");
        totals.syscalls.entry(1).or_default().count = 3;
        assert_eq!(opened(&totals), Some(9));
    }
}
