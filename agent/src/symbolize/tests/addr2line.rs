//! Stripped programs of several languages with their debug files, address by address against binutils' `addr2line`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::separate::{config, run, text};
use super::{read_address, resolve, stop};
use crate::symbolize::{DebugFile, Stack, Symbolizer};

const C: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct order { int id; char name[32]; };
static inline int price(int n) { return n * 7 + (n & 3); }
static inline int tax(int n) { int p = price(n); return p > 100 ? p / 5 : p / 10; }
static int total(const struct order *orders, int n) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += tax(orders[i].id) + (int)strlen(orders[i].name);
    return sum;
}
static int compare(const void *a, const void *b) {
    const struct order *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}
__attribute__((noinline)) int checkout(int n) {
    struct order *orders = calloc((size_t)n, sizeof *orders);
    if (!orders) return -1;
    for (int i = 0; i < n; i++) {
        orders[i].id = (n * 31 + i) % 17;
        snprintf(orders[i].name, sizeof orders[i].name, "order %d", i);
    }
    qsort(orders, (size_t)n, sizeof *orders, compare);
    int sum = total(orders, n);
    free(orders);
    return sum;
}
int main(void) {
    printf("%p\n", (void *)checkout);
    fflush(stdout);
    char c;
    return (int)read(0, &c, 1) + (checkout(9) & 0);
}
"#;

const CPP: &str = r#"
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>
namespace shop {
template <typename T> struct Cart {
    std::vector<T> items;
    std::map<std::string, T> named;
    __attribute__((noinline)) T sum(int n) {
        for (int i = 0; i < n; i++) { items.push_back(T(i)); named[std::to_string(i)] += T(i); }
        std::sort(items.begin(), items.end(), [](const T &a, const T &b) { return a > b; });
        T all = 0;
        for (auto &[name, value] : named) all += value * T(name.size());
        return all + items.front();
    }
};
}
extern "C" __attribute__((noinline)) int checkout(int n) {
    return int(shop::Cart<double>().sum(n)) + int(shop::Cart<long>().sum(n));
}
int main() {
    printf("%p\n", (void *)checkout);
    fflush(stdout);
    char c;
    return int(read(0, &c, 1)) + (checkout(9) & 0);
}
"#;

const RUST: &str = r#"
use std::collections::BTreeMap;
use std::io::{Read, Write};
mod shop {
    pub trait Price { fn price(&self) -> u64; }
    #[derive(Clone)]
    pub struct Order { pub id: u64, pub name: String }
    impl Price for Order { fn price(&self) -> u64 { self.id * 7 + self.name.len() as u64 } }
}
use shop::{Order, Price};
#[inline(never)]
#[no_mangle]
pub extern "C" fn checkout(n: u64) -> u64 {
    let mut orders: Vec<Order> = (0..n).map(|id| Order { id: (id * 31) % 17, name: format!("order {id}") }).collect();
    orders.sort_by_key(|order| std::cmp::Reverse(order.price()));
    let by: BTreeMap<u64, Order> = orders.iter().cloned().map(|o| (o.id, o)).collect();
    by.values().map(Price::price).sum()
}
fn main() {
    println!("{:p}", checkout as *const ());
    std::io::stdout().flush().unwrap();
    let mut b = [0u8; 1];
    let _ = std::io::stdin().read(&mut b);
    if checkout(9) == 1 { println!("x"); }
}
"#;

const GO: &str = r#"
package main

import (
	"fmt"
	"os"
	"reflect"
	"sort"
)

type order struct {
	id   int
	name string
}

type cart struct{ orders []order }

func (c *cart) total() (sum int) {
	for _, o := range c.orders {
		sum += price(o.id) + len(o.name)
	}
	return
}

func price(n int) int { return n*7 + n&3 }

//go:noinline
func checkout(n int) int {
	c := &cart{}
	for i := 0; i < n; i++ {
		c.orders = append(c.orders, order{(n*31 + i) % 17, fmt.Sprint("order ", i)})
	}
	sort.Slice(c.orders, func(a, b int) bool { return c.orders[a].id < c.orders[b].id })
	return c.total()
}

