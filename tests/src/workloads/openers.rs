//! Connections to two servers from code that opens them to the one, to the other, or to both.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use serde_json::json;

use super::gate;

/// To the first server, and at this line.
#[inline(never)]
fn opens_here(address: SocketAddr) -> (Result<TcpStream>, u32) {
    (TcpStream::connect(address).context("connecting"), line!())
}

#[inline(never)]
fn opens_there(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).context("connecting")
}

#[inline(never)]
fn opens_anywhere(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).context("connecting")
}

#[inline(never)]
fn opens_own(address: SocketAddr) -> Result<TcpStream> {
    TcpStream::connect(address).context("connecting")
}

#[inline(never)]
fn asks_here(address: SocketAddr) -> Result<()> {
    exchange(TcpStream::connect(address)?)
}

#[inline(never)]
fn asks_there(address: SocketAddr) -> Result<()> {
    exchange(TcpStream::connect(address)?)
}

/// The server answers what it is told: a time to wait.
fn exchange(mut stream: TcpStream) -> Result<()> {
    let mut word = [0; 4];
    stream.write_all(&word)?;
    stream.read_exact(&mut word).context("reading the answer")
}

/// Opens connections to itself until told to `hold`: then so few to the servers that each is sampled, and then `brief` to each
/// server for one exchange each.
pub fn run(ports: [u16; 2], brief: u64) -> Result<()> {
    let [first, second] = ports.map(|port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let own = TcpListener::bind("127.0.0.1:0")?;
    gate::step("ready", &json!({}))?;
    while gate::step("begun", &json!({}))?.trim() != "hold" {
        drop((opens_own(own.local_addr()?)?, own.accept()?));
    }
    let mut held = Vec::new();
    let mut at = 0;
    for _ in 0..30 {
        let (stream, line) = opens_here(first);
        held.push(stream?);
        at = line;
    }
    for _ in 0..50 {
        held.push(opens_there(second)?);
    }
    for _ in 0..10 {
        held.push(opens_anywhere(first)?);
    }
    for _ in 0..20 {
        held.push(opens_anywhere(second)?);
    }
    gate::step("held", &json!({ "line": at }))?;
    for _ in 0..brief {
        asks_here(first)?;
        asks_there(second)?;
    }
    gate::step("asked", &json!({}))?;
    drop(held);
    gate::truth(&json!({}))
}
