//! Chains of calls as exact addresses, by Tieback and by an independent unwinder, to compare the two.
//!
//! The reference is `perf record --call-graph dwarf`: it copies each stack and walks it later, by libunwind or elfutils. A chain
//! begins at the entry point and ends with the last call; the running frame itself is left out, because no two samples have it
//! in the same place. Code that a program made itself has no call frame information, so that the reference ends there: chains
//! begin there, too, and what called that code is not compared.

use std::collections::HashMap;
use std::io::Read as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use prost::Message;

use crate::agent::Agent;
use crate::elf::Files;
use crate::server::Guard;

/// Bytes of each stack that perf copies; deeper ones are cut off.
const STACK_BYTES: &str = "24576";

/// Stands for all code that has no call frame information.
const GENERATED: &str = "[generated]";

/// Where a call is: a file (or `[vdso]`) and the offset in it of the call's last byte.
pub type Place = (String, u64);

/// Chains from the outermost call to the innermost, and what each weighs.
#[derive(Debug, Default)]
pub struct Chains {
    /// Those that reach an entry point.
    pub whole: HashMap<Vec<Place>, f64>,
    /// The others.
    pub broken: HashMap<Vec<Place>, f64>,
    /// Samples, of perf only.
    pub samples: usize,
}

impl Chains {
    /// Weight of the whole ones.
    #[must_use]
    pub fn weight(&self) -> f64 {
        self.whole.values().sum()
    }

    /// Weight of the others.
    #[must_use]
    pub fn broken_weight(&self) -> f64 {
        self.broken.values().fold(0.0, |sum, weight| sum + weight)
    }

    /// The chains that have at least a share of the weight of the whole ones.
    pub fn hot(&self, share: f64) -> impl Iterator<Item = (&Vec<Place>, f64)> {
        let least = share * self.weight();
        let hot = move |(_, weight): &(_, f64)| *weight >= least;
        self.whole
            .iter()
            .map(|(chain, weight)| (chain, *weight))
            .filter(hot)
    }

    fn add(&mut self, files: &mut Files, chain: Vec<Place>, weight: f64) -> Result<()> {
        // Of Python, Tieback has its functions in the places of the loop that runs them.
        let mut native = Vec::new();
        for (module, offset) in chain {
            if module != "[python]" && !files.is_python(&module, offset)? {
                native.push((module, offset));
            }
        }
        let mut chain = native;
        // Innermost first, until here.
        let mut generated = false;
        for at in 0..chain.len() {
            let (module, offset) = &chain[at];
            if module != "[truncated]" && !files.is_described(module, *offset)? {
                chain.truncate(at);
                chain.push((GENERATED.to_owned(), 0));
                generated = true;
                break;
            }
        }
        chain.reverse();
        if chain.len() > 1 {
            chain.pop();
        }
        match chain.first() {
            Some(_) if generated => *self.whole.entry(chain).or_default() += weight,
            Some((module, offset)) if files.is_entry(module, *offset)? => {
                *self.whole.entry(chain).or_default() += weight;
            }
            _ => *self.broken.entry(chain).or_default() += weight,
        }
        Ok(())
    }
}

/// A running `perf record`.
pub struct Perf {
    process: Guard,
    data: tempfile::NamedTempFile,
}

impl Perf {
    /// Samples processes by the CPU clock.
    pub fn start(pids: &[u32], hz: u32, seconds: u32) -> Result<Self> {
        let data = tempfile::NamedTempFile::new()?;
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let process = Guard::start(
            Command::new("perf")
                .args(["record", "-q", "-e", "cpu-clock", "-F", &hz.to_string()])
                .args([
                    "--call-graph",
                    &format!("dwarf,{STACK_BYTES}"),
                    "-p",
                    &pids.join(","),
                    "-o",
                ])
                .arg(data.path())
                .args(["--", "sleep", &seconds.to_string()]),
        )?;
        Ok(Self { process, data })
    }

    /// Waits for its end and reads what it found.
    pub fn chains(mut self, files: &mut Files) -> Result<Chains> {
        ensure!(self.process.0.wait()?.success(), "perf record failed");
        let output = Command::new("perf")
            .args(["script", "--no-inline", "-F", "ip,dso", "-i"])
            .arg(self.data.path())
            .stdin(Stdio::null())
            .output()
            .context("start perf script")?;
        ensure!(output.status.success(), "perf script failed");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut found = Chains::default();
        // A sample is a line a frame, and an empty line.
        for sample in text.split("\n\n") {
            // Not the kernel's half of the addresses: itself, its modules and BPF programs.
            let frames = sample.lines().filter_map(frame);
            let chain: Vec<Place> = frames.filter(|(_, address)| address >> 63 == 0).collect();
            if !chain.is_empty() {
                found.samples += 1;
                found.add(files, chain, 1.0)?;
            }
        }
        Ok(found)
    }
}

/// `ADDRESS (MODULE)`; the address is an offset in the file, of a caller one byte before where it will go on.
fn frame(line: &str) -> Option<Place> {
    let (address, module) = line.trim().split_once(' ')?;
    let module = module.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some((module.to_owned(), u64::from_str_radix(address, 16).ok()?))
}

/// The messages of pprof's `profile.proto` that are read.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    filename: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping_id: u64,
    #[prost(uint64, tag = "3")]
    address: u64,
}

/// The chains of a service's CPU profile of the last while (`since`, such as `10s`).
pub fn tieback(agent: &Agent, service: &str, since: &str, files: &mut Files) -> Result<Chains> {
    let path = format!("/services/-/{service}/profile/cpu?format=pprof&since={since}");
    let mut bytes = Vec::new();
    GzDecoder::new(&*agent.get_bytes(&path)?)
        .read_to_end(&mut bytes)
        .context("gzip")?;
    let profile = Profile::decode(&*bytes).context("pprof")?;
    let modules: HashMap<u64, &str> = profile
        .mapping
        .iter()
        .map(|mapping| {
            let name = usize::try_from(mapping.filename).ok();
            let name = name.and_then(|at| profile.string_table.get(at));
            (mapping.id, name.map_or("", String::as_str))
        })
        .collect();
    let locations: HashMap<u64, (&str, u64)> = profile
        .location
        .iter()
        .map(|location| {
            let module = modules.get(&location.mapping_id).copied().unwrap_or_default();
            (location.id, (module, location.address))
        })
        .collect();
    let mut chains = Chains::default();
    for sample in &profile.sample {
        let mut chain = Vec::new();
        for id in &sample.location_id {
            let (module, address) = locations.get(id).context("a location that is not there")?;
            if *module != "[kernel]" {
                chain.push(((*module).to_owned(), files.offset(module, *address)?));
            }
        }
        let weight = sample.value.iter().sum::<i64>() as f64;
        if !chain.is_empty() {
            chains.add(files, chain, weight)?;
        }
    }
    Ok(chains)
}
