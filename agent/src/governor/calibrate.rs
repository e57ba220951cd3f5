//! What one run of each program costs on this host: loops that drive a hook, timed with and without it.
//!
//! `bpf_stats` is no meter of this: it adds 80 to 90 ns to every run and misses the hook itself (COST.md, 1).

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use agent_ebpf::wire::Program;
use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

use crate::decode::harvest;
use crate::load::Loaded;

/// Each loop is timed this often in a turn; the best counts, because everything else that runs only makes it slower.
const ROUNDS: usize = 3;
/// Turns with the hook and without it, one after the other: a machine that is slow for some tens of milliseconds is so for both.
/// The median of their differences counts: beside three busy programs on two CPUs, six starts gave 50 to 74 ns for a hook of system
/// calls (55 to 65 on the same host at rest). The difference of the best times of three turns, on the wall clock, gave 76 to 168.
const TURNS: usize = 7;

/// Nanoseconds that one run of a program costs, hook included.
#[derive(Clone, Debug, Default)]
pub struct Costs(BTreeMap<Program, f64>);

impl Costs {
    /// Of one program. Those that cannot be driven without disturbing the host (block I/O, exec, the clock) count as the mean
    /// of the others.
    #[must_use]
    pub fn of(&self, program: Program) -> f64 {
        let mean = || self.0.values().sum::<f64>() / self.0.len().max(1) as f64;
        self.0.get(&program).copied().unwrap_or_else(mean)
    }
}

/// A loop and the programs that it drives, which share its cost.
struct Loop {
    probe: &'static str,
    programs: &'static [Program],
    /// Drives them once; returns how long that took.
    run: fn() -> Result<Duration>,
}

const LOOPS: [Loop; 4] = [
    Loop {
        probe: "syscall",
        programs: &[Program::SyscallEnter, Program::SyscallExit],
        run: calls,
    },
    Loop {
        probe: "wait",
        programs: &[Program::WaitSwitch],
        run: switches,
    },
    Loop {
        probe: "memory",
        programs: &[Program::MemoryGrowth],
        run: faults,
    },
    Loop {
        probe: "conn",
        programs: &[Program::ConnState],
        run: connections,
    },
];

/// Measures what the hooks cost; takes a second or two.
pub fn calibrate(loaded: &mut Loaded) -> Result<Costs> {
    let mut costs = BTreeMap::new();
    for each in &LOOPS {
        if !loaded.works(each.probe) {
            continue;
        }
        let (mut differences, mut seen) = ([0.0; TURNS], 0);
        for difference in &mut differences {
            switch(loaded, each.probe, true)?;
            let before = runs(loaded, each.programs)?;
            let with = best(each.run)?;
            seen += runs(loaded, each.programs)?.saturating_sub(before);
            switch(loaded, each.probe, false)?;
            *difference = with - best(each.run)?;
        }
        if each.probe != "syscall" {
            switch(loaded, each.probe, true)?;
        }
        // Of the loop alone: others may have run the programs, too, but not five times as often.
        let per_round = (seen as f64 / (TURNS * ROUNDS) as f64).max(1.0);
        differences.sort_by(f64::total_cmp);
        let ns = differences[TURNS / 2].max(0.0) / per_round;
        tracing::debug!(
            probe = each.probe,
            ns_per_run = ns.round(),
            runs = seen,
            "calibrated"
        );
        costs.extend(each.programs.iter().map(|program| (*program, ns)));
    }
    tracing::info!(
        ns_per_run = ?costs.iter().map(|(program, ns)| (program.as_str(), ns.round())).collect::<Vec<_>>(),
        "calibrated"
    );
    Ok(Costs(costs))
}

fn switch(loaded: &mut Loaded, probe: &str, on: bool) -> Result<()> {
    if probe == "syscall" {
        return loaded.count_syscalls(on).map(drop);
    }
    loaded.switch(probe, on)
}

