//! Loops of one kind of event, in this process: nanoseconds an operation.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Work;

/// Runs `step` (so many operations) until the time is over; nanoseconds an operation.
fn timed(slice: Duration, operations: u32, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    let mut done = 0u64;
    while began.elapsed() < slice {
        step()?;
        done += u64::from(operations);
    }
    Ok(began.elapsed().as_nanos() as f64 / done as f64)
}

/// What `dd if=/dev/zero of=/dev/null bs=1` does.
pub(super) struct Dd(std::fs::File, std::fs::File);

impl Dd {
    pub(super) fn new() -> Result<Self> {
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        Ok(Self(std::fs::File::open("/dev/zero")?, null))
    }
}

impl Work for Dd {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        let mut byte = [0];
        timed(slice, 1000, || {
            for _ in 0..1000 {
                self.0.read_exact(&mut byte)?;
                self.1.write_all(&byte)?;
            }
            Ok(())
        })
    }
}

fn pin(cpu: usize) -> Result<()> {
    // SAFETY: an all-zero set is valid, `CPU_SET` checks the number, and the size is passed along.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    ensure!(
        result == 0,
        "sched_setaffinity: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Two threads of CPU 1 (or 0) that pass a byte through pipes: two context switches an operation.
pub(super) struct PingPong {
    to: PipeWriter,
    from: PipeReader,
}

impl PingPong {
    pub(super) fn new() -> Result<Self> {
        let (mut theirs, to) = std::io::pipe()?;
        let (from, mut back) = std::io::pipe()?;
        std::thread::spawn(move || -> Result<()> {
            pin(last_cpu())?;
            let mut byte = [0];
            while theirs.read(&mut byte)? == 1 {
                back.write_all(&byte)?;
            }
            Ok(())
        });
        Ok(Self { to, from })
    }
}

fn last_cpu() -> usize {
    std::thread::available_parallelism().map_or(0, |cpus| cpus.get() - 1)
}

impl Work for PingPong {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                pin(last_cpu())?;
                let mut byte = [0];
                timed(slice, 200, || {
                    for _ in 0..200 {
                        self.to.write_all(&byte)?;
                        self.from.read_exact(&mut byte)?;
                    }
                    Ok(())
                })
            });
            work.join()
                .map_err(|_| anyhow::anyhow!("the ping-pong panicked"))?
        })
    }
}

/// Opens, accepts and closes loopback connections.
pub(super) struct Connect(TcpListener);

impl Connect {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(TcpListener::bind("127.0.0.1:0")?))
    }
}

impl Work for Connect {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        let address = self.0.local_addr()?;
        timed(slice, 20, || {
            for _ in 0..20 {
                let near = TcpStream::connect(address)?;
                let far = self.0.accept()?;
                // The client resets: nothing is left in TIME_WAIT, so ports do not run out.
                let linger = libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                // SAFETY: the option is a `linger`, which lives until the call returns.
                unsafe {
                    libc::setsockopt(
                        std::os::fd::AsRawFd::as_raw_fd(&near),
                        libc::SOL_SOCKET,
                        libc::SO_LINGER,
                        (&raw const linger).cast(),
                        size_of::<libc::linger>() as u32,
                    );
                }
                drop((near, far));
            }
            Ok(())
        })
    }
}

/// Starts and ends processes.
pub(super) struct Exec;

impl Work for Exec {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        timed(slice, 1, || {
            let status = Command::new("/bin/true")
                .stdin(Stdio::null())
                .status()
                .context("run /bin/true")?;
            ensure!(status.success(), "/bin/true failed");
            Ok(())
        })
    }
}

/// First touches of fresh memory, a page each.
pub(super) struct Faults;

impl Work for Faults {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        const PAGES: usize = 4096;
        timed(slice, PAGES as u32, || {
            // SAFETY: a mapping of our own, used inside of its bounds and unmapped once.
            unsafe {
                let (prot, flags) = (
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                );
                let start = libc::mmap(std::ptr::null_mut(), PAGES * 4096, prot, flags, -1, 0);
                ensure!(
                    start != libc::MAP_FAILED,
                    "mmap: {}",
                    std::io::Error::last_os_error()
                );
                libc::madvise(start, PAGES * 4096, libc::MADV_NOHUGEPAGE);
                for page in 0..PAGES {
                    start.cast::<u8>().add(page * 4096).write_volatile(1);
                }
                libc::munmap(start, PAGES * 4096);
            }
            Ok(())
        })
    }
}
