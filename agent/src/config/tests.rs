use std::path::Path;

use clap::{Args, Command, FromArgMatches};
use serde::Deserialize;

use super::*;

const PROBES: &[&str] = &["wait", "cpu", "syscall"];

fn flags(args: &[&str]) -> Flags {
    let command = Flags::augment_args(Command::new("tieback"));
    let matches = command
        .try_get_matches_from([&["tieback"], args].concat())
        .expect("valid flags");
    Flags::from_arg_matches(&matches).expect("valid flags")
}

fn load(args: &[&str], text: &str) -> Result<Config> {
    Config::merge(
        flags(args).settings,
        File::parse(Path::new("t.toml"), text, PROBES)?,
    )
}

fn error(args: &[&str], text: &str) -> String {
    format!("{:#}", load(args, text).expect_err("must be refused"))
}

#[test]
fn defaults_are_those_of_the_design() {
    let config = load(&[], "").expect("valid");
    assert_eq!(config.listen.to_string(), "127.0.0.1:9909");
    assert_eq!(
        (config.interval, config.retention),
        (Duration::from_secs(10), Duration::from_secs(900))
    );
    assert_eq!(
        (config.memory_limit_bytes, config.cpu_limit_ratio),
        (256 << 20, 0.01)
    );
    assert_eq!(
        (config.top, config.series_limit, config.services_limit),
        (20, 50_000, 1000)
    );
    assert_eq!(
        (config.sample_cpu_hz, config.syscall_mode),
        (19, SyscallMode::Auto)
    );
    assert_eq!(config.kill_switch, Path::new("/run/tieback/disable"));
    assert_eq!(config.host_root, Path::new("/"));
    assert!(config.debuginfod_urls.is_empty());
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let text = "interval = \"20s\"\ntop = 1_0\nmemory_limit = \"1GiB\"\nsyscall_mode = \"exact\"\n";
    let config = load(&["--interval", "5s", "--cpu-limit", "0.5%"], text).expect("valid");
    assert_eq!((config.interval, config.top), (Duration::from_secs(5), 10));
    assert_eq!(
        (config.memory_limit_bytes, config.cpu_limit_ratio),
        (1 << 30, 0.005)
    );
    assert_eq!(config.syscall_mode, SyscallMode::Exact);
}

#[test]
fn every_key_of_the_file_is_read() {
    for key in Settings::KEYS {
        let mut settings = Settings::default();
        assert!(settings.set(key, "").is_some(), "{key}");
        assert!(!settings.has(key));
    }
    assert!(Settings::default().set("config", "x").is_none());
}

#[test]
fn unknown_keys_name_their_line_and_the_nearest_valid_one() {
    for (text, expected) in [
        (
            "\n\nintervall = \"1s\"\n",
            "t.toml:3: unknown key \"intervall\"; did you mean \"interval\"?",
        ),
        (
            "memory-limit = \"1GiB\"",
            "t.toml:1: unknown key \"memory-limit\"; did you mean \"memory_limit\"?",
        ),
        (
            "[probe.wait]\nenabled = true",
            "t.toml:1: unknown key \"probe\"; did you mean \"probes\"?",
        ),
        (
            "[probes.wiat]\nenabled = true",
            "t.toml:1: unknown key \"probes.wiat\"; did you mean \"probes.wait\"?",
        ),
        (
            "[probes.wait]\nenable = true",
            "t.toml:2: unknown key \"enable\"; did you mean \"enabled\"?",
        ),
    ] {
        assert_eq!(error(&[], text), expected);
    }
    let text = error(&[], "zzz = 1");
    assert!(
        text.starts_with("t.toml:1: unknown key \"zzz\"; valid ones: listen, interval"),
        "{text}"
    );
}

#[test]
fn bad_values_name_where_they_came_from() {
    for (args, text, expected) in [
        (
            &[][..],
            "top = 1\ninterval = \"soon\"",
            "t.toml:2: interval: \"soon\" is not a time such as 10s, 15m or 1h",
        ),
        (
            &[],
            "top = 1\n\ninterval = \"1ms\"",
            "t.toml:3: interval must be 1s to 10m, is 1ms",
        ),
        (
            &["--interval", "1ms"],
            "interval = \"5s\"",
            "--interval must be 1s to 10m, is 1ms",
        ),
        (
            &["--retention", "5s"],
            "",
            "--retention must be 10s to 1day, is 5s",
        ),
        (&["--top", "0"], "", "--top must be 1 to 1000, is 0"),
        (
            &["--memory-limit", "1MiB"],
            "",
            "--memory-limit must be at least 64MiB, is 1MiB",
        ),
        (
            &["--cpu-limit", "0%"],
            "",
            "--cpu-limit must be more than 0% and at most 100%, is 0%",
        ),
        (&[], "top = []", "t.toml:1: top must be a string or a number"),
        (
            &[],
            "listen = \"localhost\"",
            "t.toml:1: listen: invalid socket address syntax",
        ),
        (
            &[],
            "[probes.wait]\nenabled = 1",
            "t.toml:2: probes.wait.enabled is true or false",
        ),
        (
            &[],
            "[probes]\nwait = true",
            "t.toml:2: write [probes.wait] and under it enabled = true or false",
        ),
        (
            &[],
            "[service]\nname = \"x\"",
            "t.toml:1: write [[service]], with two brackets: there can be several",
        ),
    ] {
        assert_eq!(error(args, text), expected);
    }
    let text = error(&[], "top = 1\ntop = 2\n");
    assert!(text.starts_with("t.toml:2: duplicate key"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let missing = flags(&["--config", "/nonexistent/t.toml"]);
    let error = format!(
        "{:#}",
        Config::load(missing, PROBES).expect_err("must be refused")
    );
    assert!(error.starts_with("read /nonexistent/t.toml: "), "{error}");
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    name: String,
    uid: u32,
}

#[test]
fn probes_and_rules_are_handed_on() {
    let text = "[probes.cpu]\nenabled = false\n\n[[service]]\nname = \"a\"\nuid = 0x10\n[[service]]\nname = \"b\"\nuid = 2\n\
                [[owner]]\nname = \"c\"\nuids = 3\n";
    let config = load(&[], text).expect("valid");
    assert_eq!(config.probes, BTreeMap::from([("cpu".to_owned(), false)]));
    let rules: Vec<Rule> = config
        .service_rules
        .iter()
        .map(|rule| rule.read().expect("valid"))
        .collect();
    assert_eq!(
        rules,
        [
            Rule {
                name: "a".into(),
                uid: 16
            },
            Rule {
                name: "b".into(),
                uid: 2
            }
        ]
    );
    let error = config.owner_rules[0]
        .read::<Rule>()
        .expect_err("must be refused")
        .to_string();
    assert_eq!(error, "t.toml:10: unknown key \"uids\"; did you mean \"uid\"?");
}
