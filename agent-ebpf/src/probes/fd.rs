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
        Field::TaskTgid,
        Field::TaskSignal,
        Field::SignalRlim,
        Field::FileInode,
        Field::FilePrivate,
        Field::FileOp,
        Field::InodeMode,
        Field::InodeSb,
        Field::SbMagic,
        Field::SocketSk,
        Field::SkFamily,
        Field::SkState,
    ],
    metrics: &["tieback_open_fds", "tieback_fd_growth_total", "tieback_fd_limit_forecast_seconds"],
};

#[cfg(target_arch = "bpf")]
pub(crate) mod bpf {
    use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_seq_write, macros::btf_map};
    use core::ffi::c_void;

    use crate::{
        bpf::{
            adopt,
            file::File,
            sock::Sock,
            state::{slot, thread, tuning},
            task::{Kernel, field, offset},
            unix,
        },
        probes::opener,
        wire::{FdKind, FdProcess, SLOT_KERNEL},
    };

    /// The process whose descriptors are being visited; 0 once it was told.
    #[btf_map]
    static FD_RUNNING: Array<FdProcess, 1> = Array::new();

    const RLIMIT_NOFILE: u32 = 7;

    /// Soft limit of descriptors.
    #[inline(always)]
    pub(crate) fn limit(task: Kernel) -> u64 {
        task.follow(field!(task_signal))
            .read(offset!(signal_rlim).wrapping_add(RLIMIT_NOFILE * 16))
            .unwrap_or(0)
    }

    /// Threads that share their table of descriptors are visited once, and all descriptors of a thread together
    /// (kernel/bpf/task_iter.c).
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task_file")]
    fn fd_harvest(ctx: *mut c_void) -> i32 {
        // SAFETY: the context of `iter/task_file` is `{ meta, task, fd, file }`.
        let (task, fd, file) = unsafe {
            (
                Kernel(*ctx.cast::<*const u8>().add(1)),
                *ctx.cast::<u32>().add(4),
                Kernel(*ctx.cast::<*const u8>().add(3)),
            )
        };
        let Some(tuning) = tuning() else { return 0 };
        let Some(running) = FD_RUNNING.get_ptr_mut(0) else { return 0 };
        let at_end = task.0.is_null() || file.0.is_null();
        let tid: u32 = if at_end { 0 } else { task.load(field!(task_pid)) };
        let thread = thread(tid);
        // SAFETY: a map value.
        let (id, pid) = thread.map_or((0, 0), |thread| unsafe { ((*thread).slot, (*thread).tgid) });
        let file = File(file);
        let sock = if at_end || id <= SLOT_KERNEL { None } else { file.sock().map(Sock) };
        // SAFETY: a map value that only this iterator writes; `meta` begins with `seq`.
        unsafe {
            // Both are written before anything is counted: where there is no room, the kernel takes back what was written for the
            // descriptor, shows it once more, and it must count once.
            let told = (*running).pid == 0 || (*running).round != tuning.round;
            let ended = !told && (*running).pid != tid;
            if ended && !tell(ctx, running.cast()) {
                return 0;
            }
            if let Some(end) = sock.and_then(|sock| sock.unix(id, file.inode_number() as u32)) {
                if !tell(ctx, (&raw const end).cast()) {
                    return 0;
                }
                unix::visited(&end);
            }
            if ended {
                (*running).pid = 0;
            }
        }
        if at_end {
            return 0;
        }
        if id <= SLOT_KERNEL {
            return 0;
        }
        let Some(slot) = slot(id) else { return 0 };
        if task.load::<u32, _>(field!(task_tgid)) == tid {
            // SAFETY: a map value that only this iterator writes.
            unsafe {
                if (*running).pid != tid || (*running).round != tuning.round {
                    running.write(FdProcess { pid: tid, slot: id, open: 0, round: tuning.round, limit: limit(task), pad: [0; 2] });
                }
                (*running).open += 1;
            }
        }
        // SAFETY: a map value; only this iterator writes these fields.
        let s = unsafe { &mut *slot };
        if s.fds_round != u64::from(tuning.round) {
            s.fds_round = u64::from(tuning.round);
            s.fds = [0; FdKind::COUNT];
        }
        let kind = file.kind() as usize;
        if kind < FdKind::COUNT {
            s.fds[kind] += 1;
        }
        if let Some(sock) = sock {
            adopt::adopt(sock, id, tuning.listeners_only != 0);
        }
        if opener::bpf::watched(tuning, pid) {
            opener::bpf::visited(tuning, pid, fd, file.0, kind as u32);
        }
        0
    }

    /// Writes an [`FdProcess`] or what is as long; `false` where there is no room.
    ///
    /// # Safety
    /// `ctx` is the context of the iterator, and `record` a map value or on the stack.
    #[inline(always)]
    unsafe fn tell(ctx: *mut c_void, record: *const c_void) -> bool {
        // SAFETY: `meta` begins with `seq`; the verifier knows the lengths of both.
        unsafe {
            let meta = *ctx.cast::<*const *mut c_void>();
            bpf_seq_write((*meta).cast(), record.cast_mut(), size_of::<FdProcess>() as u32) == 0
        }
    }
}
