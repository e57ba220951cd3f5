//! A program whose stacks are known, as `chain.c`, in Rust: `chain WORK SECONDS`.

use std::hint::black_box;
use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

#[repr(C)]
struct PollFd {
    fd: i32,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn poll(fds: *mut PollFd, count: u64, timeout: i32) -> i32;
}

fn gate(step: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{{\"step\":\"{step}\",\"pid\":{},\"facts\":{{}}}}", std::process::id()).unwrap();
    out.flush().unwrap();
    // Idle, not a wait for data.
    let mut input = PollFd { fd: 0, events: 1, revents: 0 };
    while unsafe { poll(&mut input, 1, -1) } <= 0 {}
    let mut line = String::new();
    assert!(std::io::stdin().lock().read_line(&mut line).unwrap() > 0);
}

#[inline(never)]
fn warm_up(end: Instant) {
    spin(end);
    // Not the same code as `leaf_cpu`, or the compiler makes one function of both.
    black_box("warm");
}

#[inline(always)]
fn spin(end: Instant) {
    let mut sum = 0u64;
    while Instant::now() < end {
        for i in 0..1_000_000u64 {
            sum = black_box(sum.wrapping_mul(31) + i);
        }
    }
}

#[inline(never)]
fn leaf_cpu(end: Instant) {
    spin(end);
    black_box(end);
}

#[inline(never)]
fn leaf_sleep(end: Instant) {
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    black_box(end);
}

unsafe extern "C" {
    fn mmap(at: *mut u8, length: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn madvise(at: *mut u8, length: usize, advice: i32) -> i32;
    fn getppid() -> i32;
}

#[inline(never)]
fn leaf_fault(end: Instant) {
    const LENGTH: usize = 128 << 20;
    // Readable and writable, private and anonymous; no huge pages.
    let memory = unsafe { mmap(std::ptr::null_mut(), LENGTH, 3, 0x22, -1, 0) };
    assert_ne!(memory as isize, -1);
    unsafe { madvise(memory, LENGTH, 15) };
    for at in (0..LENGTH).step_by(4096) {
        unsafe { memory.add(at).write_volatile(1) };
    }
    while Instant::now() < end {
        unsafe { poll(std::ptr::null_mut(), 0, 100) };
    }
    black_box(end);
}

#[inline(never)]
fn leaf_syscall(end: Instant) {
    while Instant::now() < end {
        for _ in 0..1000 {
            black_box(unsafe { getppid() });
        }
    }
    black_box(end);
}

struct Shape {
    work: String,
}

trait Through {
    fn through(&self, call: &mut dyn FnMut());
}

impl Through for Shape {
    #[inline(never)]
    fn through(&self, call: &mut dyn FnMut()) {
        black_box(call)();
        black_box(self);
    }
}

#[inline(never)]
fn third(shape: &Shape, end: Instant) {
    match shape.work.as_str() {
        "cpu" => leaf_cpu(end),
        "fault" => leaf_fault(end),
        "syscall" => leaf_syscall(end),
        _ => leaf_sleep(end),
    }
    black_box(end);
}

#[inline(never)]
fn second(shape: &Shape, end: Instant) {
    shape.through(&mut || {
        third(shape, end);
        black_box(end);
    });
    black_box(end);
}

#[inline(never)]
fn first(shape: &Shape, end: Instant) {
    second(shape, end);
    black_box(end);
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let shape = Shape { work: arguments[1].clone() };
    let seconds: f64 = arguments[2].parse().unwrap();
    gate("ready");
    warm_up(Instant::now() + Duration::from_secs(3));
    gate("warm");
    first(&shape, Instant::now() + Duration::from_secs_f64(seconds));
    println!("{{\"step\":\"truth\",\"pid\":{}}}", std::process::id());
}
