//! Open descriptors, visited on each tick; also takes up sockets that are older than the agent.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "fd",
    help: "Open descriptors by kind, counted on each tick.",
    hooks: &[Hook { program: "fd_harvest", attach: Attach::Iter("task_file") }],
    fields: &[
        Field::TaskPid,
        Field::FileInode,
        Field::FilePrivate,
        Field::FileOp,
        Field::InodeMode,
        Field::InodeSb,
        Field::SbMagic,
        Field::SocketSk,
    ],
    metrics: &["tieback_open_fds"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use core::ffi::c_void;

    use crate::{
        bpf::{
            file::File,
            sock::Sock,
            state::{slot, thread, tuning},
            task::{Kernel, field},
        },
        probes::conn,
        wire::{FdKind, SLOT_KERNEL},
    };

    /// Threads that share their table of descriptors are visited once (kernel/bpf/task_iter.c).
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task_file")]
    fn fd_harvest(ctx: *mut c_void) -> i32 {
        // SAFETY: the context of `iter/task_file` is `{ meta, task, fd, file }`.
        let (task, file) = unsafe {
            (Kernel(*ctx.cast::<*const u8>().add(1)), Kernel(*ctx.cast::<*const u8>().add(3)))
        };
        if task.0.is_null() || file.0.is_null() {
            return 0;
        }
        let Some(tuning) = tuning() else { return 0 };
        let Some(thread) = thread(task.load(field!(task_pid))) else { return 0 };
        // SAFETY: a map value.
        let id = unsafe { (*thread).slot };
        if id <= SLOT_KERNEL {
            return 0;
        }
        let Some(slot) = slot(id) else { return 0 };
        // SAFETY: a map value; only this iterator writes these fields.
        let s = unsafe { &mut *slot };
        if s.fds_round != u64::from(tuning.round) {
            s.fds_round = u64::from(tuning.round);
            s.fds = [0; FdKind::COUNT];
        }
        let file = File(file);
        let kind = file.kind() as usize;
        if kind < FdKind::COUNT {
            s.fds[kind] += 1;
        }
        if let Some(sock) = file.sock() {
            conn::bpf::adopt(Sock(sock), id);
        }
        0
    }
}
