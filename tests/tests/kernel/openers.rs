//! Which code opens connections to whom.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tieback_tests::agent::Agent;
use tieback_tests::pprof::Profile;
use tieback_tests::program::{Program, number};

/// The client's pool of connections to a service.
fn pool(agent: &Agent, client: &Program, server: &Program) -> Result<Value> {
    let document: Value = serde_json::from_str(&agent.get("/api/v1/pools")?)?;
    let pools = document["pools"].as_array().context("no pools")?;
    let wanted = |pool: &&Value| {
        pool["service"] == *client.service && pool["direction"] == "out" && pool["peer"] == *server.service
    };
    pools.iter().find(wanted).cloned().context("no pool")
}

/// Short name of the function, line, number and share of each.
fn opened_by(pool: &Value) -> Result<Vec<(String, u64, u64, f64)>> {
    let code = pool["opened_by"].as_array().context("no code")?.iter();
    code.map(|code| {
        let function = code["function"].as_str().context("no function")?;
        let file = code["file"].as_str().context("no file")?;
        ensure!(file.ends_with("openers.rs"), "{code}");
        Ok((
            function.rsplit("::").next().unwrap_or(function).to_owned(),
            code["line"].as_u64().context("no line")?,
            code["opened"].as_u64().context("no number")?,
            code["share"].as_f64().context("no share")?,
        ))
    })
    .collect()
}

/// Servers, and what the agent says of a client that has opened connections to both and holds them.
struct Held {
    agent: Agent,
    servers: [Program; 2],
    ports: [String; 2],
}

impl Held {
    fn start() -> Result<Self> {
        let agent = Agent::start(&[])?;
        let (first, facts) = Program::start(&["answer"])?;
        let (second, more) = Program::start(&["answer"])?;
        let port = |facts: &Value| facts["port"].as_u64().context("no port");
        let ports = [port(&facts)?, port(&more)?].map(|port| port.to_string());
        for program in [&first, &second] {
            agent.wait_for_service(&program.service)?;
        }
        Ok(Self {
            agent,
            servers: [first, second],
            ports,
        })
    }

    /// A client, and the line at which it opens some of its connections.
    fn client(&self) -> Result<(Program, f64)> {
        let (mut client, _) = Program::start(&["openers", &self.ports[0], &self.ports[1]])?;
        self.agent.wait_for_service(&client.service)?;
        // Once the tables are there by which its stacks are walked.
        let service = client.service.clone();
        let labels = [("service_name", service.as_str())];
        let name = "tieback_code_connections_opened_total";
        client.go()?;
        client.expect("begun")?;
        while self.agent.settled()?.code(name, &labels, "opens_own") == 0.0 {
            client.go()?;
            client.expect("begun")?;
        }
        client.order("hold")?;
        let line = number(&client.expect("held")?, "line")?;
        self.agent.settled()?;
        Ok((client, line))
    }

    fn pools(&self, client: &Program) -> Result<[Value; 2]> {
        let [first, second] = &self.servers;
        Ok([
            pool(&self.agent, client, first)?,
            pool(&self.agent, client, second)?,
        ])
    }
}

#[test]
fn code_that_opens_connections_is_told_by_their_peer() -> Result<()> {
    let held = Held::start()?;
    // Where a window ended in between, some were counted in another one than their samples came in, and samples are scaled to
    // what was counted: another client.
    for _ in 0..5 {
        let (mut client, line) = held.client()?;
        let pools = held.pools(&client)?;
        let [here, there] = [opened_by(&pools[0])?, opened_by(&pools[1])?];
        let sum = |code: &[(String, u64, u64, f64)]| code.iter().map(|(_, _, opened, _)| opened).sum::<u64>();
        if [sum(&here), sum(&there)] != [40, 70] {
            eprintln!("{here:?}, {there:?}");
            continue;
        }
        let told = |code: &[(String, u64, u64, f64)]| -> Vec<(String, u64, f64)> {
            let code = code.iter().cloned();
            code.map(|(name, _, opened, share)| (name, opened, share))
                .collect()
        };
        let of = |name: &str, opened, share| (name.to_owned(), opened, share);
        assert_eq!(
            told(&here),
            [of("opens_here", 30, 0.75), of("opens_anywhere", 10, 0.25)]
        );
        assert_eq!(
            told(&there),
            [
                of("opens_there", 50, 50.0 / 70.0),
                of("opens_anywhere", 20, 20.0 / 70.0)
            ]
        );
        assert_eq!(here[0].1 as f64, line);
        let address = format!("127.0.0.1:{}", held.ports[0]);
        assert_eq!(pools[0]["addresses"], serde_json::json!([address]));
        in_pprof(&held, &client)?;
        return in_findings(&held, &mut client);
    }
    bail!("no window had all of them")
}

/// The label `peer` tells them apart.
fn in_pprof(held: &Held, client: &Program) -> Result<()> {
    let path = format!("/services/-/{}/profile/conn?format=pprof", client.service);
    let profile = Profile::of(&held.agent.get_bytes(&path)?)?;
    let functions = ["opens_here", "opens_there", "opens_anywhere"];
    for (port, expected) in held.ports.iter().zip([[30.0, 0.0, 10.0], [0.0, 50.0, 20.0]]) {
        let to = profile.clone().labelled("peer", &format!("127.0.0.1:{port}"));
        for (function, expected) in functions.iter().zip(expected) {
            let full = format!("tieback_tests::workloads::openers::{function}");
            assert_eq!(to.sum("connections", &full)?, expected, "{function} to {port}");
        }
    }
    Ok(())
}

/// Connections for one exchange each, to both, from code of its own: each finding names the right one.
fn in_findings(held: &Held, client: &mut Program) -> Result<()> {
    client.go()?;
    client.expect("asked")?;
    held.agent.settled()?;
    for (server, function) in held.servers.iter().zip(["asks_here", "asks_there"]) {
        let pool = pool(&held.agent, client, server)?;
        let said = pool["findings"].as_array().context("no findings")?.iter();
        let said: Vec<&str> = said.filter_map(Value::as_str).collect();
        let begin = format!("opens a connection per request to {}: ", server.service);
        let code = format!("::{function}` (openers.rs:");
        assert!(
            said.iter()
                .any(|text| text.starts_with(&begin) && text.contains(&code)),
            "{said:?}"
        );
    }
    Ok(())
}
