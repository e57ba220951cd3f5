//! Values for the tests of this stage and of `export`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::{Aggregator, AttributedTick, GrownBytes, Limits, OpenFd, Snapshot};
use crate::symbolize::{
    Cause, ConnEnd, ConnFailure, Direction, DiskOp, FdForecast, FdKind, Frame, ListenTotals, Living,
    OomVictim, Owner, Peer, PoolPeer, PoolTotals, Service, ServiceInfo, SharedStack, Stack, StackDetail,
    StackKind, SymbolizedSample, SyscallTotals, Totals,
};

pub(crate) const SECOND: u64 = 1_000_000_000;

const REDIS: Peer = Peer::Server(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)), 6379);

/// A small generator with a seed (Knuth's MMIX constants, high bits).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

pub(crate) fn service(name: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        namespace: String::new(),
        version: String::new(),
    })
}

pub(crate) fn owner(function: &str) -> Owner {
    Owner {
        function: function.into(),
        file: "shop.rs".into(),
    }
}

pub(crate) fn stack(function: &str, idle: bool) -> SharedStack {
    let frame = |function: &str, address| {
        Arc::new(Frame {
            function: Some(function.into()),
            file: None,
            line: 0,
            module: "/usr/bin/shop".into(),
            build_id: None,
            address,
            inlined: false,
            kernel: false,
        })
    };
    Arc::new(Stack {
        frames: [frame(function, 0x1000), frame("main", 0x2000)].into(),
        owner: owner(function),
        idle,
        truncated: false,
    })
}

/// The same with a line of the innermost frame.
pub(crate) fn stack_at(function: &str, line: u32) -> SharedStack {
    let mut stack = Stack::clone(&stack(function, false));
    Arc::make_mut(&mut stack.frames[0]).line = line;
    Arc::new(stack)
}

pub(crate) fn sample(
    service: &Arc<Service>,
    kind: StackKind,
    detail: StackDetail,
    weight: f64,
    stack: SharedStack,
) -> SymbolizedSample {
    SymbolizedSample {
        service: Arc::clone(service),
        kind,
        detail,
        weight,
        own: 0.0,
        stack,
    }
}

pub(crate) fn wait(
    service: &Arc<Service>,
    cause: Cause,
    weight: u64,
    stack: SharedStack,
) -> SymbolizedSample {
    sample(
        service,
        StackKind::Wait,
        StackDetail::wait(cause, Some(202)),
        weight as f64,
        stack,
    )
}

/// The same wait, for want of memory.
pub(crate) fn for_memory(mut sample: SymbolizedSample) -> SymbolizedSample {
    if let StackDetail::Wait { memory, .. } = &mut sample.detail {
        *memory = true;
    }
    sample
}

/// Adds `count` waits of `ns` each.
pub(crate) fn add_waits(totals: &mut Totals, cause: Cause, count: u64, ns: u64) {
    totals.wait_ns[cause.index()] += count * ns;
    let histogram = &mut totals.wait[cause.index()];
    let bucket = (64 - (ns.max(2) - 1).leading_zeros() as usize).saturating_sub(10);
    histogram.buckets_mut()[bucket.min(27)] += count;
    histogram.sum_ns += count * ns;
}

pub(crate) fn limits() -> Limits {
    Limits::default()
}

/// Two services after two windows, with something of everything.
pub(crate) fn snapshot() -> Arc<Snapshot> {
    let shop = Arc::new(Service {
        name: "shop".into(),
        namespace: "prod".into(),
        version: "1.2".into(),
    });
    let odd = Arc::new(Service {
        name: "a\"b\\c\n<d>".into(),
        namespace: String::new(),
        version: String::new(),
    });
    let info = ServiceInfo {
        source: "container".into(),
        container_id: "0123456789ab".into(),
        container_runtime: "docker".into(),
        executable: "/usr/bin/shop".into(),
        runtime: "native".into(),
        pids: (100..110).collect(),
        ..ServiceInfo::default()
    };
    let infos = [(Arc::clone(&shop), info)];
    let mut aggregator = Aggregator::new(limits());
    for at in 1..=2 {
        let samples = vec![
            for_memory(wait(&shop, Cause::Disk, 2 * SECOND, stack("shop::save", false))),
            wait(&shop, Cause::Lock, SECOND, stack("shop::cart", false)),
            wait(&shop, Cause::Lock, 3 * SECOND, stack("worker::park", true)),
            sample(
                &shop,
                StackKind::Cpu,
                StackDetail::None,
                9.0,
                stack("shop::price", false),
            ),
            sample(
                &shop,
                StackKind::Syscall,
                StackDetail::Syscall(1),
                4.0,
                stack("shop::save", false),
            ),
            sample(
                &shop,
                StackKind::Memory,
                StackDetail::None,
                4096.0,
                stack("shop::grow", false),
            ),
            sample(
                &shop,
                StackKind::Alloc,
                StackDetail::None,
                8192.0,
                stack("shop::parse", false),
            ),
            sample(
                &shop,
                StackKind::AllocLive,
                StackDetail::Live(Living {
                    class: 3,
                    objects: 400,
                    youngest: 450,
                    mean: 525,
                    oldest: 650,
                }),
                2048.0,
                stack("shop::keep", false),
            ),
            sample(
                &shop,
                StackKind::Conn,
                StackDetail::Opened(REDIS),
                2.0,
                stack_at("shop::dial", 41),
            ),
            sample(
                &shop,
                StackKind::Fd,
                StackDetail::None,
                2.0,
                stack("shop::open_it", false),
            ),
        ];
        aggregator.open_fds(vec![OpenFd {
            service: Arc::clone(&shop),
            stack: stack_at("shop::open_it", 12),
            kind: FdKind::File,
            count: 40,
            age_ns: 320 * SECOND,
        }]);
        let tick = AttributedTick {
            at_unix_ns: 1_700_000_000 * SECOND + at * 10 * SECOND,
            length_ns: 10 * SECOND,
            services: vec![(Arc::clone(&shop), everything()), (Arc::clone(&odd), small())],
        };
        let net = vec![GrownBytes {
            service: Arc::clone(&shop),
            stack: stack("shop::grow", false),
            bytes: 524_288.0,
            at_unix_ns: tick.at_unix_ns,
        }];
        aggregator.set_net_growth(net);
        aggregator.tick(tick, samples, &infos);
    }
    let victim = OomVictim {
        at_unix_ns: 1_700_000_019 * SECOND,
        pid: 107,
        comm: "shop".into(),
        resident_bytes: [48 << 20, 2 << 20, 0, 4096],
    };
    aggregator.oom_kill(shop, victim);
    aggregator.snapshot()
}

