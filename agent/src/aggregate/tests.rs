//! The stage as a whole.

use super::fixture::{Random, SECOND, add_waits, limits, sample, service, stack, wait};
use super::*;

fn tick(services: Vec<(Arc<Service>, Totals)>) -> AttributedTick {
    AttributedTick {
        at_unix_ns: SECOND,
        length_ns: 10 * SECOND,
        services,
    }
}

fn waited(cause: Cause, ns: u64) -> Totals {
    let mut totals = Totals {
        processes: 1,
        ..Totals::default()
    };
    add_waits(&mut totals, cause, 1, ns);
    totals
}

fn totals(aggregator: &Aggregator, name: &str) -> Arc<Totals> {
    let snapshot = aggregator.snapshot();
    Arc::clone(&snapshot.find("", name).next().expect("known").totals)
}

/// Names take their time: until then, what was counted is held.
#[test]
fn connections_whose_samples_come_a_tick_later_are_all_credited() {
    let shop = service("shop");
    for (failure, credited) in [(ConnFailure::Reset, 300), (ConnFailure::Refused, 288)] {
        let mut aggregator = Aggregator::new(limits());
        let mut opened = Totals {
            processes: 1,
            ..Totals::default()
        };
        let conn = opened.conns.entry((Direction::Out, Peer::Other)).or_default();
        conn.opened = 300;
        conn.failures[failure.index()] = 1;
        aggregator.tick(tick(vec![(Arc::clone(&shop), opened)]), vec![], &[]);
        let late = sample(
            &shop,
            StackKind::Conn,
            StackDetail::None,
            288.0,
            stack("connects", false),
        );
        let quiet = Totals {
            processes: 1,
            ..Totals::default()
        };
        aggregator.tick(tick(vec![(Arc::clone(&shop), quiet)]), vec![late], &[]);
        let snapshot = aggregator.snapshot();
        let shop = snapshot.find("", "shop").next().expect("known");
        let code: Vec<_> = shop.code[&StackKind::Conn].iter().map(|one| one.value).collect();
        // Of attempts of which some failed, each opened what it weighs; but one that is reset had been opened.
        assert_eq!(code, [credited]);
    }
}

#[test]
fn a_peer_that_refuses_has_opened_nothing() {
    let shop = service("shop");
    let server = |port| Peer::Server("10.0.0.7".parse().expect("address"), port);
    let mut opened = Totals {
        processes: 1,
        ..Totals::default()
    };
    let mut conn = |port, count, refused| {
        let conn = opened.conns.entry((Direction::Out, server(port))).or_default();
        conn.opened = count;
        conn.failures[ConnFailure::Refused.index()] = refused;
    };
    conn(5432, 10, 0);
    conn(6379, 0, 90);
    conn(80, 4, 12);
    let attempts = |port, count| {
        let detail = StackDetail::Opened(server(port));
        sample(&shop, StackKind::Conn, detail, count, stack("connects", false))
    };
    let samples = vec![attempts(5432, 10.0), attempts(6379, 90.0), attempts(80, 16.0)];
    let mut aggregator = Aggregator::new(limits());
    aggregator.tick(tick(vec![(Arc::clone(&shop), opened)]), samples, &[]);
    let profile = aggregator.snapshot().profile(&ProfileQuery {
        namespace: "",
        name: "shop",
        version: None,
        kind: StackKind::Conn,
        since: Duration::MAX,
        idle: false,
    });
    let samples = profile.expect("a window").samples;
    let told: Vec<_> = samples
        .iter()
        .map(|sample| (sample.detail, sample.value))
        .collect();
    let of = |port, count| (StackDetail::Opened(server(port)), count);
    assert_eq!(told, [of(5432, 10), of(80, 4)]);
}

