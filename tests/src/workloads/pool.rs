//! Pools of connections with known use: a server that answers after the time that a request asks for, and a client that
//! measures by itself how long its connections waited for answers.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::SocketFlags;
use serde_json::json;

use super::conn::{loopback, tcp};
use super::gate;

/// A thread of the server needs little.
const STACK: usize = 64 << 10;

/// Answers on each connection until the client closes it; ends when told.
pub fn serve(v6: bool) -> Result<()> {
    let socket = tcp(v6, SocketFlags::CLOEXEC)?;
    rustix::net::bind(&socket, &SocketAddr::new(loopback(v6), 0))?;
    // With a full queue, connections are there for the client only.
    rustix::net::listen(&socket, 4096)?;
    let listener = TcpListener::from(socket);
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let started = thread::Builder::new()
                .stack_size(STACK)
                .spawn(move || answer(stream));
            // A client whose connection is dropped fails and says so.
            drop(started);
        }
    });
    gate::step("ready", &json!({ "port": port }))?;
    gate::truth(&json!({}))
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 4];
    loop {
        match stream.read_exact(&mut request) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        }
        let us = u32::from_ne_bytes(request);
        if us > 0 {
            thread::sleep(Duration::from_micros(us.into()));
        }
        if stream.write_all(&request).is_err() {
            return;
        }
    }
}

/// How the client uses its connections.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Connections that are opened.
    pub count: usize,
    /// Of them, those that are used, by a thread each.
    pub used: usize,
    /// What each request asks the server for.
    pub work: Duration,
    /// Mean pause between an answer and the next request.
    pub rest: Duration,
    /// How long to go on.
    pub length: Duration,
    /// Requests of each thread at most.
    pub requests: u64,
    /// A new connection for each request.
    pub each: bool,
}

/// Opens connections, uses them when told, and closes them when told.
pub fn client(port: u16, v6: bool, plan: Use) -> Result<()> {
    let address = SocketAddr::new(loopback(v6), port);
    gate::step("ready", &json!({}))?;
    let mut held = Vec::new();
    if !plan.each {
        for _ in 0..plan.count {
            held.push(TcpStream::connect(address).context("connecting")?);
        }
    }
    gate::step("connected", &json!({ "open": held.len() }))?;
    let (busy_ns, exchanges) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = Mutex::new(None);
    let begin = Instant::now();
    let mut streams = held.iter_mut();
    thread::scope(|scope| {
        for number in 0..plan.used as u64 {
            let (mut stream, busy_ns, exchanges, failed) = (streams.next(), &busy_ns, &exchanges, &failed);
            scope.spawn(move || {
                // Threads in step would be one thread to a sample: each pause is random, between nothing and twice its length.
                let mut seed = number;
                for _ in 0..plan.requests {
                    if begin.elapsed() >= plan.length {
                        break;
                    }
                    let done = match &mut stream {
                        Some(stream) => ask(stream, plan.work),
                        None => TcpStream::connect(address)
                            .context("connecting")
                            .and_then(|mut stream| ask(&mut stream, plan.work)),
                    };
                    match done {
                        Ok(took) => {
                            busy_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
                            exchanges.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
                    }
                    seed = seed
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    thread::sleep(plan.rest.mul_f64((seed >> 11) as f64 / (1u64 << 52) as f64));
                }
            });
        }
    });
    let seconds = begin.elapsed().as_secs_f64();
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    gate::step(
        "used",
        &json!({
            "seconds": seconds,
            "busy_seconds": busy_ns.load(Ordering::Relaxed) as f64 / 1e9,
            "exchanges": exchanges.load(Ordering::Relaxed),
        }),
    )?;
    drop(held);
    gate::step("closed", &json!({}))?;
    gate::truth(&json!({}))
}

#[inline(never)]
fn ask(stream: &mut TcpStream, work: Duration) -> Result<Duration> {
    stream.set_nodelay(true)?;
    let request = u32::try_from(work.as_micros())?.to_ne_bytes();
    let mut answer = [0; 4];
    let begin = Instant::now();
    stream.write_all(&request).context("asking")?;
    stream.read_exact(&mut answer).context("reading the answer")?;
    ensure!(answer == request, "another answer");
    Ok(begin.elapsed())
}
