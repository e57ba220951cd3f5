//! What a descriptor refers to, from the kernel's own structures.

use aya_ebpf::{btf_maps::Array, macros::btf_map};

use super::task::{Kernel, current, field, offset};
use crate::wire::{Cause, FdKind, FileOps};

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

/// Addresses of the file operations of [`FileOps`]: they tell a file's kind sooner than its inode does, and they alone tell
/// anonymous inodes apart. 0 where the agent could open no file of that kind.
#[btf_map]
static FILE_OPS: Array<[u64; FileOps::COUNT], 1> = Array::new();

/// Looks at an open file of each of [`FileOps`], whose descriptors the agent hands over. (Kernels name their data to nobody unless
/// they have CONFIG_KALLSYMS_ALL.)
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/learn_files")]
extern "C" fn learn_files(ctx: *const u64) -> i32 {
    let Some(learnt) = FILE_OPS.get_ptr_mut(0) else {
        return 0;
    };
    for at in 0..FileOps::COUNT {
        // SAFETY: the verifier allows twelve arguments; a map value that only this program writes, which the agent runs once.
        unsafe {
            let file = File::of(current(), *ctx.add(at));
            (*learnt)[at] = file.and_then(|file| file.0.read(offset!(file_op))).unwrap_or(0);
        }
    }
    0
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

    /// Its kind, where the file operations tell it.
    #[inline(always)]
    fn learnt(self) -> Option<FileOps> {
        let op = self.0.read::<u64>(offset!(file_op))?;
        let known = FILE_OPS.get(0)?;
        let is = |kind: &&FileOps| op != 0 && op == known[kind.index()];
        FileOps::ALL.iter().find(is).copied()
    }

    /// Why a blocked call on this file waits.
    #[inline(always)]
    pub(crate) fn cause(self) -> Cause {
        match self.learnt() {
            Some(FileOps::Socket) => self.socket_cause(),
            Some(FileOps::Pipe | FileOps::Eventfd) => Cause::Ipc,
            Some(FileOps::Timerfd) => Cause::Sleep,
            Some(FileOps::Epoll | FileOps::Inotify | FileOps::Signalfd) => Cause::Idle,
            None => match self.mode() {
                Some(S_IFREG | S_IFBLK | S_IFDIR) => Cause::Disk,
                Some(S_IFIFO) => Cause::Ipc,
                // Few sockets have operations of their own.
                Some(S_IFSOCK) => self.socket_cause(),
                _ => Cause::Other,
            },
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

    /// Kind for the gauge of open descriptors.
    #[inline(always)]
    pub(crate) fn kind(self) -> FdKind {
        match self.learnt() {
            Some(FileOps::Socket) => FdKind::Socket,
            Some(FileOps::Pipe) => FdKind::Pipe,
            Some(FileOps::Eventfd) => FdKind::Eventfd,
            Some(FileOps::Epoll) => FdKind::Epoll,
            Some(FileOps::Timerfd) => FdKind::Timerfd,
            Some(FileOps::Inotify) => FdKind::Inotify,
            Some(FileOps::Signalfd) => FdKind::Other,
            None => match self.mode() {
                Some(S_IFREG | S_IFDIR) => FdKind::File,
                Some(S_IFSOCK) => FdKind::Socket,
                Some(S_IFIFO) => FdKind::Pipe,
                Some(S_IFCHR | S_IFBLK) => FdKind::Device,
                _ => FdKind::Other,
            },
        }
    }
}
