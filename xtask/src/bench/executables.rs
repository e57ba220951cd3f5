//! What the agent needs for many executables, and how soon their stacks are whole.

use super::{
    agent::{Agent, Memory},
    process::{Process, end_all},
    report::{Figure, Unit},
    stats::Estimate,
};
use crate::{command, workspace};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// Name for `--only`.
pub(crate) const EXECUTABLES: &str = "executables";

/// Executables that run at once.
const PROGRAMS: usize = 300;
/// Resident memory and maps together.
const MEMORY: f64 = 128.0 * 1024.0 * 1024.0;
/// Most time from a program's start to its first whole stack, in the median.
const FIRST: f64 = 1.0;
/// Between the starts of two programs: a host that starts all of its programs at once is busy with that.
const APART: Duration = Duration::from_millis(100);
/// How long they are watched once all of them run, in seconds.
const WATCH: u32 = 60;

/// The executables with the most code that this host has, each started and held before its `main` by a library of ours, where
/// it does a little work ten times a second: real files of all sizes with the libraries that they need.
pub(crate) fn executables(agent: &mut Agent, dir: &Path) -> Result<Vec<Figure>> {
    let held = dir.join("held.so");
    let mut compile = Command::new("cc");
    compile
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&held)
        .arg(workspace::root().join("tests/programs/held.c"));
    command::checked(&mut compile)?;
    agent.switch(true)?;
    let built_before = agent.metric(TABLES)?;
    let refused_before = agent.metric(NO_ROOM)?;
    let first_before = agent.buckets(FIRST_STACK)?;
    let mut running = Vec::new();
    for path in programs() {
        if running.len() == PROGRAMS {
            break;
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "env"])
            .arg(format!("LD_PRELOAD={}", held.display()))
            .arg(&path);
        let mut process = Process::start(&mut command, &dir.join("executable.log"))?;
        thread::sleep(APART);
        // Programs with more rights than their user's let nobody preload anything.
        if process.alive().is_ok() {
            running.push(process);
        }
    }
    ensure!(
        running.len() == PROGRAMS,
        "this host has {} of the {PROGRAMS} executables",
        running.len()
    );
    let mut most = Memory {
        resident: 0.0,
        maps: 0.0,
    };
    let mut sum = 0.0_f64;
    for _ in 0..WATCH {
        thread::sleep(Duration::from_secs(1));
        let mut memory = agent.memory()?;
        // The ring of events is mapped, so that it would count twice.
        memory.resident -= agent.mapped_maps()?;
        most.resident = most.resident.max(memory.resident);
        most.maps = most.maps.max(memory.maps);
        sum = sum.max(memory.resident + memory.maps);
    }
    for process in &mut running {
        process.alive()?;
    }
    let first = FirstStacks::since(agent, &first_before)?;
    println!(
        "bench: executables: {} tables, of which {} found no room; {} programs with a whole stack",
        agent.metric(TABLES)? - built_before,
        agent.metric(NO_ROOM)? - refused_before,
        first.programs
    );
    end_all(running);
    ensure!(
        agent.metric(NO_ROOM)? == refused_before,
        "some executables have no table: the memory says nothing"
    );
    Ok(figures(&first, most, sum))
}

fn figures(first: &FirstStacks, most: Memory, sum: f64) -> Vec<Figure> {
    let exact = |value| Estimate {
        value,
        low: value,
        high: value,
    };
    vec![
        Figure::of_agent(
            "median time from a program's start to its first whole stack, at most",
            Unit::Seconds,
            exact(first.median),
            FIRST,
        ),
        Figure::of_agent(
            &format!("memory and maps with {PROGRAMS} executables, at most"),
            Unit::Bytes,
            exact(sum),
            MEMORY,
        ),
        Figure::told(
            &format!("resident memory with {PROGRAMS} executables, at most"),
            Unit::Bytes,
            exact(most.resident),
        ),
        Figure::told(
            &format!("BPF maps with {PROGRAMS} executables, at most"),
            Unit::Bytes,
            exact(most.maps),
        ),
    ]
}

const TABLES: &str = "tieback_unwind_tables_total";
const NO_ROOM: &str = "tieback_unwind_tables_refused_total{reason=\"no_room\"}";
const FIRST_STACK: &str = "tieback_unwind_first_stack_seconds";

/// How long programs took to their first whole stack.
struct FirstStacks {
    /// The bound of the bucket that holds the median of all programs; those that had no whole stack took for ever.
    median: f64,
    /// Programs that had one.
    programs: f64,
}

impl FirstStacks {
    /// Of what was observed since `before`.
    fn since(agent: &Agent, before: &[(f64, f64)]) -> Result<Self> {
        Self::of(before, &agent.buckets(FIRST_STACK)?, PROGRAMS as f64).context("no first stacks are counted")
    }

