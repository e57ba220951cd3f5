//! Test binaries that run as root: built as this user, run through sudo where needed, one test at a time.

use super::libtest::{Tally, run_counted};
use crate::{build, command, workspace, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::SystemTime,
};

/// Built integration tests, and the agent they test.
pub(crate) struct Binaries {
    /// The agent; tests find it in `TIEBACK_BIN`.
    pub(crate) agent: PathBuf,
    /// The tests.
    pub(crate) tests: Vec<TestBinary>,
    /// Other programs of the same package, which tests find by `env!("CARGO_BIN_EXE_...")`.
    pub(crate) programs: Vec<PathBuf>,
    /// Folder of the programs whose stacks are known; tests find it in `TIEBACK_CHAINS`.
    pub(crate) chains: PathBuf,
}

/// One test binary.
pub(crate) struct TestBinary {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// Where cargo would run it.
    pub(crate) folder: PathBuf,
}

/// The part of cargo's JSON messages that is used.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Binaries {
    /// Builds the agent as it ships, and the named integration tests of a package.
    pub(crate) fn build(package: &str, names: &[String]) -> Result<Self> {
        let agent = build::run(&build::Args::default())?;
        let mut cargo = command::cargo();
        cargo.args([
            "test",
            "--no-run",
            "--message-format=json-render-diagnostics",
            "--package",
            package,
        ]);
        cargo
            .args(names.iter().flat_map(|name| ["--test", name.as_str()]))
            .current_dir(workspace::root());
        let output = cargo
            .stderr(Stdio::inherit())
            .output()
            .context("start cargo test --no-run")?;
        if !output.status.success() {
            bail!("the tests of {package} do not build");
        }
        let mut binaries = Self {
            agent,
            tests: Vec::new(),
            programs: Vec::new(),
            chains: chains()?,
        };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let message: Message =
                serde_json::from_str(line).with_context(|| format!("cargo's message {line}"))?;
            let (Some(path), Some(target), Some(manifest)) =
                (message.executable, message.target, message.manifest_path)
            else {
                continue;
            };
            if target.kind.iter().any(|kind| kind == "test") {
                let folder = manifest.parent().unwrap_or(&manifest).to_owned();
                binaries.tests.push(TestBinary {
                    name: target.name,
                    path,
                    folder,
                });
            } else {
                binaries.programs.push(path);
            }
        }
        Ok(binaries)
    }

    /// Runs them one after the other: two tests at once would count each other's events.
    pub(crate) fn run(&self, filters: &[String]) -> Result<Tally> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut tally = Tally::default();
        for test in &self.tests {
            let env = [
                ("TIEBACK_BIN", self.agent.as_os_str()),
                ("TIEBACK_CHAINS", self.chains.as_os_str()),
                ("PATH", path.as_os_str()),
                ("RUST_BACKTRACE", OsStr::new("1")),
            ];
            let Some(mut command) = command::as_root(&test.path, env) else {
                bail!("these tests need root, and there is no sudo; type as root: cargo xtask test");
            };
            command
                .arg("--test-threads=1")
                .args(filters)
                .current_dir(&test.folder);
            tally.add(run_counted(&test.name, &mut command, &mut std::io::stdout())?);
        }
        Ok(tally)
    }
}

/// Compiles the programs whose stacks are known, where a source is newer than what was compiled.
fn chains() -> Result<PathBuf> {
    let sources = workspace::root().join("tests/programs");
    let made = Workspace::load()?.target_directory.join("chains");
    let age = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
    let done = made.join("done");
    let mut newest = SystemTime::UNIX_EPOCH;
    for source in fs::read_dir(&sources).context("read tests/programs")? {
        newest = newest.max(age(&source?.path())?);
    }
    if age(&done).is_ok_and(|when| when > newest) {
        return Ok(made);
    }
    let mut script = Command::new(sources.join("build.sh"));
    command::checked(script.arg(&made)).context("compile the programs whose stacks are known")?;
    fs::write(done, "")?;
    Ok(made)
}
