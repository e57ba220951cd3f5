//! What the kernel side keeps and tells of descriptors.

use super::FdKind;

/// Processes whose descriptors are watched at once.
pub const WATCHED: usize = 4;

/// [`OpenerFd::kind`] before the descriptor was visited.
pub const FD_UNVISITED: u32 = FdKind::COUNT as u32;

/// Open descriptors of a process that has some: what `fd_harvest` writes for each.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct FdProcess {
    /// Process.
    pub pid: u32,
    /// Slot.
    pub slot: u32,
    /// Open descriptors.
    pub open: u32,
    /// [`Tuning::round`](super::Tuning::round) that they were counted in.
    pub round: u32,
    /// Soft limit.
    pub limit: u64,
    /// Padding.
    pub pad: [u64; 2],
}
const _: () = assert!(size_of::<FdProcess>() == 40);

/// A descriptor whose opening was sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OpenerKey {
    /// Process.
    pub pid: u32,
    /// Number of the descriptor.
    pub fd: u32,
}

/// What is known of it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OpenerFd {
    /// Address of the open file: another one under the same number is another descriptor.
    pub file: u64,
    /// Id of the stack.
    pub id: u64,
    /// When it was opened, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// Slot.
    pub slot: u32,
    /// [`Tuning::round`](super::Tuning::round) when it was opened.
    pub round: u32,
    /// The last one in which it was found open.
    pub seen: u32,
    /// One of how many openings was sampled then.
    pub every: u32,
    /// `FdKind`, or [`FD_UNVISITED`].
    pub kind: u32,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<OpenerFd>() == 48);

/// Keeps the stacks of openings at a bounded rate.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct OpenerRate {
    /// [`Tuning::round`](super::Tuning::round) that `taken` belongs to.
    pub round: u32,
    /// Stacks taken since `every` last changed.
    pub taken: u32,
    /// One of how many openings is sampled; 0 counts as 1.
    pub every: u32,
    /// Padding.
    pub pad: u32,
}

/// Stacks in one round after which only half as many openings are sampled.
pub const OPENER_BURST: u32 = 128;

/// Returns no descriptor.
pub const CALL_NONE: u32 = 0;
/// Returns a descriptor.
pub const CALL_RETURNS: u32 = 1;
/// `fcntl`: returns one for some commands.
pub const CALL_FCNTL: u32 = 2;
/// Writes two of them to where its first argument points.
pub const CALL_PAIR_FIRST: u32 = 3;
/// The same for its fourth argument.
pub const CALL_PAIR_FOURTH: u32 = 4;
/// Returns one of a connection.
pub const CALL_ACCEPT: u32 = 5;
/// Returns none, but makes its first argument one of a connection.
pub const CALL_CONNECT: u32 = 6;

/// How a system call opens descriptors or connections, by its name. Those that come with a message over a Unix socket or by io_uring are
/// not here: nothing says which code wanted them.
#[must_use]
pub fn opens(name: &str) -> u32 {
    match name {
        "open"
        | "openat"
        | "openat2"
        | "creat"
        | "socket"
        | "dup"
        | "dup2"
        | "dup3"
        | "eventfd"
        | "eventfd2"
        | "epoll_create"
        | "epoll_create1"
        | "timerfd_create"
        | "signalfd"
        | "signalfd4"
        | "inotify_init"
        | "inotify_init1"
        | "fanotify_init"
        | "memfd_create"
        | "memfd_secret"
        | "pidfd_open"
        | "pidfd_getfd"
        | "userfaultfd"
        | "perf_event_open"
        | "bpf"
        | "io_uring_setup"
        | "open_by_handle_at"
        | "open_tree"
        | "fsopen"
        | "fsmount"
        | "fspick"
        | "mq_open"
        | "landlock_create_ruleset" => CALL_RETURNS,
        "accept" | "accept4" => CALL_ACCEPT,
        "connect" => CALL_CONNECT,
        "fcntl" => CALL_FCNTL,
        "pipe" | "pipe2" => CALL_PAIR_FIRST,
        "socketpair" => CALL_PAIR_FOURTH,
        _ => CALL_NONE,
    }
}
