//! Endless loops of one operation each, for `cargo xtask bench`: the count of operations stands in a shared file, so that
//! reading it costs the loop nothing.

use std::fs::OpenOptions;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use rustix::net::sockopt::set_socket_linger;

use super::process::used;

/// What one turn of the loop does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One byte to another process and back, through pipes: two context switches when both have the same CPU.
    PingPong,
    /// A TCP connection on loopback, opened, accepted and reset.
    Connect,
    /// One byte over a TCP connection on loopback and back.
    Request,
    /// A child that runs `true` and is waited for.
    Exec,
    /// One page touched for the first time.
    Faults,
    /// 64 bytes of the C library's heap, taken and given back.
    Malloc,
}

/// Where the loop says how far it is: two words, operations and nanoseconds of CPU of children that have ended.
pub(super) struct Progress(&'static [AtomicU64; 2]);

impl Progress {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .with_context(|| format!("creating {}", path.display()))?;
        file.set_len(size_of::<[AtomicU64; 2]>() as u64)?;
        // SAFETY: a new mapping of a file of this length, which is never unmapped.
        let words = unsafe {
            mmap(
                std::ptr::null_mut(),
                size_of::<[AtomicU64; 2]>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        }?;
        // SAFETY: page-aligned, zeroed and shared only with readers of the file.
        Ok(Self(unsafe { &*words.cast() }))
    }

    pub(super) fn add(&self, operations: u64) {
        self.0[0].fetch_add(operations, Ordering::Relaxed);
    }

    fn set_children_ns(&self, ns: u64) {
        self.0[1].store(ns, Ordering::Relaxed);
    }
}

/// Loops until killed.
pub fn run(kind: Kind, progress: &Path) -> Result<()> {
    let progress = Progress::create(progress)?;
    match kind {
        Kind::PingPong => ping_pong(&progress),
        Kind::Connect => connect(&progress),
        Kind::Request => request(&progress),
        Kind::Exec => exec(&progress),
        Kind::Faults => faults(&progress),
        Kind::Malloc => malloc(&progress),
    }
}

fn ping_pong(progress: &Progress) -> Result<()> {
    let (mut from_pong, to_ping) = std::io::pipe()?;
    let (from_ping, mut to_pong) = std::io::pipe()?;
    // SAFETY: this process has one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => bail!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // Only `ping` may hold these ends: the child ends when they are closed.
            drop((from_pong, to_pong));
            return pong(from_ping, to_ping);
        }
        _ => drop((from_ping, to_ping)),
    }
    let mut ball = [0];
    loop {
        to_pong.write_all(&ball)?;
        from_pong.read_exact(&mut ball)?;
        progress.add(1);
    }
}

fn pong(mut from: PipeReader, mut to: PipeWriter) -> Result<()> {
    let mut ball = [0];
    while from.read(&mut ball)? == 1 {
        to.write_all(&ball)?;
    }
    Ok(())
}

fn connect(progress: &Progress) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    loop {
        // The handshake on loopback ends before connect returns, so one thread can be both sides.
        let client = TcpStream::connect(address)?;
        let server = listener.accept()?.0;
        // A reset, because ports that wait in TIME_WAIT would run out.
        set_socket_linger(&client, Some(std::time::Duration::ZERO))?;
        drop(client);
        drop(server);
        progress.add(1);
    }
}

fn request(progress: &Progress) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let mut server = listener.accept()?.0;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut ball = [0];
    loop {
        // What is sent on loopback has arrived before the call returns: one thread is both sides, and nobody waits.
        client.write_all(&ball)?;
        server.read_exact(&mut ball)?;
        server.write_all(&ball)?;
        client.read_exact(&mut ball)?;
        progress.add(1);
    }
}

fn exec(progress: &Progress) -> Result<()> {
    loop {
        let status = Command::new("true").status().context("running true")?;
        ensure!(status.success(), "true failed: {status}");
        progress.set_children_ns(used(libc::RUSAGE_CHILDREN)?.as_nanos() as u64);
        progress.add(1);
    }
}

fn malloc(progress: &Progress) -> ! {
    // A thousand at once: counting costs as much as an allocation.
    const TURN: u64 = 1000;
    loop {
        for _ in 0..TURN {
            // SAFETY: what malloc returns, null included, may be freed.
            unsafe { libc::free(std::hint::black_box(libc::malloc(std::hint::black_box(64)))) };
        }
        progress.add(TURN);
    }
}

fn faults(progress: &Progress) -> Result<()> {
    const BYTES: usize = 64 << 20;
    const PAGE: usize = 4096;
    loop {
        // SAFETY: a new anonymous mapping; nothing else can refer to it.
        let memory =
            unsafe { mmap_anonymous(std::ptr::null_mut(), BYTES, ProtFlags::WRITE, MapFlags::PRIVATE) }?;
        // SAFETY: the mapping that was just made. One fault a page, also where huge pages are the default.
        unsafe { madvise(memory, BYTES, Advice::LinuxNoHugepage) }?;
        for (done, offset) in (0..BYTES).step_by(PAGE).enumerate() {
            // SAFETY: inside the mapping.
            unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
            if done % 256 == 255 {
                progress.add(256);
            }
        }
        // SAFETY: nobody uses the mapping any more.
        unsafe { munmap(memory, BYTES) }?;
    }
}
