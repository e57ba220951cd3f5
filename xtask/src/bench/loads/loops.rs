//! Loops of one operation: what the hooks cost where there is nothing else.

use super::{Done, Load, Running, Site, at_most};
use crate::{
    bench::process::{Process, cpus, pinned, wait_for},
    command,
};
use anyhow::{Context as _, Result};
use std::{fs, path::Path, process::Command};

pub(super) const DD: Load = Load {
    name: "dd",
    unit: "read and write",
    what: "dd bs=1 from /dev/zero to /dev/null",
    needs: &["dd"],
    target: at_most(1.10),
    start: dd,
};

pub(super) const PING_PONG: Load = Load {
    name: "ping-pong",
    unit: "round trip",
    what: "one byte between two processes on one CPU, through pipes",
    needs: &[],
    target: at_most(1.05),
    start: |site| own(site, "ping-pong"),
};

pub(crate) const CONNECT: Load = Load {
    name: "connect",
    unit: "connection",
    what: "connect, accept and close on loopback",
    needs: &[],
    target: None,
    start: |site| own(site, "connect"),
};

pub(crate) const REQUEST: Load = Load {
    name: "request",
    unit: "request",
    what: "one byte over an open TCP connection on loopback and back, both ends in one thread",
    needs: &[],
    target: at_most(1.01),
    start: |site| own(site, "request"),
};

pub(super) const EXEC: Load = Load {
    name: "exec",
    unit: "child",
    what: "fork, exec of true, wait",
    needs: &["true"],
    target: None,
    start: |site| own(site, "exec"),
};

pub(super) const FAULTS: Load = Load {
    name: "faults",
    unit: "page",
    what: "first touch of every page of 64 MiB, mapped and unmapped in turns",
    needs: &[],
    target: None,
    start: |site| own(site, "faults"),
};

/// dd as it is; the kernel counts its reads.
fn dd(site: &Site<'_>) -> Result<Running> {
    let program = command::find("dd").context("no dd")?;
    let mut dd = pinned(&program, cpus().0, None);
    dd.args(["if=/dev/zero", "of=/dev/null", "bs=1"]);
    let dd = Process::start(&mut dd, &site.dir.join("dd.log"))?;
    let path = format!("/proc/{}/io", dd.pid());
    Ok(Running {
        measured: vec![dd.pid()],
        processes: vec![dd],
        count: Box::new(move || {
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let operations = text
                .lines()
                .find_map(|line| line.strip_prefix("syscr: ")?.parse().ok())
                .with_context(|| format!("{path} has no syscr"))?;
            Ok(Done {
                operations,
                ..Done::default()
            })
        }),
    })
}

/// A loop that does nothing but allocate.
pub(crate) fn malloc(site: &Site<'_>) -> Result<Running> {
    own(site, "malloc")
}

/// Python that reads JSON: some hundred bytes of small objects a turn.
pub(crate) fn json(site: &Site<'_>) -> Result<Running> {
    const SCRIPT: &str = "
import json, mmap, sys
file = open(sys.argv[1], 'r+b')
words = memoryview(mmap.mmap(file.fileno(), 16)).cast('Q')
text = json.dumps([{'id': i, 'name': 'n' * (i % 50), 'tags': ['a', 'b', str(i)], 'price': i * 1.5, 'text': 'x' * 600} for i in range(20)])
while True:
    json.loads(text)
    words[0] += 1
";
    let (script, file) = (site.dir.join("documents.py"), site.dir.join("json.progress"));
    fs::write(&script, SCRIPT)?;
    fs::write(&file, [0; 16])?;
    let program = command::find("python3").context("no python3")?;
    let mut command = pinned(&program, cpus().0, None);
    command.arg(&script).arg(&file);
    let process = Process::start(&mut command, &site.dir.join("json.log"))?;
    wait_for("the first document", || {
        Ok(progress(&file).ok().filter(|done| done.operations > 0))
    })?;
    Ok(Running {
        measured: vec![process.pid()],
        processes: vec![process],
        count: Box::new(move || progress(&file)),
    })
}

/// A loop of `tieback-workload`.
fn own(site: &Site<'_>, kind: &str) -> Result<Running> {
    let file = site.dir.join(format!("{kind}.progress"));
    let mut command = pinned(site.workload, cpus().0, None);
    command.args(["loop", kind]).arg(&file);
    let process = Process::start(&mut command, &site.dir.join(format!("{kind}.log")))?;
    wait_for("the loop's first turn", || {
        Ok(progress(&file).ok().filter(|done| done.operations > 0))
    })?;
    let measured = if kind == "exec" {
        // Its children live too briefly to be asked; the loop adds their time up.
        vec![process.pid()]
    } else {
        process.family()?
    };
    Ok(Running {
        measured,
        processes: vec![process],
        count: Box::new(move || progress(&file)),
    })
}

/// `tieback-workload` in a network namespace of its own with its loopback up; it ends with the benchmark.
pub(crate) fn apart(workload: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "unshare", "--net", "sh", "-c"])
        .args(["ip link set lo up && exec \"$@\"", "sh"])
        .arg(workload);
    command
}

/// The two words of a workload's shared file.
pub(crate) fn progress(file: &Path) -> Result<Done> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let word = |at: usize| {
        let bytes = bytes.get(at * 8..at * 8 + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    word(0)
        .zip(word(1))
        .map(|(operations, ended_ns)| Done { operations, ended_ns })
        .with_context(|| format!("{} is too short", file.display()))
}
