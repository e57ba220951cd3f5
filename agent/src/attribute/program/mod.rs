//! The program as a person would say it: `gunicorn shop.wsgi`, `orders.jar`; not `python3`, `java`.

mod interpreter;
mod launcher;
#[cfg(test)]
mod tests;

use super::runtime::family;

/// Longest name.
const MAX: usize = 64;

/// Executables that are several programs: the one that was meant is what they were called as.
const MULTICALL: &[&str] = &[
    "busybox",
    "coreutils",
    "redis-check-aof",
    "redis-check-rdb",
    "rustup",
    "toybox",
    "valkey-check-aof",
    "valkey-check-rdb",
];

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Names a program by its executable, its arguments and the kernel's name of its main thread.
#[must_use]
pub fn program_name(exe: &str, cmdline: &[String], comm: &str) -> String {
    // Programs that overwrite their arguments with a title leave one string with spaces.
    let words: Vec<&str> = match cmdline {
        [title] if title.contains(' ') && title != exe => title.split_whitespace().collect(),
        arguments => arguments.iter().map(String::as_str).collect(),
    };
    let exe_name = base(exe);
    let (exe_name, words) = if MULTICALL.contains(&exe_name) {
        called_as(exe_name, &words)
    } else {
        (exe_name, words.as_slice())
    };
    clean(&named(exe_name, words, cmdline.len() == 1, comm))
}

fn named(exe_name: &str, words: &[&str], one_string: bool, comm: &str) -> String {
    let family = family(exe_name);
    let first = words.first().copied().unwrap_or_default();
    if family == "php-fpm" {
        // Each pool is an application of its own, except for the one that every installation has.
        return match words {
            [_, "pool", pool] if *pool != "www" => format!("{family} {pool}"),
            _ => family.to_owned(),
        };
    }
    if family == "beam.smp" {
        return erlang_node(words).unwrap_or("beam").to_owned();
    }
    match interpreter::find(family) {
        Some(row) => {
            let called = base(first).trim_start_matches('-');
            if one_string && words.len() > 1 && !row.is(called) && !row.is(self::family(called)) {
                return launcher::titled(words);
            }
            row.program(words.get(1..).unwrap_or_default())
                .unwrap_or_else(|| family.to_owned())
        }
        // A title that a program sets itself (`nginx: worker process`) says less than its executable.
        None if !exe_name.is_empty() => exe_name.to_owned(),
        None => comm.to_owned(),
    }
}

/// The program that a multi-call executable was called as, and its arguments.
fn called_as<'a>(exe_name: &'a str, words: &'a [&'a str]) -> (&'a str, &'a [&'a str]) {
    let name = |word: &'a str| base(word).trim_start_matches('-').trim_end_matches(':');
    match words {
        [first, second, ..] if name(first) == exe_name && !second.starts_with('-') => {
            (name(second), words.get(1..).unwrap_or_default())
        }
        [first, ..] if !name(first).is_empty() => (name(first), words),
        _ => (exe_name, words),
    }
}

/// Name of an Erlang node without its host: `-sname rabbit@db1`.
fn erlang_node<'a>(words: &[&'a str]) -> Option<&'a str> {
    let at = words
        .iter()
        .position(|word| matches!(*word, "-name" | "-sname"))?;
    let node = words.get(at + 1)?.split('@').next()?;
    (!node.is_empty()).then_some(node)
}

fn clean(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).take(MAX).collect();
    let name = name.trim();
    if name.is_empty() {
        "(unknown)".to_owned()
    } else {
        name.to_owned()
    }
}
