//! The program's own heap profile is the truth.

mod damaged;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::layout::minor;
use super::{Bucket, GoHeap, Layout, Refused, scaled};
use crate::host::Host;

const PROGRAM: &str = r#"
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
)

var kept [][]byte
var sink []byte

//go:noinline
func keep(count, size int) {
	for i := 0; i < count; i++ {
		kept = append(kept, make([]byte, size))
	}
}

//go:noinline
func churn(count, size int) {
	for i := 0; i < count; i++ {
		sink = make([]byte, size)
	}
}

//go:noinline
func deep(depth int) {
	if depth == 0 {
		keep(64, 65536)
		return
	}
	deep(depth - 1)
}

func init() { runtime.MemProfileRate, _ = strconv.Atoi(os.Getenv("RATE")) }

func main() {
	debug.SetGCPercent(-1)
	keep(20000, 4096)
	churn(30000, 2048)
	deep(100)
	if os.Getenv("COLLECT") != "" {
		sink = nil
		runtime.GC()
		runtime.GC()
	}
	in := bufio.NewReader(os.Stdin)
	fmt.Println("ready")
	in.ReadString('\n')
	pprof.Lookup("heap").WriteTo(os.Stdout, 1)
	fmt.Println("written")
	in.ReadString('\n')
}
"#;

struct Running(Child, BufReader<std::process::ChildStdout>);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(program: &Path, rate: u64, collect: bool) -> Self {
        let mut child = Command::new(program)
            .env("RATE", rate.to_string())
            .env("COLLECT", if collect { "1" } else { "" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut running = Self(child, out);
        running.until("ready");
        running
    }

    fn until(&mut self, end: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "the program ended");
            if line.trim_end() == end {
                return lines;
            }
            lines.push(line.trim_end().to_owned());
        }
    }

    fn go(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn heap(&self) -> Result<GoHeap, Refused> {
        let host = Host::new("/");
        Layout::find(&host, self.0.id())?.read(&host, self.0.id())
    }
}

fn build(dir: &Path, options: &[&str]) -> Option<std::path::PathBuf> {
    let (source, program) = (dir.join("heap.go"), dir.join("heap"));
    std::fs::write(&source, PROGRAM).unwrap();
    build_from(&source, &program, options)
}

fn build_from(source: &Path, program: &Path, options: &[&str]) -> Option<std::path::PathBuf> {
    let mut command = Command::new("go");
    command
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0")
        .arg("build")
        .args(options);
    let status = command.arg("-o").arg(program).arg(source).status().ok()?;
    assert!(status.success());
    Some(program.to_owned())
}

/// `objects in use: bytes [objects: bytes] @ stack`, a line each: what `runtime.MemProfile` returns, not scaled.
fn said(lines: &[String]) -> BTreeMap<Vec<u64>, Vec<[u64; 4]>> {
    let mut said: BTreeMap<Vec<u64>, Vec<[u64; 4]>> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.contains("] @ 0x")) {
        let (counts, stack) = line.split_once('@').unwrap();
        let numbers = counts
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok());
        let numbers: Vec<u64> = numbers.collect();
        let stack = stack
            .split_whitespace()
            .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap());
        said.entry(stack.collect())
            .or_default()
            .push(numbers.try_into().unwrap());
    }
    for counts in said.values_mut() {
        counts.sort_unstable();
    }
    said
}

fn read(heap: &GoHeap) -> BTreeMap<Vec<u64>, Vec<[u64; 4]>> {
    let mut read: BTreeMap<Vec<u64>, Vec<[u64; 4]>> = BTreeMap::new();
    // What was sampled and is not published yet is no part of the profile.
    for bucket in heap.buckets.iter().filter(|bucket| bucket.allocs > 0) {
        let counts = [
            bucket.allocs - bucket.frees,
            bucket.alloc_bytes - bucket.free_bytes,
            bucket.allocs,
            bucket.alloc_bytes,
        ];
        read.entry(bucket.stack.clone()).or_default().push(counts);
    }
    for counts in read.values_mut() {
        counts.sort_unstable();
    }
    read
}

