//! Pools of real clients: exchanges against what the servers count, without knowing their protocols.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::server::{Server, ask};

const EXCHANGES: &str = "tieback_pool_exchanges_total";
const ONCE: &str = "tieback_pool_closed_after_one_exchange_total";
const OPENED: &str = "tieback_pool_opened_total";

/// The growth of a metric of the connections that a server accepted, whoever the clients were.
fn more(before: &Scrape, after: &Scrape, server: &Server, name: &str) -> f64 {
    let labels = [("service_name", server.service.as_str()), ("direction", "in")];
    after.sum(name, &labels) - before.sum(name, &labels)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} failed: {status}", command.get_program());
    Ok(())
}

/// Commands that Redis has processed until now, this question aside.
fn redis_commands(server: &Server) -> Result<f64> {
    let text = ask(server.port, "INFO stats\r\n", "instantaneous_ops_per_sec")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("total_commands_processed:"));
    Ok(line.context("no total_commands_processed")?.trim().parse()?)
}

#[test]
fn exchanges_of_redis_benchmark_are_the_commands_of_redis() -> Result<()> {
    let redis = Server::redis()?;
    let agent = Server::watched(&[&redis])?;
    let port = redis.port.to_string();
    for (keep, requests) in [("1", "50000"), ("0", "5000")] {
        let before = agent.settled()?;
        let counted = redis_commands(&redis)?;
        let accepted = redis.redis_accepted()?;
        run(Command::new("redis-benchmark").args([
            "-p", &port, "-q", "-c", "20", "-k", keep, "-n", requests, "-t", "set,get",
        ]))?;
        let accepted = redis.redis_accepted()? - accepted;
        let counted = redis_commands(&redis)? - counted;
        let after = agent.settled()?;
        let exchanges = more(&before, &after, &redis, EXCHANGES);
        assert_within!(exchanges, counted, 0.05, "exchanges with -k {keep}");
        // The questions on both sides of the load are connections, too: three of the four are in between.
        let opened = more(&before, &after, &redis, OPENED);
        assert!(
            (opened - accepted - 3.0).abs() <= 1.0,
            "opened {opened}, accepted {accepted}"
        );
        let once = more(&before, &after, &redis, ONCE);
        if keep == "0" {
            assert_within!(once, opened, 0.05, "connections for one request");
        } else {
            assert!(once < 10.0, "{once} connections for one request");
        }
    }
    Ok(())
}

/// Transactions that PostgreSQL has committed until now in pgbench's database.
fn postgres_transactions(server: &Server) -> Result<f64> {
    server.query("select xact_commit from pg_stat_database where datname = 'postgres'")
}

#[test]
fn exchanges_of_pgbench_are_the_transactions_of_postgres() -> Result<()> {
    let postgres = Server::postgres()?;
    let agent = Server::watched(&[&postgres])?;
    for (connect, transactions) in [(false, "5000"), (true, "250")] {
        let before = agent.settled()?;
        let counted = postgres_transactions(&postgres)?;
        let mut options = vec!["-n", "-S", "-c", "4", "-t", transactions];
        if connect {
            options.push("-C");
        }
        // Asking for encryption would be one more exchange of each connection.
        run(postgres
            .pgbench(&options)?
            .envs([("PGSSLMODE", "disable"), ("PGGSSENCMODE", "disable")]))?;
        let counted = postgres_transactions(&postgres)? - counted;
        let after = agent.settled()?;
        let opened = more(&before, &after, &postgres, OPENED);
        let exchanges = more(&before, &after, &postgres, EXCHANGES);
        // Each connection begins with one exchange, the login, for which PostgreSQL commits a transaction (InitPostgres).
        assert_within!(exchanges, counted, 0.05, "exchanges with -C: {connect}");
        if connect {
            assert!(opened >= 1000.0, "{opened} connections for 1000 transactions");
        } else {
            assert!(opened <= 10.0, "{opened} connections of 4 clients");
        }
    }
    Ok(())
}
