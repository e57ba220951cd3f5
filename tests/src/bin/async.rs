//! A service as they are written in Rust, on libraries that call it back: handlers below axum, hyper and tokio, a parallel
//! iterator of rayon, a lock, a client. It runs until it is told to end.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::{Router, routing::get};
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde_json::json;
use tieback_tests::workloads::gate;

static STOP: AtomicBool = AtomicBool::new(false);

/// No function: each of its users is to be seen.
macro_rules! turns {
    ($count:expr) => {{
        let (mut sum, count) = (7u64, $count);
        for turn in 0..count {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(turn));
        }
        sum
    }};
}

/// Called by rayon.
#[inline(never)]
fn price(order: u64) -> u64 {
    turns!(20_000 + order % 7)
}

#[inline(never)]
fn price_all() {
    while !STOP.load(Ordering::Relaxed) {
        black_box(
            (0..64u64)
                .into_par_iter()
                .map(price)
                .reduce(|| 0, u64::wrapping_add),
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Called by axum.
async fn render() -> String {
    turns!(200_000).to_string()
}

/// A client with a connection of its own.
#[inline(never)]
fn fetch(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(server)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while !STOP.load(Ordering::Relaxed) {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        std::io::copy(
            &mut std::io::Read::take(&mut reader, length),
            &mut std::io::sink(),
        )?;
    }
    Ok(())
}

/// Keeps a lock that others want.
#[inline(never)]
fn contend(lock: &Mutex<u64>) {
    while !STOP.load(Ordering::Relaxed) {
        if let Ok(mut held) = lock.lock() {
            *held = black_box(*held + 1);
            let until = Instant::now() + Duration::from_millis(2);
            while Instant::now() < until {
                thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

fn main() -> Result<()> {
    gate::step("ready", &json!({}))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(async move { axum::serve(listener, Router::new().route("/", get(render))).await });
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global()?;
    let lock = Arc::new(Mutex::new(0));
    let mut threads = Vec::new();
    for _ in 0..2 {
        let lock = Arc::clone(&lock);
        threads.push(thread::spawn(move || contend(&lock)));
    }
    threads.push(thread::spawn(price_all));
    let client = thread::spawn(move || fetch(address));
    gate::step("running", &json!({}))?;
    STOP.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().ok().context("a thread panicked")?;
    }
    client.join().ok().context("the client panicked")??;
    gate::truth(&json!({}))
}
