//! What a descriptor refers to, from the kernel's own structures.

use aya_ebpf::{Global, btf_maps::Array, macros::btf_map};

use super::task::{Kernel, field, offset};
use crate::wire::{Cause, FdKind};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const S_IFREG: u16 = 0o100_000;
const S_IFBLK: u16 = 0o060_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFCHR: u16 = 0o020_000;
const S_IFIFO: u16 = 0o010_000;
/// linux/magic.h.
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Addresses of the file operations of eventfd, epoll, timerfd, inotify and signalfd, which tell anonymous inodes
/// apart; 0 where kallsyms hides them.
#[unsafe(no_mangle)]
static ANON_FOPS: Global<[u64; 5]> = Global::new([0; 5]);

/// Addresses of the file operations of sockets and of pipes, learnt from the first of each that the iterator over
/// descriptors sees: they tell these two kinds sooner than the inode does.
#[btf_map]
static COMMON_FOPS: Array<u64, 2> = Array::new();
const SOCKET_FOPS: u32 = 0;
const PIPE_FOPS: u32 = 1;

/// Whether `op` is the known address of this kind.
#[inline(always)]
fn is_known(op: u64, kind: u32) -> bool {
    op != 0 && COMMON_FOPS.get(kind).is_some_and(|known| *known == op)
}

/// An open file.
#[derive(Clone, Copy)]
pub(crate) struct File(pub(crate) Kernel);

impl File {
    /// The file behind a descriptor of a task.
    #[inline(always)]
    pub(crate) fn of(task: Kernel, fd: u64) -> Option<Self> {
        let table = task.follow(field!(task_files)).follow(field!(files_fdt));
        let max: u32 = table.load(field!(fdt_max));
        if fd >= u64::from(max) {
            return None;
        }
        let files: u64 = table.load(field!(fdt_fd));
        Kernel((files as *const u8).wrapping_add(fd as usize * 8))
            .deref(0)
            .map(Self)
    }

    /// Type bits of the inode's mode, 0 for anonymous inodes (which are regular files inside newer kernels).
    #[inline(always)]
    fn mode(self) -> Option<u16> {
        let inode = self.0.deref(offset!(file_inode))?;
        let mode = inode.read::<u16>(offset!(inode_mode))? & S_IFMT;
        if mode == S_IFREG {
            let magic: u64 = inode.deref(offset!(inode_sb))?.read(offset!(sb_magic))?;
            if magic == ANON_INODE_FS_MAGIC {
                return Some(0);
            }
        }
        Some(mode)
    }

    /// Number of its inode, 0 where it cannot be read.
    #[inline(always)]
    pub(crate) fn inode_number(self) -> u64 {
        let inode = self.0.deref(offset!(file_inode));
        inode
            .and_then(|inode| inode.read(offset!(inode_number)))
            .unwrap_or(0)
    }

    /// The socket's protocol half, for sockets.
    #[inline(always)]
    pub(crate) fn sock(self) -> Option<Kernel> {
        if self.mode()? != S_IFSOCK {
            return None;
        }
        self.0.deref(offset!(file_private))?.deref(offset!(socket_sk))
    }

    #[inline(always)]
    fn anon(self) -> FdKind {
        let Some(op) = self.0.read::<u64>(offset!(file_op)) else {
            return FdKind::Other;
        };
        let [eventfd, epoll, timerfd, inotify, _signalfd] = ANON_FOPS.load();
        if op == eventfd {
            FdKind::Eventfd
        } else if op == epoll {
            FdKind::Epoll
        } else if op == timerfd {
            FdKind::Timerfd
        } else if op == inotify {
            FdKind::Inotify
        } else {
            FdKind::Other
        }
    }

    /// Why a blocked call on this file waits.
    #[inline(always)]
    pub(crate) fn cause(self) -> Cause {
        let op = self.0.read::<u64>(offset!(file_op)).unwrap_or(0);
        if is_known(op, PIPE_FOPS) {
            return Cause::Ipc;
        }
        if is_known(op, SOCKET_FOPS) {
            return self.socket_cause();
        }
        match self.mode() {
            Some(S_IFREG | S_IFBLK | S_IFDIR) => Cause::Disk,
            Some(S_IFIFO) => Cause::Ipc,
            Some(S_IFSOCK) => self.socket_cause(),
            Some(0) => match self.anon() {
                FdKind::Eventfd => Cause::Ipc,
                FdKind::Timerfd => Cause::Sleep,
                FdKind::Epoll | FdKind::Inotify => Cause::Idle,
                // Without kallsyms nothing tells them apart; eventfd is by far the most common to block on.
                _ => Cause::Ipc,
            },
            _ => Cause::Other,
        }
    }

    #[inline(always)]
    fn socket_cause(self) -> Cause {
        match self.family() {
            Some(AF_INET | AF_INET6) => Cause::Network,
            Some(AF_UNIX) => Cause::Ipc,
            _ => Cause::Other,
        }
    }

    #[inline(always)]
    fn family(self) -> Option<u16> {
        self.0
            .deref(offset!(file_private))?
            .deref(offset!(socket_sk))?
            .read(offset!(sk_family))
    }

    /// Remembers the file operations of this kind. (Few sockets have operations of their own; they are told by their
    /// inode, as before.)
    #[inline(always)]
    fn learn(self, kind: u32) {
        if let Some(known) = COMMON_FOPS.get_ptr_mut(kind)
            && let Some(op) = self.0.read::<u64>(offset!(file_op))
        {
            // SAFETY: a map value; only the iterator writes it.
            unsafe {
                if *known == 0 {
                    *known = op;
                }
            }
        }
    }

    /// Kind for the gauge of open descriptors.
    #[inline(always)]
    pub(crate) fn kind(self) -> FdKind {
        match self.mode() {
            Some(S_IFREG | S_IFDIR) => FdKind::File,
            Some(S_IFSOCK) => {
                self.learn(SOCKET_FOPS);
                FdKind::Socket
            }
            Some(S_IFIFO) => {
                self.learn(PIPE_FOPS);
                FdKind::Pipe
            }
            Some(S_IFCHR | S_IFBLK) => FdKind::Device,
            Some(0) => self.anon(),
            _ => FdKind::Other,
        }
    }
}
