//! Saturated servers: CPU time a request, from the scheduler's own account and the server's own count.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::Work;
use crate::command;

/// A child that is killed and reaped when dropped.
struct Guard(Child);

impl Guard {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(Self(
            child.with_context(|| format!("start {}", command::line(command)))?,
        ))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails only where it has already ended.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A server under load.
pub(super) struct Server {
    // The load ends before its server does.
    _load: Guard,
    server: Guard,
    requests: fn(u16) -> Result<u64>,
    port: u16,
    _files: tempdir::Dir,
}

mod tempdir {
    //! A directory that is removed when dropped.
    use anyhow::Result;
    use std::path::{Path, PathBuf};

    pub(super) struct Dir(PathBuf);

    impl Dir {
        pub(super) fn new(name: &str) -> Result<Self> {
            let path = std::env::temp_dir().join(format!("tieback-bench-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path)?;
            Ok(Self(path))
        }

        pub(super) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            // What is left in a temporary directory harms nobody.
            let _removed = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn tool(name: &str) -> Result<std::path::PathBuf> {
    command::find(name).with_context(|| format!("{name} is missing: cargo xtask setup --tests"))
}

fn ready(port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < deadline, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Server {
    /// redis-server under redis-benchmark.
    pub(super) fn redis() -> Result<Self> {
        let (server, load) = (tool("redis-server")?, tool("redis-benchmark")?);
        let (port, files) = (free_port()?, tempdir::Dir::new("redis")?);
        let number = port.to_string();
        let server = Guard::start(
            Command::new(server)
                .args([
                    "--port",
                    &number,
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--bind",
                    "127.0.0.1",
                    "--dir",
                ])
                .arg(files.path()),
        )?;
        ready(port)?;
        let load =
            Guard::start(Command::new(load).args(["-p", &number, "-l", "-q", "-c", "20", "-t", "get"]))?;
        Ok(Self {
            _load: load,
            server,
            requests: redis_commands,
            port,
            _files: files,
        })
    }

    /// nginx with one worker under wrk.
    pub(super) fn nginx() -> Result<Self> {
        let (server, load) = (tool("nginx")?, tool("wrk")?);
        let (port, files) = (free_port()?, tempdir::Dir::new("nginx")?);
        let configuration = files.path().join("nginx.conf");
        std::fs::write(&configuration, nginx_conf(port, files.path()))?;
        let server = Guard::start(Command::new(server).arg("-c").arg(&configuration))?;
        ready(port)?;
        let url = format!("http://127.0.0.1:{port}/");
        let load = Guard::start(Command::new(load).args(["-t", "1", "-c", "20", "-d", "3600", &url]))?;
        Ok(Self {
            _load: load,
            server,
            requests: nginx_requests,
            port,
            _files: files,
        })
    }
}

fn nginx_conf(port: u16, files: &Path) -> String {
    let files = files.display();
    format!(
        "daemon off; master_process off; pid {files}/pid; error_log {files}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; keepalive_requests 1000000000;\n\
         server {{ listen 127.0.0.1:{port};\n\
         location / {{ return 200 'a short answer'; }}\n\
         location /status {{ stub_status; }} }} }}\n"
    )
}

fn redis_commands(port: u16) -> Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"INFO stats\r\n")?;
    let mut text = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let got = stream.read(&mut chunk)?;
        ensure!(got > 0, "redis hung up");
        text.extend_from_slice(&chunk[..got]);
        let so_far = String::from_utf8_lossy(&text);
        if let Some((_, rest)) = so_far.split_once("total_commands_processed:")
            && let Some((number, _)) = rest.split_once('\r')
        {
            return Ok(number.parse()?);
        }
    }
}

fn nginx_requests(port: u16) -> Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let counts = text
        .lines()
        .skip_while(|line| !line.starts_with("server accepts"))
        .nth(1);
    let requests = counts
        .and_then(|line| line.split_whitespace().nth(2))
        .context("no count in stub_status")?;
    Ok(requests.parse()?)
}

/// Nanoseconds on the CPU of a process, by the scheduler's account of each thread.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        sum += text
            .split_whitespace()
            .next()
            .context("schedstat")?
            .parse::<u64>()?;
    }
    Ok(sum)
}

impl Work for Server {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        let pid = self.server.0.id();
        let (requests, cpu) = ((self.requests)(self.port)?, cpu_ns(pid)?);
        std::thread::sleep(slice);
        let (more, later) = ((self.requests)(self.port)?, cpu_ns(pid)?);
        if more < requests + 100 {
            bail!(
                "the server is not under load: {} requests in a slice",
                more - requests
            );
        }
        Ok((later - cpu) as f64 / (more - requests) as f64)
    }
}

/// PostgreSQL under `pgbench -S`: a fixed number of transactions a slice; nanoseconds a transaction as pgbench saw it.
pub(super) struct Postgres {
    _server: Guard,
    pgbench: std::path::PathBuf,
    port: u16,
    _files: tempdir::Dir,
}

impl Postgres {
    pub(super) fn new() -> Result<Self> {
        let versions =
            std::fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL: cargo xtask setup --tests")?;
        let bin = versions
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .max()
            .context("no PostgreSQL below /usr/lib/postgresql")?;
        let (port, files) = (free_port()?, tempdir::Dir::new("postgres")?);
        let data = files.path().join("data");
        std::fs::create_dir(&data)?;
        command::checked(Command::new("chown").arg("-R").arg("postgres").arg(files.path()))?;
        // The server refuses to run as root.
        let user = |program: &str| {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(bin.join(program));
            command
        };
        command::stdout(
            user("initdb")
                .arg("--no-sync")
                .arg("-A")
                .arg("trust")
                .arg("-D")
                .arg(&data),
        )?;
        let number = port.to_string();
        let server = Guard::start(
            user("postgres")
                .arg("-D")
                .arg(&data)
                .args(["-p", &number, "-k"])
                .arg(files.path()),
        )?;
        ready(port)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        let connect = ["-h", "127.0.0.1", "-p", &number, "-U", "postgres"];
        while command::stdout(
            user("pgbench")
                .args(["-i", "-q", "-s", "5"])
                .args(connect)
                .arg("postgres")
                .stderr(Stdio::null()),
        )
        .is_err()
        {
            ensure!(Instant::now() < deadline, "pgbench -i never succeeded");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(Self {
            _server: server,
            pgbench: bin.join("pgbench"),
            port,
            _files: files,
        })
    }
}

impl Work for Postgres {
    fn slice(&mut self, slice: Duration) -> Result<f64> {
        let number = self.port.to_string();
        // About the slice's length at 20,000 transactions a second on this kind of machine.
        let each = (slice.as_millis() as u64 * 5).to_string();
        let text = command::stdout(
            Command::new(&self.pgbench)
                .args([
                    "-S",
                    "-n",
                    "-c",
                    "4",
                    "-j",
                    "1",
                    "-t",
                    &each,
                    "-h",
                    "127.0.0.1",
                    "-p",
                    &number,
                    "-U",
                    "postgres",
                ])
                .arg("postgres"),
        )?;
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = "))
            .context("no tps from pgbench")?;
        let tps: f64 = rate.split_whitespace().next().context("tps")?.parse()?;
        Ok(1e9 / tps)
    }
}
