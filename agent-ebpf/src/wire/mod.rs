//! Keys and values that the kernel side and the agent share: `#[repr(C)]`, no implicit padding, sizes asserted.
//!
//! Enumerations travel as integers and are decoded with a fallible `from_index`; an unknown value is counted, never
//! transmuted.

/// Declares a field-less enum whose discriminants are array indexes on both sides.
macro_rules! index_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every variant, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// How many variants there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The label value that users see.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The array index of this variant.
            #[must_use]
            pub const fn index(self) -> usize { self as usize }

            /// The variant of an index, `None` when the kernel side sent something else.
            #[must_use]
            pub fn from_index(index: u32) -> Option<Self> { Self::ALL.get(index as usize).copied() }
        }
    };
}

index_enum! {
    /// Why a thread is off the CPU (DESIGN.md 3.1).
    Cause {
        /// Runnable, but no CPU was free.
        Runqueue = "runqueue",
        /// Waiting for storage.
        Disk = "disk",
        /// Waiting for a page.
        Fault = "fault",
        /// Waiting on an inet socket.
        Network = "network",
        /// Waiting on a pipe, a Unix socket or an eventfd.
        Ipc = "ipc",
        /// Futex or file lock.
        Lock = "lock",
        /// Asked to sleep.
        Sleep = "sleep",
        /// Waiting for work.
        Idle = "idle",
        /// None of these.
        Other = "other",
    }
}

index_enum! {
    /// What a sampled stack tells about.
    StackKind {
        /// A blocked interval; the weight is nanoseconds of waiting.
        Wait = "wait",
        /// A tick of the CPU clock; the weight is nanoseconds on the CPU.
        Cpu = "cpu",
        /// System calls; the weight is a number of calls.
        Syscall = "syscall",
        /// Growth of anonymous memory; the weight is bytes.
        Memory = "memory",
        /// Opened connections; the weight is a number of connections.
        Conn = "conn",
        /// Allocated memory; the weight is bytes.
        Alloc = "alloc",
        /// Allocations; the weight is a number of them.
        AllocObjects = "alloc_objects",
        /// Allocated memory that was not freed; the weight is bytes, at the end of a tick.
        AllocLive = "alloc_live",
        /// Descriptors that stayed open; the weight is a number of descriptors.
        Fd = "fd",
    }
}

index_enum! {
    /// Who opened a connection.
    Direction {
        /// This service connected.
        Out = "out",
        /// This service accepted.
        In = "in",
    }
}

index_enum! {
    /// Why a connection failed.
    ConnFailure {
        /// The peer answered with a reset while connecting.
        Refused = "refused",
        /// The peer reset an established connection.
        Reset = "reset",
        /// No answer in time.
        Timeout = "timeout",
        /// No route, or an ICMP error.
        Unreachable = "unreachable",
        /// Closed by the service itself before it was established.
        Aborted = "aborted",
        /// Any other socket error.
        Other = "other",
    }
}

index_enum! {
    /// How an established connection ended.
    ConnEnd {
        /// This side closed it.
        Us = "us",
        /// The peer closed it first.
        Them = "them",
        /// Either side reset it.
        Reset = "reset",
        /// The peer did not answer any more, or the network said that it cannot.
        Timeout = "timeout",
        /// The process ended and left it open.
        Death = "death",
    }
}

index_enum! {
    /// Which way the last data of a connection went.
    LastData {
        /// There was none yet.
        None = "none",
        /// This side sent last: a client waits for its answer, a server has given it.
        Sent = "sent",
        /// This side received last: a client has its answer, a server works on it.
        Received = "received",
    }
}

index_enum! {
    /// A block request's operation.
    DiskOp {
        /// Read.
        Read = "read",
        /// Write.
        Write = "write",
        /// Flush of the device's cache.
        Flush = "flush",
        /// Discard, secure erase, write zeroes.
        Discard = "discard",
        /// Anything else.
        Other = "other",
    }
}

index_enum! {
    /// What an open descriptor refers to.
    FdKind {
        /// Regular file or directory.
        File = "file",
        /// Any socket.
        Socket = "socket",
        /// Pipe or FIFO.
        Pipe = "pipe",
        /// eventfd.
        Eventfd = "eventfd",
        /// epoll instance.
        Epoll = "epoll",
        /// timerfd.
        Timerfd = "timerfd",
        /// inotify.
        Inotify = "inotify",
        /// Character or block device.
        Device = "device",
        /// Anything else (signalfd, perf events, BPF objects, ...).
        Other = "other",
    }
}

index_enum! {
    /// Kinds of files that have file operations of their own, of which the kernel side learns the addresses.
    FileOps {
        /// Most sockets.
        Socket = "socket",
        /// Pipe or FIFO.
        Pipe = "pipe",
        /// eventfd.
        Eventfd = "eventfd",
        /// epoll instance.
        Epoll = "epoll",
        /// timerfd.
        Timerfd = "timerfd",
        /// inotify.
        Inotify = "inotify",
        /// signalfd.
        Signalfd = "signalfd",
    }
}

index_enum! {
    /// Kind of resident memory.
    MemoryKind {
        /// Anonymous pages.
        Anon = "anon",
        /// Pages of files.
        File = "file",
        /// Shared memory and tmpfs.
        Shmem = "shmem",
        /// Swapped out (not resident; reported beside).
        Swap = "swap",
    }
}

index_enum! {
    /// How want of memory held a thread up.
    Stall {
        /// It had to free some, because the host had too little.
        Reclaim = "reclaim",
        /// It had to free some, because its cgroup was at its limit.
        Limit = "limit",
        /// It had to make a piece that was large enough.
        Compaction = "compaction",
        /// It waited for what was taken away from it and soon needed again: swapped out, or of a file.
        Refault = "refault",
    }
}

mod alloc;
mod bucket;
mod conn;
mod events;
mod fd;
pub mod python;
mod state;
mod unix;
pub mod unwind;

pub use alloc::*;
pub use bucket::*;
pub use conn::*;
pub use events::*;
pub use fd::*;
pub use state::*;
pub use unix::*;