fn small() -> Totals {
    let mut totals = Totals {
        cpu_user_ns: 1_500_000,
        processes: 1,
        threads: 1,
        ..Totals::default()
    };
    add_waits(&mut totals, Cause::Sleep, 3, SECOND);
    totals
}

fn everything() -> Totals {
    let mut totals = Totals {
        cpu_user_ns: 3 * SECOND,
        cpu_system_ns: SECOND / 2,
        cpu_steal_ns: SECOND / 4,
        memory_growth_bytes: 1 << 20,
        memory_returned_bytes: 1 << 18,
        stall_ns: [0, SECOND / 4, 0, 0],
        stalls: [0, 9, 0, 0],
        faults_minor: 256,
        faults_major: 1,
        oom_kills: 1,
        alloc_bytes: 3 << 20,
        alloc_objects: 4000,
        alloc_live_bytes: 2048,
        resident_bytes: [8 << 20, 2 << 20, 0, 4096],
        fds: [5, 4, 3, 2, 1, 0, 0, 1, 0],
        fd_limit: 1024,
        fd_growth: 2,
        fd_forecast: Some(FdForecast {
            left_ns: 8064 * SECOND,
            each_ns: 8 * SECOND,
            open: 16,
            limit: 1024,
            pid: 100,
        }),
        processes: 10,
        threads: 20,
        ..Totals::default()
    };
    add_waits(&mut totals, Cause::Disk, 200, SECOND / 100);
    add_waits(&mut totals, Cause::Lock, 4, SECOND);
    add_waits(&mut totals, Cause::Idle, 1, 10 * SECOND);
    totals.syscalls.insert(
        0,
        SyscallTotals {
            count: 1000,
            ..SyscallTotals::default()
        },
    );
    let mut write = SyscallTotals {
        count: 500,
        ..SyscallTotals::default()
    };
    write.errors.insert(11, 7);
    write.duration.buckets_mut()[3] = 500;
    write.duration.sum_ns = 500 * 5000;
    totals.syscalls.insert(1, write);
    let disk = &mut totals.disk[DiskOp::Write.index()];
    disk.bytes = 1 << 16;
    disk.duration.buckets_mut()[10] = 16;
    disk.duration.sum_ns = 16 * 900_000;
    let database = Peer::Server(IpAddr::V6(Ipv6Addr::LOCALHOST), 5432);
    let out = totals.conns.entry((Direction::Out, database)).or_default();
    (
        out.open,
        out.opened,
        out.closed,
        out.sent_bytes,
        out.received_bytes,
    ) = (3, 2, 1, 10_000, 20_000);
    out.retransmits = 2;
    out.ended[ConnEnd::Us.index()] = 1;
    out.failures[ConnFailure::Refused.index()] = 4;
    out.connect.buckets_mut()[6] = 2;
    out.connect.sum_ns = 100_000;
    out.age.buckets_mut()[20] = 1;
    out.age.sum_ns = SECOND;
    let client = Peer::Client(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)));
    totals.conns.entry((Direction::In, client)).or_default().opened = 6;
    let postgres = PoolPeer::Service("prod/postgres".into());
    totals.pools.insert(
        (Direction::Out, postgres),
        PoolTotals {
            open: 100,
            busy: 4,
            quiet: 60,
            open_peak: 100,
            busy_peak: 7,
            ages: std::array::from_fn(|class| if class == 20 { 100 } else { 0 }),
            ages_ns: u128::from(60_000 * SECOND),
            oldest_ns: 900 * SECOND,
            open_ns: u128::from(1000 * SECOND),
            busy_ns: u128::from(30 * SECOND),
            samples: 90,
            exchanges: 5000,
            ..PoolTotals::default()
        },
    );
    totals.listeners.insert(
        Peer::Server(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 80),
        ListenTotals {
            queued: 2,
            limit: 128,
            sockets: 1,
            queue_ns: 125 * SECOND,
            accepted: 500,
            dropped: 3,
        },
    );
    totals.pools.insert(
        (Direction::In, PoolPeer::Unix("unix:prod/cron".into())),
        PoolTotals {
            open: 12,
            open_peak: 12,
            open_ns: u128::from(120 * SECOND),
            samples: 90,
            ..PoolTotals::default()
        },
    );
    let mut churn = PoolTotals {
        open_peak: 3,
        busy_peak: 2,
        open_ns: u128::from(12 * SECOND),
        busy_ns: u128::from(9 * SECOND),
        samples: 90,
        opened: 4120,
        closed: 4120,
        exchanges: 4120,
        once: 4120,
        ..PoolTotals::default()
    };
    churn.age.buckets_mut()[12] = 4120;
    churn.age.sum_ns = 4120 * 3_000_000;
    totals
        .pools
        .insert((Direction::Out, PoolPeer::Address(REDIS)), churn);
    totals
}
