//! Real servers for tests, each a service of its own name, on a free port of loopback.
//!
//! They write their titles over their environment, so `[[service]]` rules name them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::agent::Agent;
use crate::program::unique_service;

const DEADLINE: Duration = Duration::from_secs(30);

/// How long a server has to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A child that is ended and reaped when dropped.
pub struct Guard(pub Child);

impl Guard {
    /// Starts a command that reads nothing and whose output nobody needs.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Ok(Self(child.with_context(|| {
            format!(
                "start {:?}: cargo xtask setup --tests installs it",
                command.get_program()
            )
        })?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // One that was killed would leave its workers behind, as nginx does. (A process that was reaped has no pid any more.)
        if matches!(self.0.try_wait(), Ok(None)) {
            let _asked = kill_process(Pid::from_child(&self.0), Signal::TERM);
        }
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Fails only where it has already ended.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A running server.
pub struct Server {
    /// Its `service_name`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// What its rule matches: a key and a pattern.
    rule: (&'static str, String),
    process: Guard,
    files: tempfile::TempDir,
}

/// A port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Waits until somebody listens.
pub fn wait_for_port(port: u16) -> Result<()> {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(start.elapsed() < DEADLINE, "nothing listens on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends a request and reads until the peer closes, or until `end` was read.
pub fn ask(port: u16, request: &str, end: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_bytes())?;
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let got = stream.read(&mut chunk)?;
        text.extend_from_slice(&chunk[..got]);
        let so_far = String::from_utf8_lossy(&text);
        if got == 0 || !end.is_empty() && so_far.contains(end) {
            return Ok(so_far.into_owned());
        }
    }
}

/// A command as the user `postgres`, as which the server insists to run.
fn as_postgres(program: PathBuf) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(program);
    command
}

impl Server {
    /// An agent whose configuration names these servers.
    pub fn watched(servers: &[&Self]) -> Result<Agent> {
        Self::watched_with(servers, &[])
    }

    /// The same with options of the agent.
    pub fn watched_with(servers: &[&Self], options: &[&str]) -> Result<Agent> {
        let mut rules = tempfile::NamedTempFile::new()?;
        for server in servers {
            let (key, pattern) = &server.rule;
            writeln!(
                rules,
                "[[service]]\n{key} = {pattern:?}\nname = {:?}\n",
                server.service
            )?;
        }
        let path = rules.path().to_str().context("path")?.to_owned();
        let agent = Agent::start(&[&["--config", &path], options].concat())?;
        for server in servers {
            agent.wait_for_service(&server.service)?;
        }
        Ok(agent)
    }