#[test]
fn futex_time_is_divided_by_the_ticks_samples_and_both_parts_only_grow() {
    let shop = service("shop");
    let mut aggregator = Aggregator::new(limits());
    let split = |aggregator: &Aggregator| {
        let totals = totals(aggregator, "shop");
        (
            totals.wait_ns[Cause::Lock.index()],
            totals.wait_ns[Cause::Idle.index()],
        )
    };
    aggregator.tick(
        tick(vec![(Arc::clone(&shop), waited(Cause::Lock, 100))]),
        vec![],
        &[],
    );
    assert_eq!(split(&aggregator), (100, 0), "no sample: all lock");
    let samples = vec![
        wait(&shop, Cause::Lock, 300, stack("park", true)),
        wait(&shop, Cause::Lock, 100, stack("work", false)),
        wait(&shop, Cause::Disk, 900, stack("read", false)),
    ];
    aggregator.tick(
        tick(vec![(Arc::clone(&shop), waited(Cause::Lock, 1000))]),
        samples,
        &[],
    );
    assert_eq!(split(&aggregator), (350, 750));
    let samples = vec![wait(&shop, Cause::Lock, 1, stack("work", false))];
    aggregator.tick(
        tick(vec![(Arc::clone(&shop), waited(Cause::Lock, 10))]),
        samples,
        &[],
    );
    assert_eq!(split(&aggregator), (360, 750));
    let histogram = &totals(&aggregator, "shop").wait[Cause::Lock.index()];
    assert_eq!(
        (metric::observations(histogram), histogram.sum_ns),
        (3, 1110),
        "durations stay under lock"
    );
}

#[test]
fn code_series_add_up_to_the_exact_totals_and_never_go_down() {
    let shop = service("shop");
    let mut random = Random(3);
    let mut aggregator = Aggregator::new(Limits { top: 3, ..limits() });
    let mut seen: HashMap<(StackKind, CodeScope, Option<Owner>), u64> = HashMap::new();
    for at in 0..400 {
        let mut totals = Totals {
            processes: 1,
            ..Totals::default()
        };
        let mut samples = Vec::new();
        if at < 380 {
            for cause in [Cause::Disk, Cause::Lock, Cause::Network, Cause::Idle] {
                add_waits(&mut totals, cause, random.below(5), random.below(SECOND));
            }
            totals.cpu_user_ns = random.below(SECOND);
            totals.memory_growth_bytes = random.below(1 << 20);
            totals.syscalls.insert(
                1,
                SyscallTotals {
                    count: random.below(100),
                    ..SyscallTotals::default()
                },
            );
            for _ in 0..random.below(10) {
                let function = format!("f{}", random.below(6));
                let stack = stack(&function, random.below(4) == 0);
                let weight = random.below(SECOND);
                samples.push(match random.below(5) {
                    0 => wait(&shop, Cause::Disk, weight, stack),
                    1 => wait(&shop, Cause::Lock, weight, stack),
                    2 => sample(&shop, StackKind::Cpu, StackDetail::None, weight as f64, stack),
                    3 => sample(&shop, StackKind::Syscall, StackDetail::Syscall(1), 3.0, stack),
                    _ => sample(&shop, StackKind::Memory, StackDetail::None, 4096.0, stack),
                });
            }
        }
        aggregator.tick(tick(vec![(Arc::clone(&shop), totals)]), samples, &[]);
        for (&kind, series) in &*aggregator.snapshot().services[0].code {
            for one in series {
                let last = seen.entry((kind, one.scope, one.owner.clone())).or_default();
                assert!(one.value >= *last, "{kind:?} {one:?} was {last}");
                *last = one.value;
            }
        }
    }
    // Evicted series keep their last value in `seen`, so everything that was ever credited is in there.
    let credited = |kind| {
        seen.iter()
            .filter(|((k, ..), _)| *k == kind)
            .map(|(_, value)| value)
            .sum::<u64>()
    };
    let totals = totals(&aggregator, "shop");
    assert_eq!(credited(StackKind::Wait), totals.wait_ns.iter().sum::<u64>());
    assert_eq!(credited(StackKind::Cpu), totals.cpu_user_ns);
    assert_eq!(credited(StackKind::Memory), totals.memory_growth_bytes);
    assert_eq!(credited(StackKind::Syscall), totals.syscalls[&1].count);
}

#[test]
fn scaled_values_reach_series_and_profiles_alike() {
    let shop = service("shop");
    let mut aggregator = Aggregator::new(limits());
    let totals = Totals {
        cpu_user_ns: 800,
        cpu_system_ns: 200,
        processes: 1,
        ..Totals::default()
    };
    let cpu = |weight, function| {
        sample(
            &shop,
            StackKind::Cpu,
            StackDetail::None,
            weight,
            stack(function, false),
        )
    };
    aggregator.tick(
        tick(vec![(Arc::clone(&shop), totals)]),
        vec![cpu(1.0, "a"), cpu(2.0, "b"), cpu(1.0, "a")],
        &[],
    );
    let snapshot = aggregator.snapshot();
    let series = snapshot.services[0].code_series(StackKind::Cpu);
    let values: Vec<(&str, u64)> = series
        .iter()
        .filter_map(|s| s.owner.as_ref().map(|o| (&*o.function, s.value)))
        .collect();
    assert_eq!(values, [("a", 500), ("b", 500)]);
    let query = ProfileQuery {
        namespace: "",
        name: "shop",
        version: None,
        kind: StackKind::Cpu,
        since: Duration::from_secs(300),
        idle: false,
    };
    let profile = snapshot.profile(&query).expect("known");
    assert_eq!(
        profile.samples.iter().map(|s| s.value).collect::<Vec<_>>(),
        [500, 500]
    );
    assert!(
        snapshot
            .profile(&ProfileQuery {
                name: "shops",
                ..query
            })
            .is_none()
    );
}

