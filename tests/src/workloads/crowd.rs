//! Many TCP connections at once, opened, half closed and closed at known times. Client and server are separate processes, so
//! that each is a service of its own.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::SocketFlags;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::conn::{loopback, tcp};
use super::gate;
use super::loops::Progress;

/// Connections that a process holds at most: below the limit of descriptors that containers and sessions are often given, and
/// of the ports that Linux gives out for one address.
const EACH: usize = 15_000;
/// Descriptors beside the connections.
const FEW: usize = 64;

/// Seconds of the monotonic clock, which is the same in all processes.
fn now() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Lets this process have so many connections.
fn allow(connections: usize) -> Result<()> {
    let wanted = (connections + FEW) as u64;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
        let raised = Rlimit {
            current: Some(wanted),
            maximum,
        };
        setrlimit(Resource::Nofile, raised).context("raising the limit of descriptors")?;
    }
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = tcp(address.is_ipv6(), SocketFlags::CLOEXEC)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(TcpListener::from(socket))
}

/// Accepts connections, waits until the client has closed its side of some, and closes all.
pub fn serve(v6: bool, count: usize) -> Result<()> {
    allow(count)?;
    let listener = listen((loopback(v6), 0).into())?;
    gate::step("ready", &json!({ "port": listener.local_addr()?.port() }))?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(listener.accept()?.0);
    }
    let half = gate::step("accepted", &json!({ "accepted": held.len() }))?;
    let half: usize = half.trim().parse().context("how many are half closed")?;
    for stream in held.iter_mut().take(half) {
        ensure!(stream.read(&mut [0])? == 0, "the client sent something");
    }
    gate::step("half closed", &json!({ "ended": half }))?;
    // Who closes before the other side's end has come would be the one that closed first.
    for stream in held.iter_mut().skip(half) {
        ensure!(stream.read(&mut [0])? == 0, "the client sent something");
    }
    let mut closed = 0.0;
    for stream in held {
        closed += now();
        drop(stream);
    }
    gate::step("closed", &json!({ "closed_at": closed }))?;
    gate::truth(&json!({}))
}

/// Connects, closes its side of the first `half` of them, and closes all; tells the sums of the moments at which they were opened and
/// at which they ended.
pub fn connect(port: u16, v6: bool, count: usize, half: usize) -> Result<()> {
    allow(count)?;
    let address = SocketAddr::new(loopback(v6), port);
    gate::step("ready", &json!({}))?;
    let mut held = Vec::with_capacity(count);
    let mut opened = 0.0;
    for _ in 0..count {
        held.push(TcpStream::connect(address).context("connecting")?);
        opened += now();
    }
    gate::step("connected", &json!({ "open": held.len(), "opened_at": opened }))?;
    let mut closed = 0.0;
    for stream in held.iter().take(half) {
        closed += now();
        stream.shutdown(Shutdown::Write)?;
    }
    gate::step("half closed", &json!({ "half": half }))?;
    for (at, stream) in held.into_iter().enumerate() {
        if at >= half {
            closed += now();
        }
        drop(stream);
    }
    gate::step("closed", &json!({ "closed_at": closed }))?;
    gate::truth(&json!({}))
}

/// Holds connections until killed, for the benchmark; each counts once it was accepted. As many pairs of processes as that takes
/// have them, each on an address of its own.
pub fn hold(count: usize, progress: &Path) -> Result<()> {
    let progress = Progress::create(progress)?;
    for pair in 0..count.div_ceil(EACH) {
        let each = (count - pair * EACH).min(EACH);
        allow(each)?;
        let listener = listen((Ipv4Addr::new(127, 0, 0, u8::try_from(pair + 1)?), 0).into())?;
        let address = listener.local_addr()?;
        child(|| {
            for _ in 0..each {
                std::mem::forget(listener.accept()?);
                progress.add(1);
            }
            Ok(())
        })?;
        child(|| {
            for _ in 0..each {
                std::mem::forget(TcpStream::connect(address).context("connecting")?);
            }
            Ok(())
        })?;
    }
    loop {
        std::thread::park();
    }
}

/// A child that does this, keeps what it opened, and ends with its parent.
fn child(work: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            set_parent_process_death_signal(Some(Signal::TERM))?;
            work()?;
            loop {
                std::thread::park();
            }
        }
        _ => Ok(()),
    }
}