    /// Process id of the first process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Process ids of all its processes.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let mut pids = vec![self.pid()];
        let mut at = 0;
        while let Some(pid) = pids.get(at).copied() {
            at += 1;
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
            for task in tasks {
                let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
                pids.extend(
                    children
                        .split_whitespace()
                        .filter_map(|child| child.parse::<u32>().ok()),
                );
            }
        }
        Ok(pids)
    }

    /// redis-server without persistence.
    pub fn redis() -> Result<Self> {
        Self::redis_with(&[])
    }

    /// The same with options.
    pub fn redis_with(options: &[&str]) -> Result<Self> {
        let (port, files, service) = (free_port()?, tempfile::tempdir()?, unique_service("redis"));
        let (exe, rule) = copy_of("redis-server", files.path())?;
        let process = Guard::start(
            Command::new(&exe)
                .args([
                    "--port",
                    &port.to_string(),
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--dir",
                ])
                .arg(files.path())
                .args(options),
        )?;
        wait_for_port(port)?;
        Ok(Self {
            service,
            port,
            rule,
            process,
            files,
        })
    }

    /// Connections that Redis has accepted until now, this question's included.
    pub fn redis_accepted(&self) -> Result<f64> {
        let text = ask(self.port, "INFO stats\r\n", "instantaneous_ops_per_sec")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("total_connections_received:"));
        Ok(line.context("no total_connections_received")?.trim().parse()?)
    }

    /// nginx with one worker process.
    pub fn nginx() -> Result<Self> {
        Self::nginx_with("", "return 200 'a short answer';")
    }

    /// The same before a service on another port, with connections to it that are kept or not.
    pub fn nginx_before(service: u16, keep: bool) -> Result<Self> {
        let (kept, header) = if keep {
            (
                "keepalive 64; keepalive_requests 1000000000;",
                "proxy_http_version 1.1; proxy_set_header Connection '';",
            )
        } else {
            ("", "")
        };
        let upstream = format!("upstream service {{ server 127.0.0.1:{service}; {kept} }}");
        Self::nginx_with(&upstream, &format!("proxy_pass http://service; {header}"))
    }

    fn nginx_with(upstream: &str, location: &str) -> Result<Self> {
        let (port, files, service) = (free_port()?, tempfile::tempdir()?, unique_service("nginx"));
        let dir = files.path().display();
        let configuration = format!(
            "daemon off; user root; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; {upstream}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ {location} }}\n\
             location /status {{ stub_status; }} }} }}\n"
        );
        let path = files.path().join("nginx.conf");
        std::fs::write(&path, configuration)?;
        let (exe, rule) = copy_of("nginx", files.path())?;
        let process = Guard::start(Command::new(&exe).arg("-c").arg(&path))?;
        wait_for_port(port)?;
        Ok(Self {
            service,
            port,
            rule,
            process,
            files,
        })
    }

    /// Connections that nginx has accepted until now, this question's included.
    pub fn nginx_accepted(&self) -> Result<f64> {
        let text = ask(self.port, "GET /status HTTP/1.0\r\n\r\n", "")?;
        let counts = text
            .lines()
            .skip_while(|line| !line.starts_with("server accepts"))
            .nth(1);
        let accepted = counts.and_then(|line| line.split_whitespace().next());
        Ok(accepted.context("no count in stub_status")?.parse()?)
    }

    /// PostgreSQL with fsync on and pgbench's tables.
    pub fn postgres() -> Result<Self> {
        let bin = postgres_programs()?;
        let (port, files, service) = (free_port()?, tempfile::tempdir()?, unique_service("postgres"));
        let owned = Command::new("chown").arg("postgres").arg(files.path()).status()?;
        ensure!(owned.success(), "chown failed");
        let data = files.path().join("data");
        let rule = ("arg", data.display().to_string());
        let made = as_postgres(bin.join("initdb"))
            .args(["--auth=trust", "--no-sync", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()?;
        ensure!(made.success(), "initdb failed");
        let process = Guard::start(
            as_postgres(bin.join("postgres"))
                .arg("-D")
                .arg(&data)
                .args(["-p", &port.to_string(), "-k"])
                .arg(files.path()),
        )?;
        let server = Self {
            service,
            port,
            rule,
            process,
            files,
        };
        let start = Instant::now();
        while !server.pgbench(&["-i", "-q", "-s", "2"])?.status()?.success() {
            ensure!(start.elapsed() < DEADLINE, "pgbench -i never succeeded");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(server)
    }

    /// Where its Unix socket is.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        self.files.path()
    }

    /// The number that PostgreSQL answers to a query.
    pub fn query(&self, sql: &str) -> Result<f64> {
        let port = self.port.to_string();
        let output = Command::new("psql")
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-tAc", sql])
            .output()
            .context("start psql")?;
        ensure!(output.status.success(), "psql failed");
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    }

    /// pgbench against this server.
    pub fn pgbench(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(postgres_programs()?.join("pgbench"));
        command
            .args(args)
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "postgres",
                "postgres",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }
}

/// The program under a path that nothing else has, and the rule that matches it.
fn copy_of(program: &str, folder: &Path) -> Result<(PathBuf, (&'static str, String))> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join(program));
    let from = found.into_iter().find(|path| path.is_file());
    let to = folder.join(program);
    std::fs::copy(
        from.with_context(|| format!("no {program}: cargo xtask setup --tests"))?,
        &to,
    )?;
    let pattern = to.display().to_string();
    Ok((to, ("exe", pattern)))
}

fn postgres_programs() -> Result<PathBuf> {
    std::fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL: cargo xtask setup --tests")?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .max()
        .context("no PostgreSQL below /usr/lib/postgresql")
}
