//! A program that leaks descriptors, and what the agent says of it: `programs/leak.c` and `leak.py`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::Agent;
use crate::assert_within;
use crate::metrics::Scrape;
use crate::pprof::{Place, Profile};
use crate::program::{Program, unique_service};

/// Descriptors that the programs leak in a second.
const RATE: f64 = 10.0;

/// A leak that was found.
pub struct Leak {
    /// `service_name` of the program.
    pub service: String,
    /// What `/api/v1/descriptors` says of it.
    pub report: Value,
    program: Program,
}

/// What `/api/v1/descriptors` says of a service.
fn told(agent: &Agent, service: &str) -> Result<Value> {
    let document: Value = serde_json::from_str(&agent.get("/api/v1/descriptors")?)?;
    let services = document["services"].as_array().context("no services")?;
    let found = services.iter().find(|one| one["service"] == service);
    Ok(found.cloned().unwrap_or_default())
}

fn findings(told: &Value) -> Vec<&str> {
    let said = told["findings"].as_array().into_iter().flatten();
    said.filter_map(Value::as_str).collect()
}

impl Leak {
    /// Lets a program leak until the agent names the code; rate and forecast are right then.
    pub fn found(agent: &Agent, what: &str, mut command: Command) -> Result<Self> {
        let service = unique_service(what);
        command.env("OTEL_SERVICE_NAME", &service);
        let (mut program, _) = Program::spawn(command, service.clone())?;
        agent.wait_for_service(&service)?;
        agent.settled()?;
        program.go()?;
        let named = |told: &Value| findings(told).iter().any(|text| text.starts_with("leaks "));
        agent.wait_for("a leak", |_| told(agent, &service).is_ok_and(|told| named(&told)))?;
        // By then all that only comes and goes has gone.
        agent.settled()?;
        let report = told(agent, &service)?;
        let growing = &report["growing"];
        let number = |name| growing[name].as_f64().with_context(|| format!("no {name}"));
        let (rate, left) = (number("per_second")?, number("limit_reached_in_seconds")?);
        let (open, limit) = (number("open")?, number("limit")?);
        assert_within!(rate, RATE, 0.1, "leaked a second");
        assert_within!(left, (limit - open) / rate, 0.05, "time until the limit");
        Ok(Self {
            service,
            report,
            program,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The sentences.
    #[must_use]
    pub fn findings(&self) -> Vec<&str> {
        findings(&self.report)
    }

    /// The code that has descriptors which stay.
    #[must_use]
    pub fn functions(&self) -> Vec<&str> {
        let openers = self.report["openers"].as_array().into_iter().flatten();
        openers.filter_map(|one| one["function"].as_str()).collect()
    }

    /// Ends the leak; what was leaked is the growth that the agent counted, and is returned with the last scrape.
    pub fn stop(&mut self, agent: &Agent) -> Result<(f64, Scrape)> {
        self.program.go()?;
        let facts = self.program.expect("stopped")?;
        let leaked = facts["leaked"].as_f64().context("no count")?;
        let scrape = agent.settled()?;
        let grown = scrape.sum("tieback_fd_growth_total", &[("service_name", &self.service)]);
        // Of the three that are borrowed, one is counted or not at a tick.
        ensure!((grown - leaked).abs() <= 3.0, "grew by {grown}, leaked {leaked}");
        Ok((leaked, scrape))
    }

    /// The profile, each stack as its places, innermost first.
    pub fn places(&self, agent: &Agent) -> Result<Vec<Vec<Place>>> {
        let path = format!("/services/-/{}/profile/fd?format=pprof", self.service);
        let stacks = Profile::of(&agent.get_bytes(&path)?)?.places("descriptors")?;
        Ok(stacks.into_iter().map(|(places, _)| places).collect())
    }

    /// The profile, a line a stack.
    pub fn stacks(&self, agent: &Agent) -> Result<String> {
        agent.get(&format!("/services/-/{}/profile/fd?format=folded", self.service))
    }
}
