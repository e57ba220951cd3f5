//! Types and help texts of the metrics of services.

use super::writer::{Family, Type};
use crate::aggregate::Metric;

/// What stands above the samples of a metric.
pub(super) fn family(metric: Metric) -> Family {
    use Type::{Counter, Gauge, Histogram};
    let (kind, help) = match metric {
        Metric::ServiceInfo => (
            Gauge,
            "Always 1; what is known of the service besides its identity.",
        ),
        Metric::Processes => (Gauge, "Live processes."),
        Metric::Wait => (
            Counter,
            "Seconds that threads spent off the CPU, by cause. Exact, but for the division between lock and idle, which is estimated from sampled stacks.",
        ),
        Metric::Cpu => (
            Counter,
            "Seconds that threads spent on a CPU, by mode; steal: the hypervisor took the CPU away meanwhile, or interrupts where the kernel accounts for them.",
        ),
        Metric::MemoryResident => (
            Gauge,
            "Memory of the processes in bytes by kind; swap is what is swapped out, not resident.",
        ),
        Metric::MemoryGrowth => (
            Counter,
            "Bytes by which anonymous resident memory grew; shrinking is not subtracted.",
        ),
        Metric::MemoryReturned => (
            Counter,
            "Bytes by which anonymous resident memory shrank while the process lived; swapped out counts as well.",
        ),
        Metric::MemoryStall => (
            Counter,
            "Seconds in which threads had to free memory before they got any, for want of the host's (reclaim), at the limit of their \
             cgroup (limit), or of one piece (compaction), or waited for pages that had just been evicted or swapped out (refault). \
             They passed on the CPU or waiting and are part of those seconds, too.",
        ),
        Metric::MemoryStalls => (Counter, "Times that threads were held up for want of memory."),
        Metric::PageFaults => (Counter, "Page faults by kind; major ones waited for storage."),
        Metric::OomKills => (Counter, "Processes killed for want of memory."),
        Metric::AllocBytes => (
            Counter,
            "Allocated bytes of services whose allocations are watched (--alloc): exact in mode full, an estimate in mode duty and of Go's own profile.",
        ),
        Metric::AllocObjects => (
            Counter,
            "Allocations of services whose allocations are watched: exact in mode full, an estimate in mode duty and of Go's own profile.",
        ),
        Metric::AllocLive => (
            Gauge,
            "Bytes that were allocated since the process is watched in mode full and not freed, of Go programs all that is in use; estimated from samples.",
        ),
        Metric::OpenFds => (Gauge, "Open file descriptors by kind."),
        Metric::FdLimit => (
            Gauge,
            "Lowest soft limit of open file descriptors among the processes.",
        ),
        Metric::FdGrowth => (
            Counter,
            "Descriptors by which processes went beyond the most that they had had open at the end of a window before.",
        ),
        Metric::FdForecast => (
            Gauge,
            "Seconds until the first process reaches its soft limit of descriptors, if their number goes on growing as it does; absent where it does not grow.",
        ),
        Metric::DiskBytes => (Counter, "Bytes of finished block requests by operation."),
        Metric::DiskDuration => (
            Histogram,
            "Seconds from issue to completion of block requests by operation.",
        ),
        Metric::WaitDuration => (
            Histogram,
            "Seconds of single waits that ended, by cause. All futex waits are under lock, idle ones too.",
        ),
        Metric::Syscalls => (Counter, "System calls that returned."),
        Metric::SyscallErrors => (Counter, "System calls that failed, by errno."),
        Metric::SyscallDuration => (
            Histogram,
            "Seconds of system calls; a sample of them scaled to all.",
        ),
        Metric::Connections => (
            Gauge,
            "Open TCP connections by direction and peer, those older than the agent included.",
        ),
        Metric::ConnectionsOpened => (Counter, "Established TCP connections by direction and peer."),
        Metric::ConnectionsClosed => (Counter, "Ended TCP connections by direction and peer."),
        Metric::ConnectionsEnded => (
            Counter,
            "Ended TCP connections by direction, peer and how: closed by us or by them, reset by either, timeout (no answer any more), death (the process ended).",
        ),
        Metric::PoolConnections => (
            Gauge,
            "Open TCP connections by direction, peer and state at the last sample; busy while the last data went from the client to the server.",
        ),
        Metric::PoolPeak => (
            Gauge,
            "Most TCP connections at once within the retention of profiles (15 min), by direction, peer and state; of busy ones the most that a sample found.",
        ),
        Metric::PoolMeanAge => (
            Gauge,
            "Mean age of the TCP connections that were open at the last sample, by direction and peer; those older than the agent count from its start.",
        ),
        Metric::PoolOldestAge => (
            Gauge,
            "Age of the oldest TCP connection that was open at the last sample, by direction and peer; one older than the agent counts from its start.",
        ),
        Metric::PoolSeconds => (
            Counter,
            "Seconds that TCP connections were open, summed over connections, by direction, peer and state; sampled.",
        ),
        Metric::PoolExchanges => (
            Counter,
            "Requests with their answers on TCP connections, estimated from data segments.",
        ),
        Metric::PoolOpened => (Counter, "Established TCP connections by direction and peer."),
        Metric::PoolOnce => (
            Counter,
            "TCP connections that ended after at most one request and its answer.",
        ),
        Metric::ListenQueue => (
            Gauge,
            "TCP connections that wait to be accepted, by the address listened on, at the last sample.",
        ),
        Metric::ListenLimit => (
            Gauge,
            "TCP connections that may wait to be accepted, by the address listened on; 0 where nobody listens any more.",
        ),
        Metric::ListenSeconds => (
            Counter,
            "Seconds that TCP connections waited to be accepted, summed over connections, by the address listened on; sampled. By \
             tieback_listen_accepted_total it is the mean wait.",
        ),
        Metric::ListenAccepted => (
            Counter,
            "TCP connections that were accepted, by the address listened on.",
        ),
        Metric::ListenDropped => (
            Counter,
            "Segments that the kernel dropped instead of taking up a connection, because too many waited to be accepted as a rule, \
             by the address listened on.",
        ),
        Metric::ConnectionFailures => (Counter, "Failed TCP connections by peer and reason."),
        Metric::ConnectionBytes => (
            Counter,
            "Payload bytes of TCP connections by direction, peer and way (sent or received).",
        ),
        Metric::Retransmits => (Counter, "Retransmitted TCP segments by peer."),
        Metric::ConnectDuration => (
            Histogram,
            "Seconds from the first segment of a TCP connection until it was established.",
        ),
        Metric::ConnectionAge => (
            Histogram,
            "Age in seconds of TCP connections when they were closed.",
        ),
        Metric::CodeWait => (
            Counter,
            "Seconds of tieback_wait_seconds_total by the code that waited; sampled, scaled to the exact total.",
        ),
        Metric::CodeCpu => (
            Counter,
            "Seconds of tieback_cpu_seconds_total by the code that ran; sampled, scaled to the exact total.",
        ),
        Metric::CodeMemoryNet => (
            Gauge,
            "Bytes of anonymous memory that the code touched first since the agent started and that are still there; an estimate \
             from samples.",
        ),
        Metric::CodeMemory => (
            Counter,
            "Bytes of tieback_memory_growth_bytes_total by the code that touched them first; sampled, scaled to the exact total.",
        ),
        Metric::CodeAlloc => (
            Counter,
            "Bytes of tieback_alloc_bytes_total by the code that allocated them; sampled by bytes, scaled to the total.",
        ),
        Metric::CodeAllocLive => (
            Gauge,
            "Bytes of tieback_alloc_live_bytes by the code that allocated them; estimated from samples.",
        ),
        Metric::CodeSyscalls => (
            Counter,
            "Calls of tieback_syscalls_total by the code that made them; sampled, scaled to the exact total.",
        ),
        Metric::CodeConnections => (Counter, "Connections opened, by the code that connected."),
        Metric::CodeFds => (
            Counter,
            "Descriptors of tieback_fd_growth_total by the code that opened those which stayed open; sampled while the number grows, scaled to the exact total.",
        ),
        Metric::CodeOpenFds => (
            Gauge,
            "Descriptors that are still open, of those whose opening was sampled while the number of descriptors grew, by the code that opened them.",
        ),
    };
    Family {
        name: metric.name(),
        kind,
        help,
    }
}
