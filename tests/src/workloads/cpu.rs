//! Spinning threads and a program whose threads do a bit of everything.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{ClockId, CpuSet, sched_setaffinity};
use serde_json::{Value, json};

use super::{gate, raw};

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// CPU time of the calling thread.
pub(super) fn thread_cpu() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

/// Times a stretch of the calling thread, with what a bad moment of the machine can do to it.
pub(super) struct Stopwatch {
    start: Instant,
    cpu: f64,
    stolen: f64,
}

/// What a [`Stopwatch`] read.
pub(super) struct Times {
    /// Wall time.
    pub(super) wall: f64,
    /// CPU time of the thread. The kernel leaves out what a hypervisor took away meanwhile.
    pub(super) cpu: f64,
    /// The most that a hypervisor can have taken away meanwhile, from all CPUs.
    pub(super) stolen: f64,
}

impl Stopwatch {
    pub(super) fn start() -> Result<Self> {
        let stolen = stolen()?;
        Ok(Self {
            start: Instant::now(),
            cpu: thread_cpu(),
            stolen,
        })
    }

    pub(super) fn stop(self) -> Result<Times> {
        let (wall, cpu) = (self.start.elapsed().as_secs_f64(), thread_cpu() - self.cpu);
        // Both readings are cut down to a whole tick.
        let stolen = stolen()? - self.stolen + stolen_tick();
        Ok(Times { wall, cpu, stolen })
    }
}

/// Time that a hypervisor took away until now, from all CPUs ("steal" of proc_stat(5)).
fn stolen() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let ticks = stat
        .split_whitespace()
        .nth(8)
        .context("no steal time in /proc/stat")?;
    Ok(ticks.parse::<u64>()? as f64 * stolen_tick())
}

/// Seconds of a tick of /proc/stat.
fn stolen_tick() -> f64 {
    1.0 / rustix::param::clock_ticks_per_second() as f64
}

fn seconds(clock: ClockId) -> f64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

#[inline(never)]
fn burn(until: Instant) -> u64 {
    let mut rounds = 0u64;
    while Instant::now() < until {
        for _ in 0..1_000 {
            rounds = std::hint::black_box(rounds + 1);
        }
    }
    rounds
}

/// Spins for a wall time, on one CPU when asked to; prints wall and CPU time.
pub fn spin(cpu: Option<usize>, length: f64) -> Result<()> {
    if let Some(cpu) = cpu {
        pin(cpu)?;
    }
    gate::step("ready", &json!({}))?;
    let (start, cpu_start) = (seconds(ClockId::Monotonic), thread_cpu());
    let rounds = burn(Instant::now() + Duration::from_secs_f64(length));
    let (end, cpu_end) = (seconds(ClockId::Monotonic), thread_cpu());
    gate::truth(&json!({ "start": start, "end": end, "cpu_seconds": cpu_end - cpu_start, "rounds": rounds }))
}

/// Runs threads that sleep, spin, read pipes and take a shared lock in turns; prints what each thread lived and ran.
pub fn mixed(threads: usize, length: f64) -> Result<()> {
    gate::step("ready", &json!({}))?;
    let lock = Arc::new(Mutex::new(0u64));
    let length = Duration::from_secs_f64(length);
    let start = seconds(ClockId::Monotonic);
    let handles: Vec<_> = (0..threads)
        .map(|index| {
            let lock = Arc::clone(&lock);
            std::thread::spawn(move || mix(index, length, &lock))
        })
        .collect();
    let mut lives = Vec::new();
    for handle in handles {
        lives.push(handle.join().map_err(|_| anyhow!("a thread panicked"))??);
    }
    let total: f64 = lives.iter().filter_map(|life| life["lifetime"].as_f64()).sum();
    gate::truth(&json!({
        "start": start,
        "end": seconds(ClockId::Monotonic),
        "threads": lives,
        "lifetime_seconds": total,
        "process_cpu_seconds": seconds(ClockId::ProcessCPUTime),
    }))
}

fn mix(index: usize, length: Duration, lock: &Mutex<u64>) -> Result<Value> {
    let (start, begun) = (seconds(ClockId::Monotonic), Instant::now());
    let (reader, writer) = rustix::pipe::pipe()?;
    let (mut reader, mut writer) = (File::from(reader), File::from(writer));
    let mut turn = index as u64;
    while begun.elapsed() < length {
        match turn % 4 {
            0 => {
                raw::nanosleep(Duration::from_micros(500 + 700 * (index as u64 % 5)));
            }
            1 => {
                burn(Instant::now() + Duration::from_micros(800));
            }
            2 => {
                writer.write_all(&[0])?;
                reader.read_exact(&mut [0])?;
            }
            _ => {
                let mut count = lock.lock().map_err(|_| anyhow!("poisoned"))?;
                *count += 1;
                raw::nanosleep(Duration::from_micros(100));
            }
        }
        turn += 1;
    }
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    let end = seconds(ClockId::Monotonic);
    Ok(
        json!({ "tid": tid, "start": start, "end": end, "lifetime": end - start, "cpu": thread_cpu(), "turns": turn }),
    )
}
