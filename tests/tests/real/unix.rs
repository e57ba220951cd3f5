//! pgbench over the Unix socket of PostgreSQL, against what PostgreSQL says.

use anyhow::{Context, Result, ensure};
use tieback_tests::metrics::Scrape;
use tieback_tests::program::unique_service;
use tieback_tests::server::{Guard, Server};

/// A metric of the pool that a service has with another, from one end.
fn pool(scrape: &Scrape, name: &str, service: &str, direction: &str, peer: &str) -> f64 {
    let labels = [
        ("service_name", service),
        ("direction", direction),
        ("peer", peer),
    ];
    scrape.sum(&format!("tieback_pool_{name}"), &labels)
}

#[test]
fn pgbench_over_a_unix_socket_is_what_postgres_counts() -> Result<()> {
    let (database, service) = (Server::postgres()?, unique_service("pgbench"));
    let agent = Server::watched(&[&database])?;
    let folder = database.socket_folder().to_str().context("path")?;
    // The last of two hosts is the one that counts.
    let mut command = database.pgbench(&["-n", "-S", "-c", "4", "-T", "8", "-R", "50"])?;
    command.args(["-h", folder]).env("OTEL_SERVICE_NAME", &service);
    let mut pgbench = Guard::start(&mut command)?;
    let [out, inward] = [
        ("out", &service, &database.service),
        ("in", &database.service, &service),
    ]
    .map(|(direction, of, peer)| {
        let peer = format!("unix:{peer}");
        move |scrape: &Scrape| pool(scrape, "connections", of, direction, &peer)
    });
    agent.wait_for("four connections at both ends", |scrape| {
        out(scrape) == 4.0 && inward(scrape) == 4.0
    })?;
    let held =
        "select count(*) from pg_stat_activity where application_name = 'pgbench' and client_addr is null";
    assert_eq!(database.query(held)?, 4.0, "what PostgreSQL says");
    ensure!(pgbench.0.wait()?.success(), "pgbench failed");
    let after = agent.settled()?;
    assert_eq!([out(&after), inward(&after)], [0.0; 2]);
    Ok(())
}

/// A connection for each transaction over the Unix socket: as many as PostgreSQL counts sessions.
#[test]
fn brief_connections_of_pgbench_are_the_sessions_of_postgres() -> Result<()> {
    let (database, service) = (Server::postgres()?, unique_service("pgbench"));
    let agent = Server::watched_with(&[&database], &["--syscall-mode", "exact"])?;
    let sessions = "select sessions from pg_stat_database where datname = 'postgres'";
    let before = database.query(sessions)?;
    let folder = database.socket_folder().to_str().context("path")?;
    let mut command = database.pgbench(&["-n", "-S", "-C", "-c", "4", "-t", "250"])?;
    command.args(["-h", folder]).env("OTEL_SERVICE_NAME", &service);
    let mut pgbench = Guard::start(&mut command)?;
    ensure!(pgbench.0.wait()?.success(), "pgbench failed");
    // The question before is a session, too, counted when it ends; that of this one is not over yet.
    let counted = database.query(sessions)? - before - 1.0;
    let after = agent.settled()?;
    for (direction, of, peer) in [
        ("out", &service, &database.service),
        ("in", &database.service, &service),
    ] {
        let peer = format!("unix:{peer}");
        let opened = pool(&after, "opened_total", of, direction, &peer);
        assert!(
            (opened - counted).abs() <= 2.0 && counted >= 1000.0,
            "{direction}: {opened} connections, {counted} sessions"
        );
        assert_eq!(pool(&after, "connections", of, direction, &peer), 0.0);
    }
    Ok(())
}
