//! The metrics of services, how many series each of them has, and the budget over all of them.

use std::collections::BTreeMap;

use super::pools;
use super::snapshot::{CodeSeries, ServiceSnapshot};
use crate::symbolize::{
    Cause, ConnEnd, ConnFailure, ConnTotals, Direction, DiskOp, FdKind, HISTOGRAM_BUCKETS, Histogram,
    MemoryKind, Peer, StackKind, Stall, Totals,
};

macro_rules! metrics {
    ($($(#[$meta:meta])* $variant:ident = $name:literal,)+) => {
        /// A metric with one or more series for each service, the most important first: when the series budget is
        /// spent, those at the end go first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Metric { $($(#[$meta])* $variant,)+ }

        impl Metric {
            /// All of them, the most important first.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that users see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

metrics! {
    /// What is known of the service.
    ServiceInfo = "tieback_service_info",
    /// Live processes.
    Processes = "tieback_processes",
    /// Time off the CPU by cause.
    Wait = "tieback_wait_seconds_total",
    /// Time on the CPU.
    Cpu = "tieback_cpu_seconds_total",
    /// Resident memory.
    MemoryResident = "tieback_memory_resident_bytes",
    /// Growth of anonymous memory.
    MemoryGrowth = "tieback_memory_growth_bytes_total",
    /// Anonymous memory given back.
    MemoryReturned = "tieback_memory_returned_bytes_total",
    /// Time held up by the freeing of memory.
    MemoryStall = "tieback_memory_stall_seconds_total",
    /// How often.
    MemoryStalls = "tieback_memory_stalls_total",
    /// Page faults.
    PageFaults = "tieback_page_faults_total",
    /// Kills for memory.
    OomKills = "tieback_oom_kills_total",
    /// Allocated bytes.
    AllocBytes = "tieback_alloc_bytes_total",
    /// Allocations.
    AllocObjects = "tieback_alloc_objects_total",
    /// Bytes that were allocated and not freed.
    AllocLive = "tieback_alloc_live_bytes",
    /// Open descriptors.
    OpenFds = "tieback_open_fds",
    /// Limit of descriptors.
    FdLimit = "tieback_fd_limit",
    /// Growth of the number of descriptors.
    FdGrowth = "tieback_fd_growth_total",
    /// Time until the limit is reached.
    FdForecast = "tieback_fd_limit_forecast_seconds",
    /// Bytes of block I/O.
    DiskBytes = "tieback_disk_io_bytes_total",
    /// Latency of block I/O.
    DiskDuration = "tieback_disk_io_duration_seconds",
    /// Durations of waits.
    WaitDuration = "tieback_wait_duration_seconds",
    /// System calls.
    Syscalls = "tieback_syscalls_total",
    /// Failed system calls.
    SyscallErrors = "tieback_syscall_errors_total",
    /// Durations of system calls.
    SyscallDuration = "tieback_syscall_duration_seconds",
    /// Open connections.
    Connections = "tieback_connections",
    /// Established connections.
    ConnectionsOpened = "tieback_connections_opened_total",
    /// Ended connections.
    ConnectionsClosed = "tieback_connections_closed_total",
    /// Ended connections by how they ended.
    ConnectionsEnded = "tieback_connections_ended_total",
    /// Failed connections.
    ConnectionFailures = "tieback_connection_failures_total",
    /// Payload of connections.
    ConnectionBytes = "tieback_connection_bytes_total",
    /// Retransmitted segments.
    Retransmits = "tieback_tcp_retransmits_total",
    /// Connections of pools by state.
    PoolConnections = "tieback_pool_connections",
    /// Most at once.
    PoolPeak = "tieback_pool_peak_connections",
    /// Time of connections by state.
    PoolSeconds = "tieback_pool_connection_seconds_total",
    /// Exchanges.
    PoolExchanges = "tieback_pool_exchanges_total",
    /// Established connections of pools.
    PoolOpened = "tieback_pool_opened_total",
    /// Connections for at most one exchange.
    PoolOnce = "tieback_pool_closed_after_one_exchange_total",
    /// Mean age of open ones.
    PoolMeanAge = "tieback_pool_connection_mean_age_seconds",
    /// Age of the oldest.
    PoolOldestAge = "tieback_pool_connection_oldest_age_seconds",
    /// Connections that wait to be accepted.
    ListenQueue = "tieback_listen_queue_connections",
    /// How many may wait.
    ListenLimit = "tieback_listen_queue_limit",
    /// How long they waited.
    ListenSeconds = "tieback_listen_queue_connection_seconds_total",
    /// How many were accepted.
    ListenAccepted = "tieback_listen_accepted_total",
    /// How many were dropped.
    ListenDropped = "tieback_listen_dropped_total",
    /// Connect latency.
    ConnectDuration = "tieback_connect_duration_seconds",
    /// Age at close.
    ConnectionAge = "tieback_connection_age_seconds",
    /// Waits by code.
    CodeWait = "tieback_code_wait_seconds_total",
    /// CPU by code.
    CodeCpu = "tieback_code_cpu_seconds_total",
    /// Growth by code.
    CodeMemory = "tieback_code_memory_growth_bytes_total",
    /// Growth by code that is still there.
    CodeMemoryNet = "tieback_code_memory_net_bytes",
    /// Allocated bytes by code.
    CodeAlloc = "tieback_code_alloc_bytes_total",
    /// Live bytes by code.
    CodeAllocLive = "tieback_code_alloc_live_bytes",
    /// System calls by code.
    CodeSyscalls = "tieback_code_syscalls_total",
    /// Opened connections by code.
    CodeConnections = "tieback_code_connections_opened_total",
    /// Growth of the number of descriptors by code.
    CodeFds = "tieback_code_fd_growth_total",
    /// Descriptors that stay open by code.
    CodeOpenFds = "tieback_code_open_fds",
}

/// Exponents of two (in nanoseconds) of the histogram bounds that are exported for waits, disks and connections:
/// every second bound that the kernel side counts, 1 µs to 69 s by factors of four.
pub const FINE_BOUNDS: &[u32] = &[10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36];

/// The same for system calls, of which there are many per service: 1 µs to 17 s by factors of eight.
pub const COARSE_BOUNDS: &[u32] = &[10, 13, 16, 19, 22, 25, 28, 31, 34];

/// The bounds of a histogram metric.
#[must_use]
pub const fn bounds(metric: Metric) -> &'static [u32] {
    if matches!(metric, Metric::SyscallDuration) {
        COARSE_BOUNDS
    } else {
        FINE_BOUNDS
    }
}

/// Series of one histogram: its bounds, `+Inf`, sum and count.
const fn histogram_series(metric: Metric) -> usize {
    bounds(metric).len() + 3
}

/// Observations up to and including the bound of `2^exponent` ns.
#[must_use]
pub fn cumulated(histogram: &Histogram, exponent: u32) -> u64 {
    let buckets = (exponent as usize).saturating_sub(9).min(HISTOGRAM_BUCKETS);
    histogram.buckets()[..buckets]
        .iter()
        .fold(0, |sum: u64, &count| sum.saturating_add(count))
}

/// All observations.
#[must_use]
pub fn observations(histogram: &Histogram) -> u64 {
    histogram
        .buckets()
        .iter()
        .fold(0, |sum: u64, &count| sum.saturating_add(count))
}

impl ServiceSnapshot {
    /// Causes with a series: those that ever waited.
    pub fn causes(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL
            .iter()
            .map(|&cause| (cause, self.totals.wait_ns[cause.index()]))
            .filter(|(_, ns)| *ns > 0)
    }

    /// Kinds of stalls that happened, with their time and number.
    pub fn stalls(&self) -> impl Iterator<Item = (Stall, u64, u64)> {
        let totals = &self.totals;
        Stall::ALL
            .iter()
            .map(|&kind| (kind, totals.stall_ns[kind.index()], totals.stalls[kind.index()]))
            .filter(|(.., count)| *count > 0)
    }

    /// Histograms of causes with observations.
    pub fn wait_histograms(&self) -> impl Iterator<Item = (Cause, &Histogram)> {
        Cause::ALL
            .iter()
            .map(|&cause| (cause, &self.totals.wait[cause.index()]))
            .filter(|(_, h)| h.any())
    }

    /// Histograms of system calls with observations.
    pub fn syscall_histograms(&self) -> impl Iterator<Item = (u16, &Histogram)> {
        self.totals
            .syscalls
            .iter()
            .map(|(&number, calls)| (number, &calls.duration))
            .filter(|(_, h)| h.any())
    }

    /// Disk operations that happened, with bytes and latencies.
    pub fn disk(&self) -> impl Iterator<Item = (DiskOp, u64, &Histogram)> {
        DiskOp::ALL
            .iter()
            .map(|&op| {
                (
                    op,
                    self.totals.disk[op.index()].bytes,
                    &self.totals.disk[op.index()].duration,
                )
            })
            .filter(|(_, bytes, duration)| *bytes > 0 || duration.any())
    }

    /// Connection histograms with observations: of connecting, or of the age at close.
    pub fn conn_histograms(
        &self,
        pick: fn(&ConnTotals) -> &Histogram,
    ) -> impl Iterator<Item = (Direction, Peer, &Histogram)> {
        self.totals
            .conns
            .iter()
            .map(move |(&(direction, peer), conn)| (direction, peer, pick(conn)))
            .filter(|(_, _, h)| h.any())
    }

    /// Ends of connections that happened.
    pub fn ended(&self) -> impl Iterator<Item = (Direction, Peer, ConnEnd, u64)> {
        self.totals.conns.iter().flat_map(|(&(direction, peer), conn)| {
            ConnEnd::ALL
                .iter()
                .map(move |&end| (direction, peer, end, conn.ended[end.index()]))
                .filter(|(.., count)| *count > 0)
        })
    }

    /// A number summed over both directions, by peer; peers without any are left out.
    #[must_use]
    pub fn by_peer(&self, pick: impl Fn(&ConnTotals) -> u64) -> Vec<(Peer, u64)> {
        by_peer(&self.totals, pick)
    }

    /// Code series of a signal.
    #[must_use]
    pub fn code_series(&self, kind: StackKind) -> &[CodeSeries] {
        self.code.get(&kind).map_or(&[], Vec::as_slice)
    }

    /// How many series a metric has for this service; `export` renders exactly as many.
    #[must_use]
    pub fn series(&self, metric: Metric) -> usize {
        let totals = &self.totals;
        let each = histogram_series(metric);
        match metric {
            Metric::ServiceInfo
            | Metric::Processes
            | Metric::MemoryGrowth
            | Metric::MemoryReturned
            | Metric::OomKills
            | Metric::FdGrowth => 1,
            Metric::AllocBytes | Metric::AllocObjects => usize::from(totals.alloc_objects > 0),
            Metric::AllocLive => usize::from(totals.alloc_live_bytes > 0),
            Metric::CodeAlloc => self.code_series(StackKind::Alloc).len(),
            Metric::CodeAllocLive => self.live.code.len(),
            Metric::Wait => self.causes().count(),
            Metric::MemoryStall | Metric::MemoryStalls => self.stalls().count(),
            Metric::Cpu => 3,
            Metric::PageFaults => 2,
            Metric::MemoryResident => MemoryKind::COUNT,
            Metric::OpenFds => FdKind::COUNT,
            Metric::FdLimit => usize::from(totals.fd_limit > 0),
            Metric::FdForecast => usize::from(totals.fd_forecast.is_some()),
            Metric::DiskBytes => self.disk().count(),
            Metric::DiskDuration => self.disk().count() * each,
            Metric::WaitDuration => self.wait_histograms().count() * each,
            Metric::Syscalls => totals.syscalls.len(),
            Metric::SyscallErrors => totals.syscalls.values().map(|calls| calls.errors.len()).sum(),
            Metric::SyscallDuration => self.syscall_histograms().count() * each,
            Metric::Connections | Metric::ConnectionsOpened | Metric::ConnectionsClosed => totals.conns.len(),
            Metric::ConnectionBytes => totals.conns.len() * 2,
            Metric::ConnectionsEnded => self.ended().count(),
            Metric::PoolConnections | Metric::PoolPeak | Metric::PoolSeconds => {
                totals.pools.len() + pools::used(&totals.pools)
            }
            Metric::PoolOpened => totals.pools.len(),
            Metric::PoolExchanges | Metric::PoolOnce => pools::used(&totals.pools),
            Metric::PoolMeanAge | Metric::PoolOldestAge => pools::aged(&totals.pools),
            Metric::ListenQueue
            | Metric::ListenLimit
            | Metric::ListenSeconds
            | Metric::ListenAccepted
            | Metric::ListenDropped => totals.listeners.len(),
            Metric::ConnectionFailures => ConnFailure::ALL
                .iter()
                .map(|why| self.by_peer(|conn| conn.failures[why.index()]).len())
                .sum(),
            Metric::Retransmits => self.by_peer(|conn| conn.retransmits).len(),
            Metric::ConnectDuration => self.conn_histograms(|conn| &conn.connect).count() * each,
            Metric::ConnectionAge => self.conn_histograms(|conn| &conn.age).count() * each,
            Metric::CodeWait => self.code_series(StackKind::Wait).len(),
            Metric::CodeCpu => self.code_series(StackKind::Cpu).len(),
            Metric::CodeMemory => self.code_series(StackKind::Memory).len(),
            Metric::CodeMemoryNet => self.net.series(),
            Metric::CodeSyscalls => self.code_series(StackKind::Syscall).len(),
            Metric::CodeConnections => self.code_series(StackKind::Conn).len(),
            Metric::CodeFds => self.code_series(StackKind::Fd).len(),
            Metric::CodeOpenFds => self.openers.len(),
        }
    }
}

fn by_peer(totals: &Totals, pick: impl Fn(&ConnTotals) -> u64) -> Vec<(Peer, u64)> {
    let mut peers = BTreeMap::new();
    for (&(_, peer), conn) in &totals.conns {
        let amount = pick(conn);
        if amount > 0 {
            let sum: &mut u64 = peers.entry(peer).or_default();
            *sum = sum.saturating_add(amount);
        }
    }
    peers.into_iter().collect()
}

/// A set of metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricSet(u128);

impl MetricSet {
    /// Whether the metric is in it.
    #[must_use]
    pub const fn contains(self, metric: Metric) -> bool {
        self.0 & (1u128 << metric as u8) != 0
    }

    /// Puts a metric in.
    pub const fn insert(&mut self, metric: Metric) {
        self.0 |= 1u128 << metric as u8;
    }
}

/// Fills in what the budget admits: metric by metric in the order of [`Metric::ALL`], within a metric the service
/// that was first seen first (`order`), and nothing more from the first that does not fit, so that a small late
/// series never stands in for a big early one. Returns the number of admitted series and those left out by metric.
pub(super) fn admit(
    services: &mut [ServiceSnapshot],
    order: &[usize],
    limit: usize,
) -> (usize, Vec<(Metric, usize)>) {
    let mut admitted = 0;
    let mut full = false;
    let mut capped = Vec::new();
    for &metric in Metric::ALL {
        let mut left_out = 0;
        for &at in order {
            let Some(service) = services.get_mut(at) else {
                continue;
            };
            let series = service.series(metric);
            full |= admitted + series > limit;
            if full {
                left_out += series;
            } else {
                admitted += series;
                service.admitted.insert(metric);
            }
        }
        if left_out > 0 {
            capped.push((metric, left_out));
        }
    }
    (admitted, capped)
}
