//! PostgreSQL, Redis and nginx under load, together: each a service of its own, with its own numbers.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tieback_tests::agent::Agent;
use tieback_tests::assert_within;
use tieback_tests::metrics::Scrape;
use tieback_tests::server::{Guard, Server};

const SECONDS: &str = "30";

fn sum(scrape: &Scrape, name: &str, server: &Server, labels: &[(&str, &str)]) -> f64 {
    let mut all = vec![("service_name", server.service.as_str())];
    all.extend_from_slice(labels);
    scrape.sum(name, &all)
}

/// Seconds on the CPU of a process by the scheduler's own account of its threads.
fn scheduled(pid: u32) -> Result<f64> {
    let mut ns = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        ns += text
            .split_whitespace()
            .next()
            .context("schedstat")?
            .parse::<f64>()?;
    }
    Ok(ns / 1e9)
}

#[test]
fn three_servers_under_load_are_three_services() -> Result<()> {
    let (postgres, redis, nginx) = (Server::postgres()?, Server::redis()?, Server::nginx()?);
    let agent = Server::watched(&[&postgres, &redis, &nginx])?;
    let accepted = (redis.redis_accepted()?, nginx.nginx_accepted()?);
    let before = agent.settled()?;
    let ran = scheduled(redis.pid())?;

    let mut pgbench = Guard(postgres.pgbench(&["-n", "-c", "4", "-T", SECONDS])?.spawn()?);
    let port = redis.port.to_string();
    let _redis_load = Guard::start(
        Command::new("redis-benchmark").args(["-p", &port, "-q", "-l", "-c", "20", "-t", "set,get"]),
    )?;
    let url = format!("http://127.0.0.1:{}/", nginx.port);
    let _nginx_load = Guard::start(Command::new("wrk").args(["-t1", "-c20", "-d", SECONDS, &url]))?;
    ensure!(pgbench.0.wait()?.success(), "pgbench failed");
    drop((_redis_load, _nginx_load));

    let more_accepted = (
        redis.redis_accepted()? - accepted.0,
        nginx.nginx_accepted()? - accepted.1,
    );
    let ran = scheduled(redis.pid())? - ran;
    let after = agent.settled()?;
    let more = |name: &str, server: &Server, labels: &[(&str, &str)]| {
        sum(&after, name, server, labels) - sum(&before, name, server, labels)
    };
    let inbound = [("direction", "in")];
    let opened = "tieback_connections_opened_total";
    assert_eq!(
        more(opened, &redis, &inbound),
        more_accepted.0,
        "what Redis counts"
    );
    assert_eq!(
        more(opened, &nginx, &inbound),
        more_accepted.1,
        "what nginx counts"
    );
    assert_eq!(
        more(opened, &postgres, &inbound),
        5.0,
        "pgbench's question and its four clients"
    );
    let cpu = after.cpu(&redis.service) - before.cpu(&redis.service);
    assert_within!(cpu, ran, 0.03, "CPU of Redis by the scheduler");

    let waited =
        |server: &Server, cause: &str| more("tieback_wait_seconds_total", server, &[("cause", cause)]);
    assert!(
        waited(&postgres, "disk") > 1.0,
        "WAL is synced: {}",
        waited(&postgres, "disk")
    );
    assert!(
        waited(&nginx, "disk") < 0.5,
        "nginx reads no file: {}",
        waited(&nginx, "disk")
    );
    assert!(
        more(
            "tieback_disk_io_bytes_total",
            &postgres,
            &[("operation", "write")]
        ) > 1e6
    );
    assert_eq!(
        more("tieback_disk_io_bytes_total", &redis, &[("operation", "write")]),
        0.0
    );
    for probe in ["wait", "conn", "process", "ring"] {
        assert_eq!(after.lost(probe), 0.0, "lost by {probe}");
    }
    Ok(())
}