#[test]
fn the_profile_is_what_the_program_itself_says() {
    let dir = tempfile::tempdir().unwrap();
    for options in [&[][..], &["-buildmode=pie"]] {
        let Some(program) = build(dir.path(), options) else {
            return;
        };
        for (rate, collect) in [(1, true), (1, false), (524_288, true), (524_288, false)] {
            let mut running = Running::start(&program, rate, collect);
            // Before the program looks at it itself, and after: that publishes what was collected last.
            let before = running.heap().unwrap();
            running.go();
            let lines = running.until("written");
            let after = running.heap().unwrap();
            let mut truth = said(&lines);
            truth.retain(|_, counts| {
                counts.retain(|counts| counts[2] > 0);
                !counts.is_empty()
            });
            let what = format!("{options:?}, rate {rate}, collected {collect}");
            assert!(before.complete && after.complete && before.rate == rate, "{what}");
            assert!(truth.len() > 2, "{what}");
            for heap in [&before, &after] {
                // Without a collection, the program's own look is sampled with the rest while it goes on.
                let read = read(heap);
                let missing = truth
                    .iter()
                    .filter(|(stack, counts)| read.get(*stack) != Some(counts))
                    .count();
                let more = read.keys().filter(|stack| !truth.contains_key(*stack)).count();
                if collect {
                    assert_eq!((missing, more), (0, 0), "{what}");
                } else {
                    let large = |map: &BTreeMap<Vec<u64>, Vec<[u64; 4]>>| {
                        let mut all: Vec<_> = map.clone().into_iter().collect();
                        all.retain(|(_, counts)| counts.iter().any(|counts| counts[3] > 1 << 20));
                        all
                    };
                    assert_eq!(large(&read), large(&truth), "{what}");
                }
            }
            known(&before, collect, &what);
        }
    }
}

/// What the program is known to have allocated, and to keep.
fn known(heap: &GoHeap, collected: bool, what: &str) {
    let (mut allocated, mut in_use) = (0.0, 0.0);
    for bucket in &heap.buckets {
        allocated += bucket.allocated(heap.rate).bytes;
        in_use += bucket.in_use(heap.rate).bytes;
    }
    let kept = f64::from(20_000 * 4096 + 64 * 65_536);
    let all = kept + f64::from(30_000 * 2048);
    // Four standard errors of a Poisson sample; and what the list of kept slices grew by.
    let within = |is: f64, want: f64, room: f64| {
        let error = 4.0 * (want * heap.rate as f64).sqrt();
        assert!(
            is > want - error && is < want + error + room,
            "{what}: {is} of {want} ± {error}"
        );
    };
    within(allocated, all, 8e6);
    within(in_use, if collected { kept } else { all }, 8e6);
}

#[test]
fn programs_without_a_profile_are_refused_by_name() {
    let host = Host::new("/");
    assert!(matches!(
        Layout::find(&host, std::process::id()),
        Err(Refused::NotGo)
    ));
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = build(dir.path(), &[]) else {
        return;
    };
    let running = Running::start(&program, 0, true);
    assert!(matches!(running.heap(), Err(Refused::Off)));
    drop(running);
    let program = build(dir.path(), &["-ldflags=-s -w"]).unwrap();
    assert!(matches!(
        Running::start(&program, 1, true).heap(),
        Err(Refused::NoSymbols)
    ));
    // One that nobody could ask for a profile.
    let source = dir.path().join("none.go");
    let none = dir.path().join("none");
    let text = "package main\nimport \"bufio\"\nimport \"os\"\n\
        func main() { os.Stdout.WriteString(\"ready\\n\"); bufio.NewReader(os.Stdin).ReadString('\\n') }\n";
    std::fs::write(&source, text).unwrap();
    build_from(&source, &none, &[]).unwrap();
    assert!(matches!(
        Running::start(&none, 1, true).heap(),
        Err(Refused::NotLinked)
    ));
    for (version, known) in [
        ("go1.19.8", Some(19)),
        ("go1.30rc1", Some(30)),
        ("devel go1.99", None),
        ("", None),
    ] {
        assert_eq!(minor(version), known, "{version}");
    }
}

/// A sample of S bytes stands for S / (1 - e^(-S/R)): small allocations for R bytes, large ones for themselves.
#[test]
fn scaled_as_pprof_does() {
    for ((objects, bytes, rate), (more, most)) in [
        ((0, 0, 524_288), (0.0, 0.0)),
        ((5, 80, 1), (5.0, 80.0)),
        // runtime/pprof/protomem_test.go
        ((1, 1024, 524_288), (512.500, 524_800.0)),
        ((1, 524_288, 524_288), (1.581_98, 829_411.0)),
    ] {
        let amount = scaled(objects, bytes, rate);
        assert!((amount.objects - more).abs() < 0.01, "{amount:?}");
        assert!((amount.bytes - most).abs() < 100.0, "{amount:?}");
    }
    let bucket = Bucket {
        allocs: 3,
        frees: 4,
        ..Bucket::default()
    };
    // Read between two writes.
    assert_eq!(bucket.in_use(1).objects, 0.0);
}