fn runs(loaded: &mut Loaded, programs: &[Program]) -> Result<u64> {
    let all = harvest::runs(loaded)?;
    Ok(programs
        .iter()
        .filter_map(|program| all.get(program.index()))
        .sum())
}

/// Nanoseconds of the fastest round.
fn best(run: fn() -> Result<Duration>) -> Result<f64> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        best = best.min(run()?);
    }
    Ok(best.as_nanos() as f64)
}

/// CPU time of this thread so far: what others take from it is not in it.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// The cheapest system call there is.
fn calls() -> Result<Duration> {
    let began = cpu_time();
    for _ in 0..10_000 {
        // SAFETY: getppid takes nothing and cannot fail.
        black_box(unsafe { libc::syscall(libc::SYS_getppid) });
    }
    Ok(cpu_time() - began)
}

/// Two threads of one CPU that pass a byte to and fro: two switches a turn.
fn switches() -> Result<Duration> {
    let began = cpu_time();
    let (mut near, mut far) = std::os::unix::net::UnixStream::pair()?;
    let home = Cpu::allowed()?;
    let cpu = Cpu::current();
    cpu.apply()?;
    let echo = std::thread::spawn(move || -> Result<Duration> {
        let began = cpu_time();
        cpu.apply()?;
        let mut byte = [0];
        while far.read(&mut byte)? == 1 {
            far.write_all(&byte)?;
        }
        Ok(cpu_time() - began)
    });
    let mut byte = [0];
    let result = (0..1000).try_for_each(|_| {
        near.write_all(&byte)?;
        near.read_exact(&mut byte)
    });
    drop(near);
    let echoed = echo
        .join()
        .map_err(|_| anyhow::anyhow!("the echo of the calibration panicked"))?;
    home.apply()?;
    result?;
    Ok(cpu_time() - began + echoed?)
}

/// A set of CPUs to run on.
#[derive(Clone, Copy)]
struct Cpu(libc::cpu_set_t);

impl Cpu {
    /// The one that this thread runs on.
    fn current() -> Self {
        // SAFETY: an all-zero set is valid; the CPU's number is below its size on every kernel that libc supports, and
        // `CPU_SET` checks it.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut set);
            Self(set)
        }
    }

    /// Those that this thread may run on.
    fn allowed() -> Result<Self> {
        // SAFETY: the set is valid and its size is passed along.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            let result = libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
            if result == 0 {
                return Ok(Self(set));
            }
        }
        Err(std::io::Error::last_os_error()).context("sched_getaffinity")
    }

    fn apply(&self) -> Result<()> {
        // SAFETY: as above.
        let result = unsafe { libc::sched_setaffinity(0, size_of_val(&self.0), &raw const self.0) };
        if result == 0 {
            return Ok(());
        }
        Err(std::io::Error::last_os_error()).context("sched_setaffinity")
    }
}

/// First touches of fresh memory.
fn faults() -> Result<Duration> {
    const BYTES: usize = 2 << 20;
    let began = cpu_time();
    // SAFETY: a mapping of our own, used inside its bounds and unmapped once.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mmap");
        }
        libc::madvise(start, BYTES, libc::MADV_NOHUGEPAGE);
        for page in (0..BYTES).step_by(4096) {
            start.cast::<u8>().add(page).write_volatile(1);
        }
        libc::munmap(start, BYTES);
    }
    Ok(cpu_time() - began)
}

/// Loopback connections that are accepted and closed. On the wall clock: many kernels do not count what the network does for a
/// thread (`CONFIG_IRQ_TIME_ACCOUNTING`) as its CPU time.
fn connections() -> Result<Duration> {
    let Ok(listener) = TcpListener::bind("127.0.0.1:0") else {
        return Ok(Duration::ZERO); // A network namespace without a loopback: the others' mean will do.
    };
    let address = listener.local_addr()?;
    let began = Instant::now();
    for _ in 0..50 {
        let near = TcpStream::connect(address)?;
        drop((listener.accept()?, near));
    }
    Ok(began.elapsed())
}
