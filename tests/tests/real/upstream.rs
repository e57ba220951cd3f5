//! Clients with pools of their own: nginx before a Python service, which has a pool of psycopg2, and Go's `database/sql`; against
//! what they and PostgreSQL count.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::program::{Program, number, unique_service};
use tieback_tests::server::Server;

/// Connections of the Python service to PostgreSQL, and of wrk to nginx.
const POOL: usize = 40;
const CLIENTS: usize = 8;

const OPENED: &str = "tieback_pool_opened_total";
const EXCHANGES: &str = "tieback_pool_exchanges_total";
const ONCE: &str = "tieback_pool_closed_after_one_exchange_total";
const OPEN: &str = "tieback_pool_connections";
const PEAK: &str = "tieback_pool_peak_connections";
const SECONDS: &str = "tieback_pool_connection_seconds_total";

/// A metric of a service's connections in one direction.
fn of(scrape: &Scrape, name: &str, service: &str, direction: &str) -> f64 {
    scrape.sum(name, &[("service_name", service), ("direction", direction)])
}

fn program(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name)
}

fn source(database: &Server, name: &str) -> String {
    format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=disable gssencmode=disable application_name={name}",
        database.port
    )
}

/// Connections that PostgreSQL has of a client.
fn held(database: &Server, client: &str) -> Result<f64> {
    database.query(&format!(
        "select count(*) from pg_stat_activity where application_name = '{client}'"
    ))
}

