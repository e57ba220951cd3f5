//! Two ends of a slow link: brief connections whose time to connect is measured, and one that carries much.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::conn::loopback;
use super::gate;

/// What the server answers to one byte at the end.
const ANSWER: &[u8] = b"answered";

/// Accepts connections, one after the other: `count` that carry nothing, then one that is read to its end and answered.
pub fn serve(v6: bool, count: usize) -> Result<()> {
    let listener = TcpListener::bind(SocketAddr::new(loopback(v6), 0))?;
    gate::step("ready", &json!({ "port": listener.local_addr()?.port() }))?;
    for _ in 0..count {
        let mut stream = listener.accept()?.0;
        ensure!(stream.read(&mut [0])? == 0, "the client sent something");
    }
    let mut stream = listener.accept()?.0;
    let mut received = 0;
    let mut block = vec![0; 1 << 16];
    loop {
        match stream.read(&mut block)? {
            0 => break,
            some => received += some,
        }
    }
    stream.write_all(ANSWER)?;
    drop(stream);
    gate::step("served", &json!({ "received": received, "sent": ANSWER.len() }))?;
    gate::truth(&json!({}))
}

/// Connects `count` times, measuring how long each `connect` takes, then sends `bytes` over one more connection.
pub fn connect(port: u16, v6: bool, count: usize, bytes: usize) -> Result<()> {
    let address = SocketAddr::new(loopback(v6), port);
    gate::step("ready", &json!({}))?;
    let mut connecting = Duration::ZERO;
    for _ in 0..count {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(address).context("connecting")?;
        connecting += begin.elapsed();
        stream.shutdown(std::net::Shutdown::Write)?;
        ensure!(stream.read(&mut [0])? == 0, "the server sent something");
    }
    gate::step("connected", &json!({ "seconds": connecting.as_secs_f64() }))?;
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&vec![7; bytes])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer == ANSWER, "the server's answer");
    drop(stream);
    gate::step("sent", &json!({ "sent": bytes, "received": answer.len() }))?;
    gate::truth(&json!({}))
}