    fn of(before: &[(f64, f64)], now: &[(f64, f64)], started: f64) -> Option<Self> {
        let since = |&(bound, count): &(f64, f64)| {
            let old = before.iter().find(|(old, _)| *old == bound);
            (bound, count - old.map_or(0.0, |(_, count)| *count))
        };
        let counts: Vec<(f64, f64)> = now.iter().map(since).collect();
        let programs = counts.last()?.1;
        let half = counts.iter().find(|(_, count)| *count >= started / 2.0);
        Some(Self {
            median: half.map_or(f64::INFINITY, |(bound, _)| *bound),
            programs,
        })
    }
}

/// The dynamic executables of this host, those with the most code first, each once.
fn programs() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    folders.extend(["/usr/bin", "/usr/sbin", "/usr/libexec", "/usr/lib/postgresql"].map(PathBuf::from));
    let (mut seen, mut files) = (BTreeSet::new(), BTreeSet::new());
    while let Some(folder) = folders.pop() {
        if !fs::canonicalize(&folder).is_ok_and(|folder| seen.insert(folder)) {
            continue;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() && folder.starts_with("/usr/lib") => folders.push(path),
                // With a set-id bit the loader takes no library that it is told to load first: such a program would run.
                Ok(found) if found.is_file() && found.mode() & 0o111 != 0 && found.mode() & 0o6000 == 0 => {
                    files.extend(fs::canonicalize(&path));
                }
                _ => {}
            }
        }
    }
    let mut ids = BTreeSet::new();
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for path in files {
        let head = head(&path).unwrap_or_default();
        if let Some((id, code)) = identity(&head)
            && ids.insert(id.to_vec())
        {
            found.push((code, path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The first page of a file.
fn head(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut head = Vec::new();
    fs::File::open(path)?.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

/// Build id and bytes of code of a 64-bit executable that the C library's loader starts, by its program headers.
fn identity(head: &[u8]) -> Option<(&[u8], u64)> {
    const LOAD: u32 = 1;
    const INTERPRETER: u32 = 3;
    const NOTE: u32 = 4;
    const EXECUTABLE: u32 = 1;
    let word = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    let half = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    if head.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let table = usize::try_from(word(32)?).ok()?;
    let count = usize::from(u16::from_le_bytes(head.get(56..58)?.try_into().ok()?));
    let (mut code, mut loader, mut id) = (0, None, None);
    for number in 0..count {
        let at = table + number * 56;
        let bytes = || {
            let (offset, size) = (
                usize::try_from(word(at + 8)?).ok()?,
                usize::try_from(word(at + 32)?).ok()?,
            );
            head.get(offset..offset.checked_add(size)?)
        };
        match half(at)? {
            LOAD if half(at + 4)? & EXECUTABLE != 0 => code += word(at + 32)?,
            INTERPRETER => loader = bytes(),
            NOTE => id = id.or_else(|| build_id(bytes()?)),
            _ => {}
        }
    }
    loader?.starts_with(b"/lib64/ld-linux").then_some((id?, code))
}

/// The build id among notes: its note has the name size 4, the type 3 and the name `GNU`.
fn build_id(notes: &[u8]) -> Option<&[u8]> {
    let at = notes.windows(16).position(|window| {
        window[..4] == 4u32.to_le_bytes() && window[8..12] == 3u32.to_le_bytes() && window[12..] == *b"GNU\0"
    })?;
    let size = u32::from_le_bytes(notes.get(at + 4..at + 8)?.try_into().ok()?);
    notes.get(at + 16..at + 16 + usize::try_from(size).ok()?)
}

#[cfg(test)]
mod tests {
    use super::{FirstStacks, head, identity};

    #[test]
    fn the_median_is_of_all_programs_also_those_that_never_had_a_whole_stack() {
        let before = [(0.5, 2.0), (1.0, 3.0), (f64::INFINITY, 4.0)];
        let now = [(0.5, 5.0), (1.0, 9.0), (f64::INFINITY, 13.0)];
        let of = |started| {
            let first = FirstStacks::of(&before, &now, started).unwrap();
            (first.median, first.programs)
        };
        assert_eq!(of(10.0), (1.0, 9.0));
        assert_eq!(of(6.0), (0.5, 9.0));
        assert_eq!(of(20.0), (f64::INFINITY, 9.0));
    }

    #[test]
    fn an_executable_has_code_and_a_build_id() {
        let cat = head(std::path::Path::new("/bin/cat")).unwrap();
        let (id, code) = identity(&cat).unwrap();
        assert_eq!(id.len(), 20);
        assert!((1 << 10..1 << 20).contains(&code), "{code}");
        assert_eq!(identity(b"#!/bin/sh"), None);
    }
}
