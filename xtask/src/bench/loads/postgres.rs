//! PostgreSQL, saturated by pgbench's read-only transactions.

use super::{Done, Load, Running, SERVER, Site};
use crate::{
    bench::process::{Process, cpus, free_port, pinned, wait_for, wait_for_port},
    command,
};
use anyhow::{Context as _, Result};
use std::{fs, os::unix::fs::chown, path::PathBuf, process::Command};

pub(super) const LOAD: Load = Load {
    name: "postgres",
    unit: "transaction",
    what: "PostgreSQL, 4 connections of pgbench -S",
    needs: &["postgres", "initdb", "pgbench", "ss"],
    target: SERVER,
    start,
};

/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";
const CLIENTS: usize = 4;

fn start(site: &Site<'_>) -> Result<Running> {
    let (server_cpu, client_cpu) = cpus();
    let port = free_port()?;
    let dir = site.dir.join("postgres");
    fs::create_dir(&dir)?;
    let (uid, gid) = ids(USER)?;
    chown(&dir, Some(uid), Some(gid))?;

    let mut initdb = pinned(&program("initdb")?, server_cpu, Some(USER));
    initdb.args(["--username", USER, "--auth", "trust", "--no-sync", "--pgdata"]);
    command::stdout(initdb.arg(&dir))?;
    let mut server = pinned(&program("postgres")?, server_cpu, Some(USER));
    server.arg("-D").arg(&dir).args(["-p", &port.to_string()]);
    for setting in [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        "fsync=off",
        // Workers that come and go would be lost to the count of CPU time.
        "autovacuum=off",
    ] {
        server.args(["-c", setting]);
    }
    // SIGTERM would wait for the clients, SIGINT ends them.
    let mut server =
        Process::start(&mut server, &site.dir.join("postgres.log"))?.ended_by(rustix::process::Signal::INT);
    wait_for_port(&mut server, port)?;

    let pgbench = || -> Result<Command> {
        let mut pgbench = pinned(&program("pgbench")?, client_cpu, None);
        pgbench.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", USER]);
        Ok(pgbench)
    };
    // The port answers before the server lets anybody in.
    wait_for("PostgreSQL", || {
        Ok(command::stdout(pgbench()?.args(["-i", "-q", "-s", "1", USER])).ok())
    })?;
    let mut client = pgbench()?;
    client.args(["-S", "-n", "-c", &CLIENTS.to_string(), "-T", "1000000", USER]);
    let client = Process::start(&mut client, &site.dir.join("pgbench.log"))?;
    wait_for("pgbench's connections", || {
        Ok((queries(&sockets(port)?).len() >= CLIENTS).then_some(()))
    })?;

    Ok(Running {
        measured: server.family()?,
        processes: vec![client, server],
        count: Box::new(move || {
            Ok(Done {
                operations: queries(&sockets(port)?).iter().sum(),
                ..Done::default()
            })
        }),
    })
}

fn program(name: &str) -> Result<PathBuf> {
    command::find(name).with_context(|| format!("no {name}"))
}

/// What `ss` tells about the server's connections. The server's own statistics lag by a second.
fn sockets(port: u16) -> Result<String> {
    command::stdout(
        Command::new("ss")
            .args(["--tcp", "--numeric", "--info", "--no-header"])
            .arg(format!("sport = :{port}")),
    )
}

/// Queries of each connection: each is one segment with data, and so small that it is never split or merged.
fn queries(sockets: &str) -> Vec<u64> {
    sockets
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("data_segs_in:")?.parse().ok())
        .collect()
}

/// User and group id of a user of this host.
fn ids(user: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let fields: Vec<&str> = text
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&user))
        .with_context(|| format!("this host has no user {user}"))?;
    let id = |at: usize| fields.get(at).and_then(|id| id.parse().ok());
    id(2)
        .zip(id(3))
        .with_context(|| format!("/etc/passwd has no ids for {user}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn reads_the_queries_of_each_connection() {
        let text = "ESTAB 0 0 127.0.0.1:5 127.0.0.1:6\n\t cubic rto:200 data_segs_out:9 data_segs_in:7 send 1bps\n\
                    ESTAB 0 0 127.0.0.1:5 127.0.0.1:8\n\t cubic data_segs_in:3\n";
        assert_eq!(super::queries(text), [7, 3]);
    }
}
