//! Lives of processes and the harvest of what the kernel counts by itself.

use crate::{
    offsets::Field,
    probe::{Attach, Hook, Probe},
};

/// What it is.
pub const PROBE: Probe = Probe {
    name: "process",
    help: "Lives of processes (fork, exec, exit) and the tick's harvest of what the kernel counts by itself.",
    hooks: &[
        Hook { program: "process_fork", attach: Attach::TpBtf(&["sched_process_fork"]) },
        Hook { program: "process_exec", attach: Attach::TpBtf(&["sched_process_exec"]) },
        Hook { program: "process_harvest", attach: Attach::Iter("task") },
    ],
    fields: &[
        Field::TaskPid,
        Field::TaskTgid,
        Field::TaskState,
        Field::TaskFlags,
        Field::TaskComm,
        Field::TaskRunDelay,
        Field::TaskRan,
        Field::TaskExecStart,
        Field::RqClockTask,
        Field::TaskMm,
        Field::TaskSignal,
        Field::TaskUtime,
        Field::TaskStime,
        Field::TaskMinFlt,
        Field::TaskMajFlt,
        Field::SignalLive,
        Field::SignalRlim,
        Field::MmRss,
    ],
    metrics: &["tieback_processes", "tieback_memory_resident_bytes", "tieback_page_faults_total", "tieback_fd_limit"],
};

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
    use core::ffi::c_void;

    use crate::{
        bpf::{
            count::{add, run},
            state::{adopt, begin, hold, open_slot, ran_before, release, reset, rss_pages, slot, thread, tuning},
            task::{Kernel, current, field, ran, rq_clock},
        },
        probes::fd,
        wire::{Cause, MemoryKind, Program, SLOT_KERNEL, SLOT_NONE, STATE_ON, STATE_UNSEEN, Slot, Sums, Thread},
    };

    #[btf_tracepoint(function = "sched_process_fork")]
    fn process_fork(ctx: BtfTracePointContext) -> i32 {
        run(Program::ProcessFork);
        let parent = Kernel(ctx.arg::<*const u8>(0));
        let child = Kernel(ctx.arg::<*const u8>(1));
        let tid: u32 = parent.load(field!(task_pid));
        let mut id = SLOT_NONE;
        if let Some(thread) = thread(tid) {
            // SAFETY: a map value.
            id = unsafe { (*thread).slot };
        }
        if id == SLOT_NONE {
            id = adopt(parent.0, true, Program::ProcessFork);
        }
        begin(child, id, Program::ProcessFork);
        0
    }

    #[btf_tracepoint(function = "sched_process_exec")]
    fn process_exec(ctx: BtfTracePointContext) -> i32 {
        run(Program::ProcessExec);
        let task = Kernel(ctx.arg::<*const u8>(0));
        let old_tid: u32 = ctx.arg::<u64>(1) as u32;
        let tid: u32 = task.load(field!(task_pid));
        let Some(now) = thread(tid) else { return 0 };
        if old_tid != tid {
            // Another thread than the leader called exec and took over the leader's id.
            if let Some(old) = thread(old_tid) {
                fold(now, 0);
                // SAFETY: map values of equal size.
                unsafe {
                    let (from, to) = (old.cast::<u64>(), now.cast::<u64>());
                    let mut i = 0;
                    while i < size_of::<Thread>() / 8 {
                        core::ptr::write_volatile(to.add(i), core::ptr::read_volatile(from.add(i)));
                        i += 1;
                    }
                }
                reset(old);
            }
        }
        // SAFETY: a map value.
        unsafe {
            if (*now).state == STATE_UNSEEN {
                adopt(task.0, true, Program::ProcessExec);
            }
            let parent = (*now).slot;
            let tgid: u32 = task.load(field!(task_tgid));
            let id = open_slot(task, tgid, parent, Program::ProcessExec);
            // The past belongs to the old image; the future to the new one.
            if id != parent {
                let clock = rq_clock(task);
                if (*now).state == STATE_ON && clock > (*now).since {
                    (*now).cpu_ns += clock - (*now).since;
                    (*now).since = clock;
                }
                let had = ran(task, true, clock);
                ran_before(id, had);
                hold(id);
                fold(now, had);
                (*now).slot = id;
            }
            (*now).anon_pages = 0;
            (*now).growth_pages = 0;
            (*now).sys_entered = 0;
        }
        0
    }

    /// Adds a thread's sums and what it [`ran`] to its slot and starts them anew; the slot loses a thread.
    #[inline(always)]
    fn fold(thread: *mut Thread, ran_ns: u64) {
        // SAFETY: map values.
        unsafe {
            let t = &mut *thread;
            let Some(slot) = slot(t.slot) else { return };
            let dead = &raw mut (*slot).dead;
            add(&raw mut (*dead).cpu_ns, t.cpu_ns);
            add(&raw mut (*dead).ran_ns, ran_ns);
            t.cpu_ns = 0;
            let mut cause = 0;
            while cause < Cause::COUNT {
                add((&raw mut (*dead).wait_ns).cast::<u64>().add(cause), t.wait_ns[cause]);
                t.wait_ns[cause] = 0;
                cause += 1;
            }
            release(slot, t.slot, t.tgid, Program::ProcessExec);
        }
    }

    /// A child that is in the list of threads but not yet woken: the hook of its fork may still have to run.
    const TASK_NEW: u32 = 0x800;
    /// A thread that has left its CPU for good, and waits for its parent to ask.
    const TASK_DEAD: u32 = 0x80;
    /// Visits every thread on each tick: takes up the unseen ones and sums the live ones into their slots.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "iter/task")]
    fn process_harvest(ctx: *mut c_void) -> i32 {
        // SAFETY: the context of `iter/task` is `{ meta, task }`.
        let task = Kernel(unsafe { *ctx.cast::<*const u8>().add(1) });
        if task.0.is_null() {
            return 0;
        }
        let Some(tuning) = tuning() else { return 0 };
        let tid: u32 = task.load(field!(task_pid));
        // Read before the thread is looked up: when a child is no longer new, the hook of its fork has taken it up.
        let state: u32 = task.load(field!(task_state));
        let known = match thread(tid) {
            // SAFETY: a map value.
            Some(thread) => unsafe { (*thread).state != STATE_UNSEEN },
            None => false,
        };
        if !known {
            // With a slot of its own, a new child would be charged to a process that is gone when it is asked for.
            if state & (TASK_NEW | TASK_DEAD) != 0 {
                return 0;
            }
            adopt(task.0, false, Program::ProcessFork);
        }
        let Some(thread) = thread(tid) else { return 0 };
        // SAFETY: a map value; racing writes of the scheduler only make this tick's view a little old.
        let t = unsafe { &*thread };
        if t.slot <= SLOT_KERNEL {
            return 0;
        }
        let Some(slot) = slot(t.slot) else { return 0 };
        // SAFETY: a map value; only this iterator writes the live part.
        let s = unsafe { &mut *slot };
        refresh(s, tuning.round);
        let clock = rq_clock(current());
        let running = clock.saturating_sub(t.since);
        s.live.cpu_ns += t.cpu_ns;
        s.live.ran_ns += ran(task, t.state == STATE_ON, clock);
        let mut each = 0;
        while each < Cause::COUNT {
            s.live.wait_ns[each] += t.wait_ns[each];
            each += 1;
        }
        // Read once: the scheduler may change it meanwhile.
        // SAFETY: a field of a map value.
        let cause = unsafe { core::ptr::read_volatile(&raw const t.cause) } as usize;
        if t.state == STATE_ON {
            s.live.cpu_ns += running;
        } else if cause < Cause::COUNT {
            s.live.wait_ns[cause] += running;
            s.live.lasting_ns[cause] += running;
        }
        s.live.utime += task.load::<u64, _>(field!(task_utime));
        s.live.stime += task.load::<u64, _>(field!(task_stime));
        s.live.min_flt += task.load::<u64, _>(field!(task_min_flt));
        s.live.maj_flt += task.load::<u64, _>(field!(task_maj_flt));
        s.threads += 1;
        if task.load::<u32, _>(field!(task_tgid)) == tid {
            leader(task, s);
        }
        0
    }

    /// What counts once a process.
    #[inline(always)]
    fn leader(task: Kernel, s: &mut Slot) {
        s.processes += 1;
        let mm = task.follow(field!(task_mm));
        if !mm.0.is_null() {
            s.rss_pages[MemoryKind::File as usize] += rss_pages(mm, 0) as u64;
            s.rss_pages[MemoryKind::Anon as usize] += rss_pages(mm, 1) as u64;
            s.rss_pages[MemoryKind::Swap as usize] += rss_pages(mm, 2) as u64;
            s.rss_pages[MemoryKind::Shmem as usize] += rss_pages(mm, 3) as u64;
        }
        let limit = fd::bpf::limit(task);
        if s.fd_limit == 0 || limit < s.fd_limit {
            s.fd_limit = limit;
        }
    }

    /// One word at a time: the compiler's memset is no BPF function.
    #[inline(always)]
    fn clear(sums: *mut Sums) {
        let mut word = 0;
        while word < size_of::<Sums>() / 8 {
            // SAFETY: inside of a map value; `Sums` holds nothing but words.
            unsafe { core::ptr::write_volatile(sums.cast::<u64>().add(word), 0) };
            word += 1;
        }
    }

    /// Empties the live part at the first thread of a round.
    #[inline(always)]
    fn refresh(s: &mut Slot, round: u32) {
        if s.round == round {
            return;
        }
        s.round = round;
        clear(&raw mut s.live);
        s.processes = 0;
        s.threads = 0;
        s.rss_pages = [0; MemoryKind::COUNT];
        s.fd_limit = 0;
    }
}