/// Transactions that PostgreSQL counts, once a client is gone: a server process tells them when it ends, if not before.
fn transactions(database: &Server, client: &str) -> Result<f64> {
    let began = Instant::now();
    while held(database, client)? > 0.0 {
        ensure!(began.elapsed() < Duration::from_secs(30), "{client} does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    database.query("select xact_commit from pg_stat_database where datname = 'postgres'")
}

fn findings(agent: &Agent, service: &str) -> Result<Vec<String>> {
    let document: Value = serde_json::from_str(&agent.get("/api/v1/pools")?)?;
    let pools = document["pools"].as_array().context("no pools")?.iter();
    let ours = pools.filter(|pool| pool["service"] == service);
    let said = ours.flat_map(|pool| pool["findings"].as_array().into_iter().flatten());
    Ok(said.filter_map(|text| text.as_str().map(str::to_owned)).collect())
}

#[test]
fn nginx_with_keep_alive_to_a_service_with_a_pool() -> Result<()> {
    upstream(true)
}

#[test]
fn nginx_without_keep_alive_to_a_service_with_a_pool() -> Result<()> {
    upstream(false)
}

fn upstream(keep: bool) -> Result<()> {
    let (database, name) = (Server::postgres()?, unique_service("upstream"));
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-B").arg(program("upstream.py"));
    python.arg(source(&database, &name)).arg(POOL.to_string());
    python.env("OTEL_SERVICE_NAME", &name);
    let (mut service, facts) = Program::spawn(python, name)?;
    let port = u16::try_from(facts["port"].as_u64().context("no port")?)?;
    let nginx = Server::nginx_before(port, keep)?;
    let agent = Server::watched(&[&database, &nginx])?;
    agent.wait_for_service(&service.service)?;
    let client = service.service.clone();

    let committed = transactions(&database, &client)?;
    service.go()?;
    service.expect("opened")?;
    service.go()?;
    let before_facts = service.expect("counted")?;
    assert_eq!(number(&before_facts, "requests")?, 0.0);
    let before = agent.settled()?;
    assert_eq!(held(&database, &client)?, POOL as f64, "the pool");
    let pool = [
        ("service_name", client.as_str()),
        ("peer", database.service.as_str()),
    ];
    assert_eq!(before.sum(OPEN, &pool), POOL as f64);
    assert_eq!(of(&before, OPENED, &client, "out"), POOL as f64);

    let clients = CLIENTS.to_string();
    let wrk = Command::new("wrk")
        .args(["-t", "1", "-c", &clients, "-d", "6"])
        .arg(format!("http://127.0.0.1:{}/", nginx.port))
        .stdin(Stdio::null())
        .output()
        .context("start wrk: cargo xtask setup --tests")?;
    ensure!(wrk.status.success(), "wrk failed");
    let after = agent.settled()?;
    service.go()?;
    let facts = service.expect("counted")?;
    let (requests, accepted) = (number(&facts, "requests")?, number(&facts, "accepted")?);
    ensure!(requests > 500.0, "{requests} requests in six seconds");
    let more = |name: &str, service: &str, direction: &str| {
        of(&after, name, service, direction) - of(&before, name, service, direction)
    };

    // nginx and the service: both ends, by what the service counts.
    for (end, direction) in [(&nginx.service, "out"), (&client, "in")] {
        let (opened, exchanges) = (more(OPENED, end, direction), more(EXCHANGES, end, direction));
        assert_eq!(opened, accepted, "connections, {direction}");
        assert_within!(exchanges, requests, 0.05, "exchanges, {direction}");
        assert_within!(
            exchanges / opened,
            requests / accepted,
            0.05,
            "exchanges per connection, {direction}"
        );
        let once = more(ONCE, end, direction);
        if keep {
            ensure!(accepted <= 2.0 * CLIENTS as f64, "{accepted} connections");
            assert!(once <= CLIENTS as f64, "{once} connections for one request");
        } else {
            assert_within!(once, accepted, 0.05, "connections for one request, {direction}");
        }
    }
    let said = findings(&agent, &nginx.service)?;
    let per_request = format!("opens a connection per request to {client}: ");
    assert_eq!(
        said.iter().any(|text| text.starts_with(&per_request)),
        !keep,
        "{said:?}"
    );

    // The service and PostgreSQL.
    assert_eq!(after.sum(OPEN, &pool), POOL as f64);
    assert_eq!(
        after.sum(PEAK, &[pool[0], pool[1], ("state", "open")]),
        POOL as f64
    );
    let needed = after.sum(PEAK, &[pool[0], pool[1], ("state", "busy")]);
    assert!(
        needed >= 1.0 && needed <= CLIENTS as f64,
        "{needed} connections were needed by {CLIENTS} clients"
    );
    assert_eq!(more(OPENED, &client, "out"), 0.0);
    let queries = number(&facts, "queries")?;
    assert_within!(more(EXCHANGES, &client, "out"), queries, 0.05, "queries");
    let said = findings(&agent, &client)?;
    let too_large = format!(
        "holds {POOL} connections to {}, never used more than ",
        database.service
    );
    assert!(said.iter().any(|text| text.starts_with(&too_large)), "{said:?}");

    drop(service);
    let committed = transactions(&database, &client)? - committed;
    // Each connection begins with one exchange and one transaction, the login.
    assert_within!(
        more(EXCHANGES, &client, "out") + POOL as f64,
        committed,
        0.05,
        "exchanges against pg_stat_database"
    );
    Ok(())
}

#[test]
fn the_pool_of_a_go_client_is_what_its_own_statistics_say() -> Result<()> {
    let (database, name) = (Server::postgres()?, unique_service("go-pool"));
    let folder = tempfile::tempdir()?;
    let built = folder.path().join("pool");
    // Debian's packages of Go's libraries are a folder of sources: no module, no network.
    let output = Command::new("go")
        .args(["build", "-o"])
        .arg(&built)
        .arg(program("pool.go"))
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", folder.path().join("cache"))
        .output()
        .context("start go: cargo xtask setup --tests")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let agent = Server::watched(&[&database])?;
    let mut client = Command::new(&built);
    let source = source(&database, &name).replace(" gssencmode=disable", "");
    client.arg(source).env("OTEL_SERVICE_NAME", &name);
    let (mut client, _) = Program::spawn(client, name)?;
    agent.wait_for_service(&client.service)?;
    let service = client.service.clone();
    let pool = [
        ("service_name", service.as_str()),
        ("peer", database.service.as_str()),
    ];
    let state =
        |scrape: &Scrape, name: &str, state: &str| scrape.sum(name, &[pool[0], pool[1], ("state", state)]);
    let committed = transactions(&database, &service)?;

    client.go()?;
    let facts = client.expect("burst")?;
    let before = agent.settled()?;
    let open = number(&facts, "open")?;
    assert_eq!(before.sum(OPEN, &pool), open, "open after the burst");
    assert_eq!(state(&before, PEAK, "open"), open, "most at once");
    assert_eq!(state(&before, PEAK, "busy"), open, "all slept in queries at once");
    assert_eq!(held(&database, &service)?, open, "what PostgreSQL says");
    client.go()?;
    let facts = client.expect("used")?;
    let after = agent.settled()?;
    assert_eq!(number(&facts, "open")?, open);
    assert_eq!(after.sum(OPEN, &pool), open, "open after use");
    let share = |seconds: f64| seconds / open;
    let length = number(&facts, "seconds")?;
    let busy = state(&after, SECONDS, "busy") - state(&before, SECONDS, "busy");
    for (what, theirs) in [
        ("in use by DB.Stats", number(&facts, "in_use_seconds")?),
        ("by the time of its queries", number(&facts, "query_seconds")?),
    ] {
        let (ours, theirs) = (share(busy / length), share(theirs / length));
        eprintln!("busy {ours:.3} of the time, {what} {theirs:.3}");
        assert!(
            (ours - theirs).abs() < 0.05,
            "busy {ours:.3} of the time, {what} {theirs:.3}"
        );
    }
    client.go()?;
    let open = number(&client.expect("shrunk")?, "open")?;
    let shrunk = agent.settled()?;
    assert_eq!(shrunk.sum(OPEN, &pool), open, "open after it let some go");
    client.go()?;
    client.expect("closed")?;
    let closed = agent.settled()?;
    assert_eq!(closed.sum(OPEN, &pool), 0.0);
    let queries = number(&facts, "queries")?;
    let exchanges = closed.sum(EXCHANGES, &pool);
    let committed = transactions(&database, &service)? - committed;
    assert_within!(exchanges, queries, 0.05, "exchanges against the client's count");
    assert_within!(exchanges, committed, 0.05, "exchanges against pg_stat_database");
    Ok(())
}
