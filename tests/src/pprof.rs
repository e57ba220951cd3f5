//! Reads pprof files.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::GzDecoder;
use prost::Message;

/// A profile; of `profile.proto` what is read here.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(message, repeated, tag = "1")]
    types: Vec<Type>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    locations: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    functions: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    strings: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Type {
    #[prost(int64, tag = "1")]
    name: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    locations: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    value: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    lines: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "4")]
    file: i64,
}

/// A function, its source file and a line of it.
pub type Place = (String, String, i64);

impl Profile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::of(&std::fs::read(path)?)
    }

    /// Reads a file's content.
    pub fn of(packed: &[u8]) -> Result<Self> {
        let mut bytes = Vec::new();
        GzDecoder::new(packed).read_to_end(&mut bytes).context("gzip")?;
        Self::decode(&*bytes).context("pprof")
    }

    fn text(&self, at: i64) -> &str {
        let at = usize::try_from(at).ok();
        at.and_then(|at| self.strings.get(at)).map_or("", String::as_str)
    }

    fn named(&self, location: u64, function: &str) -> bool {
        let lines = self
            .locations
            .iter()
            .filter(|known| known.id == location)
            .flat_map(|known| &known.lines);
        lines
            .flat_map(|line| self.functions.iter().filter(|known| known.id == line.function))
            .any(|known| self.text(known.name) == function)
    }

    /// The sum of a signal over the stacks that a function is part of, `""` being part of all.
    pub fn sum(&self, signal: &str, function: &str) -> Result<f64> {
        let at = self.value_at(signal)?;
        let counts = |sample: &&Sample| {
            function.is_empty()
                || sample
                    .locations
                    .iter()
                    .any(|location| self.named(*location, function))
        };
        Ok(self
            .samples
            .iter()
            .filter(counts)
            .map(|sample| sample.values[at] as f64)
            .sum())
    }

    /// The same profile with samples of this label only.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        let mut samples = std::mem::take(&mut self.samples);
        let is = |label: &Label| self.text(label.key) == key && self.text(label.value) == value;
        samples.retain(|sample| sample.labels.iter().any(is));
        Self { samples, ..self }
    }

    /// What a signal has by stack, each as its functions' names, innermost first.
    pub fn stacks(&self, signal: &str) -> Result<Vec<(Vec<String>, f64)>> {
        let at = self.value_at(signal)?;
        let functions: HashMap<u64, &str> = self
            .functions
            .iter()
            .map(|function| (function.id, self.text(function.name)))
            .collect();
        let names: HashMap<u64, Vec<&str>> = self
            .locations
            .iter()
            .map(|location| {
                let lines = location.lines.iter();
                let names = lines.map(|line| functions.get(&line.function).copied().unwrap_or(""));
                (location.id, names.collect())
            })
            .collect();
        let stack = |sample: &Sample| {
            let locations = sample.locations.iter();
            let names = locations.flat_map(|location| names.get(location).into_iter().flatten());
            names.map(|name| (*name).to_owned()).collect()
        };
        Ok(self
            .samples
            .iter()
            .map(|sample| (stack(sample), sample.values[at] as f64))
            .collect())
    }

    /// What a signal has by stack, each as its places, innermost first.
    pub fn places(&self, signal: &str) -> Result<Vec<(Vec<Place>, f64)>> {
        let at = self.value_at(signal)?;
        let place = |line: &Line| {
            let function = self.functions.iter().find(|known| known.id == line.function);
            let text = |at: fn(&Function) -> i64| self.text(function.map_or(0, at)).to_owned();
            (text(|known| known.name), text(|known| known.file), line.line)
        };
        let of_location = |id: &u64| {
            let location = self.locations.iter().find(|known| known.id == *id);
            location.into_iter().flat_map(|known| &known.lines).map(place)
        };
        let stack = |sample: &Sample| sample.locations.iter().flat_map(of_location).collect();
        Ok(self
            .samples
            .iter()
            .map(|sample| (stack(sample), sample.values[at] as f64))
            .collect())
    }

    fn value_at(&self, signal: &str) -> Result<usize> {
        let at = self
            .types
            .iter()
            .position(|known| self.text(known.name) == signal);
        at.with_context(|| format!("no values of {signal}"))
    }
}
