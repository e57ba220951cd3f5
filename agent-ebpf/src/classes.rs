//! What each system call waits for, as classes that the agent writes into `WAIT_CLASSES`.

/// Not known to wait for anything in particular.
pub const CLASS_OTHER: u32 = 0;
/// Waits for work: epoll, poll, select, accept, wait4, sigwait, io_uring.
pub const CLASS_IDLE: u32 = 1;
/// Asked to sleep.
pub const CLASS_SLEEP: u32 = 2;
/// Futexes and file locks.
pub const CLASS_LOCK: u32 = 3;
/// The kind of the descriptor in the first argument tells.
pub const CLASS_FD: u32 = 4;
/// Storage whatever the descriptor.
pub const CLASS_DISK: u32 = 5;
/// System V and POSIX message queues and semaphores.
pub const CLASS_IPC: u32 = 6;

/// Class of a system call by its name.
#[must_use]
pub fn class_of(name: &str) -> u32 {
    match name {
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "poll" | "ppoll" | "select" | "pselect6"
        | "accept" | "accept4" | "wait4" | "waitid" | "pause" | "rt_sigsuspend" | "rt_sigtimedwait"
        | "io_uring_enter" | "io_getevents" | "io_pgetevents" | "vfork" | "clone" | "clone3" => CLASS_IDLE,
        "nanosleep" | "clock_nanosleep" => CLASS_SLEEP,
        "futex" | "futex_wait" | "futex_waitv" | "flock" | "fcntl" => CLASS_LOCK,
        "read" | "write" | "readv" | "writev" | "pread64" | "pwrite64" | "preadv" | "pwritev" | "preadv2"
        | "pwritev2" | "recvfrom" | "sendto" | "recvmsg" | "sendmsg" | "recvmmsg" | "sendmmsg"
        | "connect" | "sendfile" | "splice" | "tee" | "vmsplice" | "close" | "shutdown"
        | "copy_file_range" | "getdents64" | "ioctl" => CLASS_FD,
        "fsync" | "fdatasync" | "sync" | "syncfs" | "sync_file_range" | "msync" | "fallocate"
        | "ftruncate" | "readahead" => CLASS_DISK,
        "msgrcv" | "msgsnd" | "semop" | "semtimedop" | "mq_timedreceive" | "mq_timedsend" => CLASS_IPC,
        _ => CLASS_OTHER,
    }
}