#[test]
fn quiet_services_stay_for_their_time_and_then_go() {
    let mut aggregator = Aggregator::new(Limits {
        service_idle: Duration::from_secs(60),
        ..limits()
    });
    let alive = service("alive");
    aggregator.tick(
        tick(vec![
            (service("gone"), waited(Cause::Disk, 7)),
            (Arc::clone(&alive), waited(Cause::Disk, 1)),
        ]),
        vec![],
        &[],
    );
    let one = || {
        vec![(
            Arc::clone(&alive),
            Totals {
                processes: 1,
                ..Totals::default()
            },
        )]
    };
    for _ in 0..5 {
        aggregator.tick(tick(one()), vec![], &[]);
        let gone = totals(&aggregator, "gone");
        assert_eq!((gone.wait_ns[Cause::Disk.index()], gone.processes), (7, 0));
    }
    aggregator.tick(tick(one()), vec![], &[]);
    let snapshot = aggregator.snapshot();
    assert_eq!(snapshot.services.len(), 1);
    assert_eq!(snapshot.bounds.services_expired, 1);
}

#[test]
fn too_many_services_are_other_until_one_makes_room() {
    let mut aggregator = Aggregator::new(Limits {
        services: 2,
        ..limits()
    });
    let tick_of = |names: &[&str]| {
        tick(
            names
                .iter()
                .map(|n| (service(n), waited(Cause::Disk, 5)))
                .collect(),
        )
    };
    aggregator.tick(tick_of(&["a", "b", "c", "d"]), vec![], &[]);
    let other = totals(&aggregator, OTHER_SERVICE);
    assert_eq!((other.wait_ns[Cause::Disk.index()], other.processes), (10, 2));
    assert_eq!(aggregator.snapshot().bounds.services_merged, 2);
    for _ in 0..7 {
        aggregator.tick(tick_of(&["a"]), vec![], &[]);
    }
    aggregator.tick(tick_of(&["a", "c"]), vec![], &[]);
    assert_eq!(totals(&aggregator, "c").processes, 1);
    assert!(aggregator.snapshot().find("", "b").next().is_none());
}

#[test]
fn the_budget_drops_code_first_then_peers_and_late_services_before_early_ones() {
    let complete = fixture::snapshot();
    let all = complete.series;
    assert_eq!(complete.bounds.series_capped, BTreeMap::new());
    let sum: usize = complete
        .services
        .iter()
        .map(|s| Metric::ALL.iter().map(|&m| s.series(m)).sum::<usize>())
        .sum();
    assert_eq!(all, sum);

    let mut last_admitted: Option<Vec<metric::MetricSet>> = None;
    for limit in (0..=all).rev() {
        let mut services = complete.services.clone();
        for service in &mut services {
            service.admitted = metric::MetricSet::default();
        }
        let order = [1, 0];
        let (admitted, capped) = metric::admit(&mut services, &order, limit);
        assert!(admitted <= limit);
        assert_eq!(admitted + capped.iter().map(|(_, n)| n).sum::<usize>(), all);
        let dropped: Vec<Metric> = capped.iter().map(|(metric, _)| *metric).collect();
        if let Some(first) = dropped.first() {
            let later_kept = Metric::ALL
                .iter()
                .filter(|m| *m > first)
                .any(|&m| services.iter().any(|s| s.series(m) > 0 && s.admitted.contains(m)));
            assert!(!later_kept, "{first:?} dropped before a less important metric");
        }
        // Less room never lets something in that more room kept out.
        if let Some(more) = &last_admitted {
            for (service, more) in services.iter().zip(more) {
                assert!(
                    Metric::ALL
                        .iter()
                        .all(|&m| more.contains(m) || !service.admitted.contains(m))
                );
            }
        }
        last_admitted = Some(services.iter().map(|s| s.admitted).collect());
    }
}
