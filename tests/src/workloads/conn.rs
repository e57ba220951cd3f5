//! TCP connections with known ends. Client and server are separate processes, so that each is a service of its own.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use serde_json::json;

use super::{gate, raw};

/// The loopback address of one family.
#[must_use]
pub fn loopback(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    }
}

/// How the server treats what it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// Accepts and holds `count` connections, then closes them when told.
    Hold,
    /// Accepts `count` connections and resets each when told (linger of zero).
    Reset,
    /// Never accepts; its queue is full, so that a SYN gets no answer.
    Blackhole,
    /// Gives the port back, so that connects are refused.
    Closed,
}

/// Listens on loopback, prints the port, and serves `count` connections.
pub fn serve(mode: Server, v6: bool, count: usize) -> Result<()> {
    let socket = tcp(v6, SocketFlags::CLOEXEC)?;
    rustix::net::bind(&socket, &SocketAddr::new(loopback(v6), 0))?;
    let backlog = if mode == Server::Blackhole {
        0
    } else {
        i32::try_from(count)?
    };
    rustix::net::listen(&socket, backlog)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    let facts = json!({ "port": address.port() });
    match mode {
        Server::Closed => {
            drop(listener);
            gate::step("ready", &facts)?;
        }
        Server::Blackhole => {
            let filler = TcpStream::connect(address).context("filling the queue")?;
            gate::step("ready", &facts)?;
            drop(filler);
        }
        Server::Hold | Server::Reset => {
            gate::step("ready", &facts)?;
            let mut held = Vec::with_capacity(count);
            for _ in 0..count {
                held.push(listener.accept()?.0);
            }
            if mode == Server::Reset {
                for stream in &held {
                    sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO))?;
                }
            }
            gate::step("accepted", &json!({ "accepted": held.len() }))?;
            drop(held);
            gate::step("closed", &json!({}))?;
        }
    }
    gate::truth(&json!({}))
}

#[inline(never)]
fn open_connection(fd: &OwnedFd, address: &SocketAddr) -> isize {
    let mut bytes = Vec::with_capacity(28);
    let family = if address.is_ipv6() {
        libc::AF_INET6
    } else {
        libc::AF_INET
    } as u16;
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.extend_from_slice(&ip.octets());
            bytes.resize(16, 0);
        }
        IpAddr::V6(ip) => {
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&ip.octets());
            bytes.resize(28, 0);
        }
    }
    raw::connect(fd.as_fd(), &bytes)
}

/// Connects `count` times to a port and prints how each attempt ended; open ones are held, then waited for until the
/// server ends them, or closed by the client with `close`.
pub fn connect(port: u16, v6: bool, count: usize, close: bool) -> Result<()> {
    let address = SocketAddr::new(loopback(v6), port);
    gate::step("ready", &json!({}))?;
    let mut tries = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = tcp(v6, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // One retry of the SYN: an unanswered connect fails after about three seconds instead of two minutes.
        set_syn_count(&socket)?;
        match -open_connection(&socket, &address) as i32 {
            0 | libc::EINPROGRESS | libc::ECONNREFUSED => tries.push(socket),
            other => bail!("connect: {}", std::io::Error::from_raw_os_error(other)),
        }
    }
    let (mut open, mut refused, mut timeout, mut other) = (Vec::new(), 0, 0, 0);
    for socket in tries {
        poll(&mut [PollFd::new(&socket, PollFlags::OUT)], None)?;
        match sockopt::socket_error(&socket)?.map_err(std::io::Error::from) {
            Ok(()) if TcpStream::from(socket.try_clone()?).peer_addr().is_ok() => open.push(socket),
            // The error was already returned by a connect that failed at once.
            Ok(()) => refused += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
            Err(error) if error.kind() == ErrorKind::TimedOut => timeout += 1,
            Err(_) => other += 1,
        }
    }
    gate::step(
        "connected",
        &json!({ "open": open.len(), "refused": refused, "timeout": timeout, "other": other }),
    )?;
    let (mut ended, mut reset) = (0, 0);
    if !close {
        for socket in open.drain(..) {
            let mut stream = TcpStream::from(socket);
            stream.set_nonblocking(false)?;
            match stream.read(&mut [0]) {
                Ok(got) => {
                    ensure!(got == 0, "the server sent something");
                    ended += 1;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => reset += 1,
                Err(error) => return Err(error).context("reading"),
            }
        }
    }
    drop(open);
    gate::step("closed", &json!({ "ended": ended, "reset": reset }))?;
    gate::truth(&json!({}))
}

/// Opens connections to itself as fast as it can, three of four from `flood_often`: hundreds until told to
/// `flood`, and then `count`.
pub fn flood(count: usize) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    gate::step("ready", &json!({}))?;
    floods(&listener, 100)?;
    while gate::step("begun", &json!({}))?.trim() != "flood" {
        floods(&listener, 100)?;
    }
    floods(&listener, count)?;
    gate::truth(&json!({}))
}

fn floods(listener: &TcpListener, count: usize) -> Result<()> {
    let address = listener.local_addr()?;
    for at in 0..count {
        let client = if at % 4 == 3 {
            flood_rarely(address)?
        } else {
            flood_often(address)?
        };
        // The accepting side closes first, so that none of the two is a failure.
        drop(listener.accept()?.0);
        drop(client);
    }
    Ok(())
}

#[inline(never)]
fn flood_often(address: SocketAddr) -> Result<TcpStream> {
    std::hint::black_box(TcpStream::connect(address).context("connecting often"))
}

#[inline(never)]
fn flood_rarely(address: SocketAddr) -> Result<TcpStream> {
    std::hint::black_box(TcpStream::connect(address).context("connecting rarely"))
}

/// A TCP socket of one family.
pub(super) fn tcp(v6: bool, flags: SocketFlags) -> Result<OwnedFd> {
    let family = if v6 {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    Ok(rustix::net::socket_with(
        family,
        SocketType::STREAM,
        flags,
        Some(ipproto::TCP),
    )?)
}

fn set_syn_count(socket: &OwnedFd) -> Result<()> {
    use std::os::fd::AsRawFd;
    let one: libc::c_int = 1;
    // SAFETY: the option is an int, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const one).cast(),
            4,
        )
    };
    ensure!(result == 0, "TCP_SYNCNT: {}", std::io::Error::last_os_error());
    Ok(())
}