func main() {
	fmt.Printf("%#x\n", reflect.ValueOf(checkout).Pointer())
	os.Stdin.Read(make([]byte, 1))
	if checkout(9) == 1 {
		fmt.Println("x")
	}
}
"#;

/// Functions in a program: address and size, by `nm`.
fn symbols(program: &Path) -> Vec<(u64, u64, String)> {
    let output = Command::new("nm")
        .args(["-S", "--defined-only"])
        .arg(program)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let of = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        [at, size, "t" | "T" | "W", name] => Some((hex(at), hex(size), name.to_owned())),
        _ => None,
    };
    output.lines().filter_map(of).collect()
}

/// What `addr2line` says, innermost first: function, base name of the file, line.
type Frames = Vec<(String, String, u32)>;

/// It knows the names of C++; those of Rust are left to Rust's own library.
fn addr2line(program: &Path, addresses: &[u64], cpp: bool) -> Vec<Frames> {
    let mut child = Command::new("addr2line")
        .args(["-a", "-f", if cpp { "-iC" } else { "-i" }, "-e", text(program)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let asked: Vec<String> = addresses.iter().map(|a| format!("{a:x}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(asked.concat().as_bytes()).unwrap());
    let mut found: Vec<Frames> = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        if line.starts_with("0x") {
            found.push(Vec::new());
            continue;
        }
        let place = lines.next().unwrap().unwrap();
        let place = place.split(" (").next().unwrap();
        let (file, number) = place.rsplit_once(':').unwrap();
        let file = file.rsplit('/').next().unwrap().to_owned();
        found
            .last_mut()
            .unwrap()
            .push((line, file, number.parse().unwrap_or(0)));
    }
    writer.join().unwrap();
    child.wait().unwrap();
    found
}

fn frames(stack: &Stack) -> Frames {
    let of = |frame: &crate::symbolize::Frame| {
        let file = frame.file.as_deref().unwrap_or("??");
        (
            frame.function.as_deref().unwrap_or("??").to_owned(),
            file.rsplit('/').next().unwrap().to_owned(),
            frame.line,
        )
    };
    stack.frames.iter().map(of).collect()
}

/// The agent cuts very long names. Of those of C++, parameters and arguments of templates are left out: demanglers differ in
/// them (`cpp_demangle` forgets the first parameter of a constructor that is a template).
fn same_function(ours: &str, theirs: &str, cpp: bool) -> bool {
    let theirs = match rustc_demangle::try_demangle(theirs) {
        Ok(name) => format!("{name:#}"),
        Err(_) => theirs.to_owned(),
    };
    let outside = |name: &str| {
        let mut depth = 0;
        let of = |c: &char| {
            depth += i32::from(cpp && "(<".contains(*c));
            let outside = depth <= 0 && !c.is_whitespace();
            depth -= i32::from(cpp && ")>".contains(*c));
            outside
        };
        name.chars().filter(of).collect::<String>()
    };
    // Of names that the agent's demangler cannot read, the beginning; `addr2line` also says what they return.
    if cpp && ours.ends_with("<…>") {
        return outside(&theirs).contains(&outside(ours));
    }
    match ours.strip_suffix('…') {
        Some(cut) => outside(&theirs).starts_with(&outside(cut)),
        None => outside(ours) == outside(&theirs),
    }
}

/// Compiles, strips, and compares at each address of each function that DWARF describes.
fn compare(language: &str, compile: &[&str], name: &str, source: &str, least: usize) {
    let lines_in_source = u32::try_from(source.lines().count()).unwrap();
    let cpp = language == "C++";
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at(name), source).unwrap();
    let (compiler, options) = compile.split_first().unwrap();
    let whole = at("whole");
    let mut all = options.to_vec();
    let source = at(name);
    all.extend(["-o", text(&whole), text(&source)]);
    run(compiler, &all);
    run(
        "objcopy",
        &["--only-keep-debug", text(&whole), text(&at("shop.debug"))],
    );
    run("strip", &["-o", text(&at("shop")), text(&whole)]);
    let link = format!("--add-gnu-debuglink={}", at("shop.debug").display());
    run("objcopy", &[&link, text(&at("shop"))]);

    let mut symbols = symbols(&whole);
    symbols.sort_by_key(|(_, _, symbol)| {
        !["shop", "checkout", "main"]
            .iter()
            .any(|own| symbol.contains(own))
    });
    let of = |name: &str| symbols.iter().find(|(_, _, n)| n == name).unwrap().0;
    let addresses: Vec<u64> = symbols
        .iter()
        .flat_map(|(at, size, _)| (*at..at + size).step_by(3))
        .take(6_000)
        .collect();
    let expected = addr2line(&whole, &addresses, cpp);
    assert_eq!(expected.len(), addresses.len());
    let mut child = Command::new(at("shop"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bias = read_address(&mut child)
        - of(if language == "Go" {
            "main.checkout"
        } else {
            "checkout"
        });
    let mut symbolizer = Symbolizer::new(config(Path::new("/nowhere")));
    let (mut compared, mut inlined) = (0, 0);
    let mut different = Vec::new();
    for (address, expected) in addresses.iter().zip(&expected) {
        // Without lines there is nothing to compare. And binutils 2.40 names the source itself where the lines are those of a
        // header.
        let beyond = |file: &str, line: u32| file == name && line > lines_in_source;
        let wrong =
            |(_, file, line): &(String, String, u32)| file == "??" || *line == 0 || beyond(file, *line);
        if expected.iter().any(wrong) {
            continue;
        }
        let found = frames(&resolve(&mut symbolizer, child.id(), vec![address + bias]));
        compared += 1;
        inlined += usize::from(expected.len() > 1);
        let same = found.len() == expected.len()
            && found.iter().zip(expected).enumerate().all(|(index, (a, b))| {
                // Where Go inlines, binutils 2.40 gives the innermost function the name of the outermost.
                let misnamed =
                    language == "Go" && index == 0 && expected.last().is_some_and(|last| last.0 == b.0);
                a.1 == b.1 && a.2 == b.2 && (misnamed || same_function(&a.0, &b.0, cpp))
            });
        if !same {
            different.push(format!("{address:#x}\n  {found:?}\n  {expected:?}"));
        }
    }
    stop(&mut child);
    eprintln!(
        "{language}: {compared} addresses, {inlined} of them inlined, {} different",
        different.len()
    );
    assert!(compared >= least && inlined > 0, "{compared} {inlined}");
    assert!(
        different.is_empty(),
        "{}: {}",
        different.len(),
        different[..different.len().min(9)].join("\n")
    );
    assert_eq!(symbolizer.stats().debug_files(DebugFile::DebugLink), 1);
}

#[test]
fn c() {
    compare("C", &["gcc", "-O2", "-g"], "shop.c", C, 100);
    compare(
        "C, DWARF 4",
        &["gcc", "-O2", "-gdwarf-4", "-gz=zlib"],
        "shop.c",
        C,
        100,
    );
}

#[test]
fn cpp() {
    compare("C++", &["g++", "-std=c++17", "-O2", "-g"], "shop.cc", CPP, 1000);
}

#[test]
fn rust() {
    for names in ["legacy", "v0"] {
        // The old names need an option that new compilers take only so.
        let mangling = format!("-Csymbol-mangling-version={names}");
        let compile = [
            "env",
            "RUSTC_BOOTSTRAP=1",
            "rustc",
            "-Awarnings",
            "-Zunstable-options",
            &mangling,
        ];
        let compile = [&compile[..], &["-Copt-level=2", "-g"]].concat();
        compare(names, &compile, "shop.rs", RUST, 1000);
    }
}

#[test]
fn go() {
    if Command::new("go").arg("version").output().is_err() {
        return;
    }
    let compile = ["env", "CGO_ENABLED=0", "GO111MODULE=off", "go", "build"];
    compare("Go", &compile, "shop.go", GO, 1000);
}
