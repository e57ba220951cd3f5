//! Programs in interpreters and with compilers of their own, under load: `programs/load.py`, `load.js` and `Load.java`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::program::unique_service;
use crate::server::Guard;

/// A running one. It computes, makes system calls and waits until it is dropped.
pub struct Runtime {
    /// Its `service_name`.
    pub service: String,
    process: Guard,
    /// Its working directory, for what it writes.
    _files: tempfile::TempDir,
}

impl Runtime {
    /// CPython of one executable; the interpreter that a distribution ships has no symbols, those that users build have.
    pub fn python(exe: &Path) -> Result<Self> {
        Self::start("python", Command::new(exe).arg("-B").arg(load("load.py")))
    }

    /// CPython of each version whose frames are known: Debian's 3.11, and the newest 3.12 and 3.13 that pyenv built, if it did.
    pub fn pythons() -> Result<Vec<PathBuf>> {
        let debian = PathBuf::from("/usr/bin/python3");
        ensure!(
            debian.exists(),
            "no {}: cargo xtask setup --tests",
            debian.display()
        );
        let home = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")));
        let versions = home.and_then(|home| std::fs::read_dir(home.join("versions")).ok());
        let mut built: BTreeMap<u32, (u32, PathBuf)> = BTreeMap::new();
        for entry in versions.into_iter().flatten() {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let version: Vec<u32> = name.split('.').filter_map(|part| part.parse().ok()).collect();
            let exe = path.join("bin/python3");
            if let [3, minor @ (12 | 13), patch] = version[..]
                && exe.exists()
            {
                let newest = built.entry(minor).or_default();
                *newest = (patch, exe).max(std::mem::take(newest));
            }
        }
        Ok(std::iter::once(debian)
            .chain(built.into_values().map(|(_, exe)| exe))
            .collect())
    }

    /// Node with a perf map, its compiler forbidden to merge functions: the chain of three is known.
    pub fn node() -> Result<Self> {
        let options = ["--perf-basic-prof", "--no-turbo-inlining"];
        Self::start("node", Command::new("node").args(options).arg(load("load.js")))
    }

    /// OpenJDK, with frame pointers or as it is by default. One function is interpreted for ever, and of three the chain is known.
    pub fn java(frame_pointers: bool) -> Result<Self> {
        let mut command = Command::new("java");
        if frame_pointers {
            command.arg("-XX:+PreserveFramePointer");
        }
        command
            .args(["-Xmx64m", "-XX:CompileCommand=quiet"])
            // All is compiled for good before the map is written: what moves later has no name.
            .arg("-XX:CompileThresholdScaling=0.1")
            .arg("-XX:CompileCommand=exclude,Load.interpreted")
            .arg("-XX:CompileCommand=dontinline,Load.*Compute")
            .arg(load("Load.java"));
        Self::start("java", &mut command)
    }

    fn start(what: &str, command: &mut Command) -> Result<Self> {
        let (service, files) = (unique_service(what), tempfile::tempdir()?);
        command
            .env("OTEL_SERVICE_NAME", &service)
            .current_dir(files.path());
        Ok(Self {
            service,
            process: Guard::start(command)?,
            _files: files,
        })
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// [`PerfMap::write`].
    pub fn write_perf_map(&self) -> Result<PerfMap> {
        PerfMap::write(self.pid())
    }
}

/// A perf map; removed when dropped.
pub struct PerfMap(PathBuf);

impl PerfMap {
    /// That of a process, which writes it itself.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self(format!("/tmp/perf-{pid}.map").into())
    }

    /// Lets a Java virtual machine write the names of its generated code to `/tmp/perf-PID.map`, where tools look for them.
    pub fn write(pid: u32) -> Result<Self> {
        let map = Self::of(pid);
        let output = Command::new("jcmd")
            .args([&pid.to_string(), "Compiler.perfmap"])
            .output();
        let output = output.context("start jcmd: cargo xtask setup --tests")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && map.0.exists(), "jcmd: {text}");
        Ok(map)
    }
}

impl Drop for PerfMap {
    fn drop(&mut self) {
        // What is left in /tmp does no harm.
        let _removed = std::fs::remove_file(&self.0);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Node's perf map is of no use without it.
        let _removed = std::fs::remove_file(format!("/tmp/perf-{}.map", self.pid()));
    }
}

fn load(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("programs")
        .join(program)
}
