//! Starts a workload as a service of its own and talks with it.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A service name that no other test uses.
#[must_use]
pub fn unique_service(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "test-{what}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A file that cargo built: beside the test's own executable, or where the variable says.
pub fn built(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let test = std::env::current_exe().context("the test's own path")?;
    let path = test
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    path.with_context(|| format!("no {name} beside {}: build it or set {variable}", test.display()))
}

/// A running workload.
pub struct Program {
    /// Its `service_name`.
    pub service: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// A number of what a program says of itself.
pub fn number(facts: &Value, name: &str) -> Result<f64> {
    let number = facts[name].as_f64();
    number.with_context(|| format!("no {name} in {facts}"))
}

impl Program {
    /// Starts `tieback-workload` with `args` and waits until it is ready.
    pub fn start(args: &[&str]) -> Result<(Self, Value)> {
        Self::start_by(Command::new(built("TIEBACK_WORKLOAD", "tieback-workload")?), args)
    }

    /// The same in the network namespace of another workload, or in a new one with its loopback up.
    pub fn start_in_netns(of: Option<&Self>, args: &[&str]) -> Result<(Self, Value)> {
        let workload = built("TIEBACK_WORKLOAD", "tieback-workload")?;
        let mut command = match of {
            Some(other) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", other.pid()));
                command
            }
            None => {
                let mut command = Command::new("unshare");
                command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"]);
                command
            }
        };
        command.arg(workload);
        Self::start_by(command, args)
    }

    fn start_by(mut command: Command, args: &[&str]) -> Result<(Self, Value)> {
        let service = unique_service(args.first().copied().unwrap_or("workload"));
        command.args(args).env("OTEL_SERVICE_NAME", &service);
        Self::spawn(command, service)
    }

    /// Starts a workload by a command that passes its standard input and output on: in a container, for example.
    pub fn spawn(mut command: Command, service: String) -> Result<(Self, Value)> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the workload")?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut program = Self {
            service,
            child,
            input,
            output,
        };
        let facts = program.expect("ready")?;
        Ok((program, facts))
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets the workload go on to its next step.
    pub fn go(&mut self) -> Result<()> {
        self.input.write_all(b"\n").context("releasing the workload")
    }

    /// Tells the workload which step to take.
    pub fn order(&mut self, step: &str) -> Result<()> {
        writeln!(self.input, "{step}").context("ordering a step of the workload")
    }

    /// Reads the workload's next line, which must be the step `name`, and returns its facts.
    pub fn expect(&mut self, name: &str) -> Result<Value> {
        let mut line = String::new();
        ensure!(
            self.output
                .read_line(&mut line)
                .context("reading from the workload")?
                > 0,
            "the workload ended"
        );
        let mut value: Value = serde_json::from_str(&line).with_context(|| format!("line {line:?}"))?;
        if value["step"] != name {
            bail!("expected the step {name}, got {line}");
        }
        Ok(if name == "truth" {
            value
        } else {
            value["facts"].take()
        })
    }

    /// Waits for the workload's end, however it comes.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().context("waiting for the workload")
    }

    /// Releases a workload of one step, reads its truth and waits for its end.
    pub fn finish(&mut self) -> Result<Value> {
        self.go()?;
        let truth = self.expect("truth")?;
        let status = self.child.wait().context("waiting for the workload")?;
        ensure!(status.success(), "the workload failed: {status}");
        Ok(truth)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only where the workload has already ended, which is what is wanted.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
