//! Programs whose allocations are all traced do what they do else, and say the same.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::pprof::Profile;
use tieback_tests::program::built;
use tieback_tests::server::Server;

/// An agent that traces all that a server allocates, once it does.
fn traced(server: &Server) -> Result<Agent> {
    let wanted = format!("{}=full", server.service);
    let agent = Server::watched_with(&[server], &["--alloc", &wanted, "--alloc-slowdown", "10000"])?;
    agent.wait_for("allocations traced", |_| {
        let text = agent.get("/api/v1/allocations").unwrap_or_default();
        let document: Value = serde_json::from_str(&text).unwrap_or_default();
        document["services"].as_array().is_some_and(|services| {
            let of = |found: &Value| {
                found["service"] == server.service.as_str() && found["allocated_from"][0] == "probes"
            };
            services.iter().any(of)
        })
    })?;
    Ok(agent)
}

/// Allocations that were counted; the tracing was real.
fn counted(agent: &Agent, server: &Server) -> Result<f64> {
    let scrape = agent.settled()?;
    Ok(scrape.sum(
        "tieback_alloc_objects_total",
        &[("service_name", &server.service)],
    ))
}

/// What a command that succeeds says to an input.
pub(super) fn answered(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    let mut to = child.stdin.take().context("no input")?;
    let text = input.to_owned();
    let writer = std::thread::spawn(move || to.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().ok().context("the writer panicked")??;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Commands of all kinds of values: ever larger ones, ones that change their encoding, ones that go.
fn redis_commands() -> String {
    let mut text = String::new();
    for i in 0..20_000_u32 {
        let (small, key) = (i % 97, i % 1013);
        let value = "v".repeat((i % 300) as usize);
        let line = match i % 10 {
            0 => format!("SET s:{key} {small}{value}"),
            1 => format!("APPEND s:{key} {value}{i}"),
            2 => format!("RPUSH l:{small} {i} {value}{i}"),
            3 => format!("LTRIM l:{small} -64 -1"),
            4 => format!("HSET h:{small} f{key} {value}{i}"),
            5 => format!("ZADD z:{small} {i} m{key}"),
            6 => format!("SADD t:{small} {i} x{key}"),
            7 => format!("DEL s:{}", key / 3),
            8 => format!("EVAL \"return redis.call('INCRBY', KEYS[1], ARGV[1])\" 1 n:{small} {i}"),
            _ => format!("XADD x:{small} 1-{i} f {value}"),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

fn redis(server: &Server) -> Result<(String, String)> {
    let cli = || {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &server.port.to_string()]);
        command
    };
    let said = answered(&mut cli(), &redis_commands())?;
    let digest = answered(cli().args(["DEBUG", "DIGEST"]), "")?;
    ensure!(digest.trim().len() == 40, "no digest: {digest}");
    Ok((said, digest))
}

#[test]
fn redis_answers_the_same_while_it_is_traced() -> Result<()> {
    // What DEBUG DIGEST needs.
    let options = ["--enable-debug-command", "local"];
    let plain = redis(&Server::redis_with(&options)?)?;
    let server = Server::redis_with(&options)?;
    let agent = traced(&server)?;
    let under = redis(&server)?;
    ensure!(
        plain == under,
        "other answers: digests {} and {}",
        plain.1,
        under.1
    );
    let benchmark = Command::new("redis-benchmark")
        .args([
            "-p",
            &server.port.to_string(),
            "-q",
            "-n",
            "2000",
            "-c",
            "20",
            "-P",
            "4",
        ])
        .args(["-t", "set,get,lpush,lrange_100,hset,zadd,spop,mset"])
        .stdout(Stdio::null())
        .status()?;
    ensure!(benchmark.success(), "redis-benchmark failed");
    let allocations = counted(&agent, &server)?;
    ensure!(
        allocations > 50_000.0,
        "only {allocations} allocations were traced"
    );
    ensure!(
        tieback_tests::server::ask(server.port, "PING\r\n", "PONG")?.contains("PONG"),
        "it has crashed"
    );
    Ok(())
}

/// Everything in it is the same each time: no clock, no chance, and an order where one matters.
const SQL: &str = "
create table item (id int primary key, name text, tags jsonb, price numeric(12, 4));
insert into item select i, repeat(md5(i::text), 1 + i % 40), jsonb_build_object('k', i % 17, 'l', array_agg(j)), i * 1.0001
  from generate_series(1, 4000) i, generate_series(1, 5) j group by i;
create index on item (name);
create index on item using gin (tags);
update item set name = name || 'x', price = price * 2 where id % 7 = 0;
delete from item where id % 11 = 0;
select count(*), sum(price), md5(string_agg(name, ',' order by id)) from item;
select tags->>'k' as k, count(*), avg(price), max(length(name)) from item group by 1 order by 1;
select id, row_number() over (partition by id % 5 order by price desc) from item order by 1 limit 50;
with recursive t(n, s) as (select 1, '1' union all select n + 1, s || n from t where n < 300) select n, md5(s) from t where n % 30 = 0 order by n;
select regexp_replace(name, '([0-9]+)', '<\\1>', 'g') from item order by id limit 20;
select a.id, b.id from item a join item b on a.id = b.id * 3 and a.tags @> '{\"k\": 3}' order by 1 limit 40;
create function twice(x int) returns int language plpgsql as $$ begin if x < 0 then raise exception 'negative %', x; end if; return x * 2; end $$;
select sum(twice(id)) from item;
select twice(-1);
begin; delete from item; rollback; select count(*) from item;
select xmlelement(name a, string_agg(id::text, ' ' order by id)) from item where id < 200;
explain (costs off) select * from item where id = 7;
vacuum full item; reindex table item;
select md5(string_agg(item::text, '|' order by id)) from item;
";

/// What it says; its session does nothing until it is `seen`.
fn postgres(server: &Server, files: &Path, seen: impl FnOnce() -> Result<()>) -> Result<String> {
    let port = server.port.to_string();
    let status = server
        .pgbench(&["-n", "-c", "1", "-t", "400", "--random-seed=7"])?
        .status()?;
    ensure!(status.success(), "pgbench failed");
    let sums = "select sum(abalance), md5(string_agg(aid || ':' || abalance, ',' order by aid)) from pgbench_accounts where abalance <> 0;
        select md5(string_agg(tid || ':' || tbalance, ',' order by tid)) from pgbench_tellers; select count(*), sum(delta) from pgbench_history;";
    // It has connected by the time that it reads this.
    let (connected, go) = (files.join("connected"), files.join("go"));
    let wait = format!(
        "\\! touch {}; until rm {} 2>/dev/null; do sleep 0.05; done\n",
        connected.display(),
        go.display()
    );
    // Errors are part of the answers.
    let mut psql = Command::new("sh");
    psql.args(["-c", "exec \"$@\" 2>&1", "sh", "psql"]).args([
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "postgres",
        "-X",
        "-a",
    ]);
    std::thread::scope(|scope| {
        let answers = scope.spawn(move || answered(&mut psql, &format!("{wait}{SQL}{sums}")));
        while !connected.exists() && !answers.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let seen = seen();
        // Also where that failed: it is waited for.
        std::fs::write(&go, "")?;
        let answers = answers.join().ok().context("psql's thread panicked")??;
        std::fs::remove_file(&connected)?;
        seen.map(|()| answers)
    })
}

#[test]
fn postgres_answers_the_same_while_it_is_traced() -> Result<()> {
    let files = tempfile::tempdir()?;
    let plain = postgres(&Server::postgres()?, files.path(), || Ok(()))?;
    ensure!(
        plain.contains("negative -1") && plain.lines().count() > 200,
        "{plain}"
    );
    let server = Server::postgres()?;
    let agent = traced(&server)?;
    // A process that was forked is watched from the next tick on.
    let under = postgres(&server, files.path(), || agent.settled().map(|_| ()))?;
    if let Some((a, b)) = plain.lines().zip(under.lines()).find(|(a, b)| a != b) {
        anyhow::bail!("other answers: {a:?} and {b:?}");
    }
    ensure!(
        plain.lines().count() == under.lines().count(),
        "answers are missing"
    );
    let allocations = counted(&agent, &server)?;
    ensure!(
        allocations > 15_000.0,
        "only {allocations} allocations were traced"
    );
    Ok(())
}

/// CPython's own tests of what allocates most; what they say but for the time.
const PYTHON: &str = "
import sys, unittest
names = ['test_list', 'test_dict', 'test_json', 'test_struct']
for name in names:
    suite = unittest.defaultTestLoader.loadTestsFromName('test.' + name)
    result = unittest.TestResult()
    suite.run(result)
    failed = sorted(str(test) for test, _ in result.failures + result.errors)
    skipped = sorted(str(test) for test, _ in result.skipped)
    print(name, result.testsRun, failed, skipped, flush=True)
";

fn python(command: &mut Command, script: &Path) -> Result<String> {
    // Hashes decide the order of sets. What is larger than 512 bytes, and new arenas for all else, is the C library's.
    command.arg("python3").arg(script).env("PYTHONHASHSEED", "7");
    answered(command, "")
}

#[test]
fn python_passes_its_own_tests_while_it_is_traced() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (script, file) = (
        directory.path().join("suite.py"),
        directory.path().join("suite.pb.gz"),
    );
    std::fs::write(&script, PYTHON)?;
    let plain = python(&mut Command::new("env"), &script)?;
    ensure!(
        plain.lines().count() == 4,
        "cargo xtask setup --tests installs its tests: {plain}"
    );
    let mut record = Command::new(built("TIEBACK_BIN", "tieback")?);
    record
        .args(["record", "--alloc", "-o"])
        .arg(&file)
        .arg("--")
        .env("TIEBACK_CPU_LIMIT", "100%");
    let under = python(&mut record, &script)?;
    assert_eq!(plain, under);
    let allocations = Profile::read(&file)?.sum("alloc_objects", "")?;
    ensure!(
        allocations > 10_000.0,
        "only {allocations} allocations were traced"
    );
    Ok(())
}