#[test]
fn resident_memory_and_descriptors_are_what_procfs_says() -> Result<()> {
    let redis = Server::redis()?;
    let agent = Server::watched(&[&redis])?;
    let scrape = agent.settled()?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", redis.pid()))?;
    let kib = |key: &str| -> Result<f64> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let resident = |kind| {
        sum(
            &scrape,
            "tieback_memory_resident_bytes",
            &redis,
            &[("kind", kind)],
        )
    };
    // The kernel's counters have parts per CPU, up to 32 pages each, that are not yet in the sum.
    assert!(
        (resident("anon") - 1024.0 * kib("RssAnon:")?).abs() < 512e3,
        "anon {}",
        resident("anon")
    );
    assert!(
        (resident("file") - 1024.0 * kib("RssFile:")?).abs() < 512e3,
        "file {}",
        resident("file")
    );
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", redis.pid()))?.count();
    assert_eq!(sum(&scrape, "tieback_open_fds", &redis, &[]), descriptors as f64);
    Ok(())
}

#[test]
fn prometheus_scrapes_without_an_error() -> Result<()> {
    use tieback_tests::program::Program;
    use tieback_tests::server::{ask, free_port, wait_for_port};

    let agent = Agent::start(&[])?;
    let (mut spinner, _) = Program::start(&["spin", "--cpu", "1", "--seconds", "20"])?;
    agent.wait_for_service(&spinner.service)?;
    let files = tempfile::tempdir()?;
    let (config, port) = (files.path().join("prometheus.yml"), free_port()?);
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: tieback\n  static_configs:\n  - targets: \
             ['{}']\n",
            agent.address()
        ),
    )?;
    let _prometheus = Guard::start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                files.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}")),
    )?;
    wait_for_port(port)?;
    spinner.go()?;
    let value = |query: &str| -> Result<Option<f64>> {
        let answer = ask(
            port,
            &format!("GET /api/v1/query?query={query} HTTP/1.0\r\n\r\n"),
            "",
        )?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        let json: serde_json::Value = serde_json::from_str(body).context("the answer of Prometheus")?;
        Ok(json["data"]["result"][0]["value"][1]
            .as_str()
            .and_then(|text| text.parse().ok()))
    };
    let ran = spinner.expect("truth")?["cpu_seconds"]
        .as_f64()
        .context("no cpu_seconds")?;
    ensure!(
        value("min_over_time(up%5B18s%5D)")? == Some(1.0),
        "a scrape failed"
    );
    let rate = format!(
        "sum(max_over_time(tieback_cpu_seconds_total%7Bservice_name=%22{}%22,mode!=%22steal%22%7D%5B25s%5D))",
        spinner.service
    );
    assert_within!(
        value(&rate)?.context("Prometheus has no CPU time")?,
        ran,
        0.1,
        "CPU by PromQL"
    );
    Ok(())
}

#[test]
fn go_tool_pprof_names_the_function_that_spins() -> Result<()> {
    use tieback_tests::program::Program;

    let agent = Agent::start(&[])?;
    let (mut spinner, _) = Program::start(&["spin", "--seconds", "8"])?;
    agent.wait_for_service(&spinner.service)?;
    let ran = spinner.finish()?["cpu_seconds"]
        .as_f64()
        .context("no cpu_seconds")?;
    agent.settled()?;
    let path = format!("/services/-/{}/profile/cpu", spinner.service);
    let output = Command::new("go")
        .args(["tool", "pprof", "-top", "-cum", "-nodecount=200"])
        .arg(format!("http://{}{path}?format=pprof&since=5m", agent.address()))
        .stdin(Stdio::null())
        .output()
        .context("start go tool pprof")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let total = text
        .split("Total samples = ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let total = total.with_context(|| format!("no total in {text}"))?;
    let seconds: f64 = match total.strip_suffix("ms") {
        Some(ms) => ms.parse::<f64>()? / 1000.0,
        None => total.trim_end_matches('s').parse()?,
    };
    assert_within!(seconds, ran, 0.05, "CPU of the profile");
    assert!(text.contains("burn"), "{text}");
    let folded = agent.get(&format!("{path}?format=folded&since=5m"))?;
    assert!(folded.lines().any(|line| line.contains("burn")), "folded stacks");
    assert!(
        agent
            .get(&format!("{path}?format=svg&since=5m"))?
            .contains("burn"),
        "flame graph"
    );
    for kind in ["wait", "syscall", "memory", "conn"] {
        agent.get(&path.replace("cpu", kind))?;
    }
    Ok(())
}
