//! A program with known behaviour, for the tests.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tieback_tests::workloads::{
    confined, conn, cpu, crowd, disk, fds, handover, link, loops, memory, mixture, net, openers, pool,
    process, syscalls, unix, wait,
};

/// What to do; each prints the truth about itself as JSON lines and goes on when it reads a line.
#[derive(Parser)]
enum Command {
    /// Waits of one kind.
    Wait {
        kind: wait::Kind,
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        #[arg(long, default_value_t = 1)]
        times: u32,
    },
    /// Spins.
    Spin {
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Threads that sleep, spin, read pipes and share a lock.
    Mixed {
        #[arg(long, default_value_t = 8)]
        threads: usize,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
    /// Runs a command as a user with some capabilities and no way to more.
    Confined {
        #[arg(long)]
        user: u32,
        #[arg(long)]
        capabilities: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// getppid and failing openat.
    Syscalls {
        #[arg(long, default_value_t = 1_000_000)]
        getppid: u64,
        #[arg(long, default_value_t = 1_000)]
        openat: u64,
    },
    /// Reads zeros.
    Zeros {
        #[arg(long, default_value_t = 25)]
        seconds: u64,
        #[arg(long, default_value_t = 524_288)]
        bytes: usize,
    },
    /// Writes and syncs a file.
    Fsync {
        path: PathBuf,
        #[arg(long, default_value_t = 200)]
        times: u32,
    },
    /// Grows in some functions and gives back in known ways.
    Net {
        #[arg(long)]
        huge: memory::HugePages,
    },
    /// Reads a file that is not cached.
    ColdRead {
        path: PathBuf,
        #[arg(long, default_value_t = 65_536)]
        chunk: usize,
    },
    /// Touches a mapped file at random.
    Touch {
        path: PathBuf,
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
    /// Faults in a mapped file that is not cached.
    Fault {
        path: PathBuf,
        #[arg(long, default_value_t = 65_536)]
        stride: usize,
    },
    /// Writes past the page cache.
    DirectWrite {
        path: PathBuf,
        #[arg(long, default_value_t = 16 << 20)]
        bytes: u64,
        #[arg(long, default_value_t = 65_536)]
        chunk: usize,
    },
    /// Grows memory in two functions, 3:1.
    Grow {
        #[arg(long, default_value_t = 256 << 20)]
        bytes: usize,
        #[arg(long, default_value = "off")]
        huge: memory::HugePages,
    },
    /// Grows until killed.
    Oom,
    /// Many short waits and few long ones.
    Mixture {
        #[arg(long, default_value_t = 40)]
        turns: u32,
        #[arg(long, default_value_t = 500)]
        shorts: u32,
    },
    /// Forks children that live briefly.
    Storm {
        #[arg(long, default_value_t = 10_000)]
        children: u32,
        #[arg(long)]
        exec: bool,
        /// About how long each child computes; needs --exec.
        #[arg(long, default_value_t = 0, requires = "exec")]
        work_ms: u64,
    },
    /// A child of the storm.
    Brief {
        #[arg(long, default_value_t = 0)]
        turns: u64,
    },
    /// Gets descriptors in every way there is, and loses them.
    FdSteps,
    /// Holds a known number of descriptors.
    Fds {
        #[arg(long, default_value_t = 30)]
        files: usize,
        #[arg(long, default_value_t = 20)]
        pipes: usize,
        #[arg(long, default_value_t = 10)]
        sockets: usize,
    },
    /// Serves TCP connections on loopback.
    Serve {
        mode: conn::Server,
        #[arg(long)]
        v6: bool,
        #[arg(long, default_value_t = 1_000)]
        count: usize,
    },
    /// Listens and connects to itself, then becomes another program that goes on with it.
    HandOver,
    /// Connects to itself, then moves its listener to a higher descriptor.
    MoveListener {
        #[arg(long)]
        v6: bool,
    },
    /// Listens and leaves it to a child, the service of this name, to accept.
    Launch { service: String },
    /// What takes over.
    TakeOver { listener: i32, held: Vec<i32> },
    /// Opens TCP connections to a port on loopback.
    Connect {
        port: u16,
        #[arg(long)]
        v6: bool,
        #[arg(long, default_value_t = 1_000)]
        count: usize,
        /// Close from this side.
        #[arg(long)]
        close: bool,
    },
    /// Accepts connections over a slow link.
    LinkServe {
        count: usize,
        #[arg(long)]
        v6: bool,
    },
    /// Connects over a slow link, and sends over it.
    LinkConnect {
        port: u16,
        count: usize,
        bytes: usize,
        #[arg(long)]
        v6: bool,
    },
    /// Accepts many connections on loopback, of which some are half closed by the client.
    CrowdServe {
        count: usize,
        #[arg(long)]
        v6: bool,
    },
    /// Opens many connections, and closes its side of some first.
    CrowdConnect {
        port: u16,
        count: usize,
        #[arg(long)]
        v6: bool,
        #[arg(long)]
        half: usize,
    },
    /// Holds many connections to itself until killed, for the benchmark.
    Crowd {
        count: usize,
        /// File that holds how many there are.
        progress: PathBuf,
    },
    /// Opens `count` connections to itself one after another, a quarter of them from another function.
    Flood { count: usize },
    /// Opens connections to two ports, from functions of the one, of the other and of both.
    Openers {
        #[arg(num_args = 2)]
        ports: Vec<u16>,
        #[arg(long, default_value_t = 400)]
        brief: u64,
    },
    /// Answers requests on loopback after the time that each asks for.
    Answer {
        #[arg(long)]
        v6: bool,
    },
    /// Accepts connections over a Unix socket and holds them.
    UnixServe { path: PathBuf, count: usize },
    /// Opens such connections and holds them.
    UnixConnect { path: PathBuf, count: usize },
    /// Accepts connections over a Unix socket, each closed before the next.
    UnixServeEach { path: PathBuf, count: usize },
    /// Connects over a Unix socket for one request each.
    UnixConnectEach { path: PathBuf, count: usize },
    /// Holds connections to such a server and uses some of them.
    Pool {
        port: u16,
        #[arg(long)]
        v6: bool,
        #[arg(long, default_value_t = 10)]
        count: usize,
        #[arg(long, default_value_t = 1)]
        used: usize,
        #[arg(long, default_value_t = 0)]
        work_us: u64,
        #[arg(long, default_value_t = 0)]
        rest_us: u64,
        #[arg(long, default_value_t = 3600)]
        seconds: u64,
        /// Requests of each used connection at most.
        #[arg(long, default_value_t = u64::MAX)]
        requests: u64,
        /// A new connection for each request.
        #[arg(long)]
        each: bool,
    },
    /// Repeats one operation until killed, for the benchmark.
    Loop {
        kind: loops::Kind,
        /// File that holds the count of operations.
        progress: PathBuf,
    },
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Wait { kind, seconds, times } => wait::run(kind, seconds, times),
        Command::Spin { cpu, seconds } => cpu::spin(cpu, seconds),
        Command::Mixed { threads, seconds } => cpu::mixed(threads, seconds),
        Command::Confined {
            user,
            capabilities,
            command,
        } => confined::exec(user, &capabilities, &command),
        Command::Syscalls { getppid, openat } => syscalls::counted(getppid, openat),
        Command::Fsync { path, times } => disk::fsync_loop(&path, times),
        Command::ColdRead { path, chunk } => disk::cold_read(&path, chunk),
        Command::Fault { path, stride } => disk::fault_read(&path, stride),
        Command::Touch { path, seconds } => disk::touch(&path, seconds),
        Command::DirectWrite { path, bytes, chunk } => disk::direct_write(&path, bytes, chunk),
        Command::Grow { bytes, huge } => memory::grow(bytes, huge),
        Command::Zeros { seconds, bytes } => syscalls::zeros(Duration::from_secs(seconds), bytes),
        Command::Net { huge } => net::net(huge),
        Command::Oom => memory::grow_until_killed(),
        Command::Mixture { turns, shorts } => mixture::run(turns, shorts),
        Command::Storm {
            children,
            exec,
            work_ms,
        } => process::storm(children, exec, Duration::from_millis(work_ms)),
        Command::Brief { turns } => {
            process::brief(turns);
            Ok(())
        }
        Command::FdSteps => fds::steps(),
        Command::Fds {
            files,
            pipes,
            sockets,
        } => fds::open(files, pipes, sockets),
        Command::Serve { mode, v6, count } => conn::serve(mode, v6, count),
        Command::HandOver => handover::hand_over(),
        Command::MoveListener { v6 } => handover::move_listener(v6),
        Command::Launch { service } => handover::launch(&service),
        Command::TakeOver { listener, held } => handover::take_over(listener, &held),
        Command::Connect {
            port,
            v6,
            count,
            close,
        } => conn::connect(port, v6, count, close),
        Command::LinkServe { count, v6 } => link::serve(v6, count),
        Command::LinkConnect {
            port,
            count,
            bytes,
            v6,
        } => link::connect(port, v6, count, bytes),
        Command::CrowdServe { count, v6 } => crowd::serve(v6, count),
        Command::CrowdConnect {
            port,
            count,
            v6,
            half,
        } => crowd::connect(port, v6, count, half),
        Command::Crowd { count, progress } => crowd::hold(count, &progress),
        Command::Flood { count } => conn::flood(count),
        Command::Openers { ports, brief } => {
            let ports = ports.try_into().ok().context("two ports")?;
            openers::run(ports, brief)
        }
        Command::Answer { v6 } => pool::serve(v6),
        Command::UnixServe { path, count } => unix::serve(&path, count),
        Command::UnixConnect { path, count } => unix::connect(&path, count),
        Command::UnixServeEach { path, count } => unix::serve_each(&path, count),
        Command::UnixConnectEach { path, count } => unix::connect_each(&path, count),
        Command::Pool {
            port,
            v6,
            count,
            used,
            work_us,
            rest_us,
            seconds,
            requests,
            each,
        } => pool::client(
            port,
            v6,
            pool::Use {
                count,
                used,
                work: Duration::from_micros(work_us),
                rest: Duration::from_micros(rest_us),
                length: Duration::from_secs(seconds),
                requests,
                each,
            },
        ),
        Command::Loop { kind, progress } => loops::run(kind, &progress),
    }
}
