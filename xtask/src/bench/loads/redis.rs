//! Redis, saturated by redis-benchmark.

use super::{Done, Load, Running, SERVER, Site};
use crate::{
    bench::process::{Process, cpus, free_port, pinned, wait_for_port},
    command,
};
use anyhow::{Context as _, Result};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

pub(super) const LOAD: Load = Load {
    name: "redis",
    unit: "request",
    what: "redis-server, 50 connections of redis-benchmark that set 100 bytes",
    needs: &["redis-server", "redis-benchmark"],
    target: SERVER,
    start,
};

/// Starts it.
pub(crate) fn start(site: &Site<'_>) -> Result<Running> {
    let (server_cpu, client_cpu) = cpus();
    let port = free_port()?;
    let program = command::find("redis-server").context("no redis-server")?;
    let mut server = pinned(&program, server_cpu, None);
    server
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--dir"])
        .arg(site.dir);
    let mut server = Process::start(&mut server, &site.dir.join("redis.log"))?;
    wait_for_port(&mut server, port)?;

    let program = command::find("redis-benchmark").context("no redis-benchmark")?;
    let mut client = pinned(&program, client_cpu, None);
    client.args(["-p", &port.to_string(), "-c", "50", "-t", "set", "-d", "100"]);
    client.args(["-r", "10000", "-n", "2000000000", "-q"]);
    let client = Process::start(&mut client, &site.dir.join("redis-benchmark.log"))?;

    let mut stats = BufReader::new(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?);
    Ok(Running {
        measured: vec![server.pid()],
        processes: vec![client, server],
        count: Box::new(move || {
            stats.get_mut().write_all(b"INFO stats\r\n")?;
            let mut header = String::new();
            stats.read_line(&mut header)?;
            let length: usize = header
                .trim()
                .trim_start_matches('$')
                .parse()
                .context("read redis's answer")?;
            // The answer ends with a line end that its length leaves out.
            let mut text = vec![0; length + 2];
            stats.read_exact(&mut text)?;
            let operations = String::from_utf8_lossy(&text)
                .lines()
                .find_map(|line| line.strip_prefix("total_commands_processed:")?.parse().ok())
                .context("redis does not tell its commands")?;
            Ok(Done {
                operations,
                ..Done::default()
            })
        }),
    })
}
