//! `[[service]]`: rules of the configuration that name services before anything else does.

use serde::Deserialize;

use super::unit_of;
use crate::host::ProcessFacts;

/// Longest name, namespace or version.
const LONGEST: usize = 128;

/// One `[[service]]` table: which processes it matches (all of what it says must hold), and what they are called. A
/// pattern covers the whole text; `*` stands for any characters, `?` for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Raw")]
pub struct ServiceRule {
    exe: Option<String>,
    arg: Option<String>,
    cgroup: Option<String>,
    comm: Option<String>,
    unit: Option<String>,
    /// The service's name.
    pub(super) name: String,
    /// Its namespace, where the rule gives one.
    pub(super) namespace: Option<String>,
    /// Its release, where the rule gives one.
    pub(super) version: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    exe: Option<String>,
    arg: Option<String>,
    cgroup: Option<String>,
    comm: Option<String>,
    unit: Option<String>,
    name: String,
    namespace: Option<String>,
    version: Option<String>,
}

impl TryFrom<Raw> for ServiceRule {
    type Error = String;

    fn try_from(raw: Raw) -> Result<Self, String> {
        let patterns = [
            ("exe", &raw.exe),
            ("arg", &raw.arg),
            ("cgroup", &raw.cgroup),
            ("comm", &raw.comm),
            ("unit", &raw.unit),
        ];
        if patterns.iter().all(|(_, pattern)| pattern.is_none()) {
            return Err(format!(
                "the rule for {:?} matches nothing: give at least one of exe, arg, cgroup, comm, unit",
                raw.name
            ));
        }
        for (key, pattern) in patterns {
            if pattern.as_deref() == Some("") {
                return Err(format!("{key} is empty; leave it out, or write \"*\""));
            }
        }
        for (key, pattern) in [("exe", &raw.exe), ("cgroup", &raw.cgroup)] {
            if let Some(pattern) = pattern
                && !pattern.starts_with(['/', '*', '?'])
            {
                return Err(format!(
                    "{key} = {pattern:?} never matches: paths begin with / (or write \"*/{pattern}\")"
                ));
            }
        }
        let texts = [
            ("name", Some(&raw.name)),
            ("namespace", raw.namespace.as_ref()),
            ("version", raw.version.as_ref()),
        ];
        for (key, text) in texts {
            let Some(text) = text else { continue };
            if text.trim().is_empty() {
                return Err(format!("{key} is empty"));
            }
            if text.chars().any(char::is_control) {
                return Err(format!("{key} has control characters"));
            }
            if text.chars().count() > LONGEST {
                return Err(format!("{key} is longer than {LONGEST} characters"));
            }
        }
        Ok(Self {
            exe: raw.exe,
            arg: raw.arg,
            cgroup: raw.cgroup,
            comm: raw.comm,
            // systemctl says nginx.service, the service is called nginx: both are understood.
            unit: raw.unit.map(|unit| unit.trim_end_matches(".service").to_owned()),
            name: raw.name,
            namespace: raw.namespace,
            version: raw.version,
        })
    }
}

impl ServiceRule {
    /// Whether a process is meant.
    #[must_use]
    pub fn matches(&self, facts: &ProcessFacts) -> bool {
        let holds = |pattern: &Option<String>, any: &dyn Fn(&str) -> bool| pattern.as_deref().is_none_or(any);
        holds(&self.exe, &|pattern| covers(pattern, &facts.exe))
            && holds(&self.comm, &|pattern| covers(pattern, &facts.comm))
            && holds(&self.arg, &|pattern| {
                facts.cmdline.iter().any(|argument| covers(pattern, argument))
            })
            && holds(&self.cgroup, &|pattern| {
                facts.cgroups.iter().any(|path| covers(pattern, path))
            })
            && holds(&self.unit, &|pattern| {
                facts
                    .cgroups
                    .iter()
                    .filter_map(|path| unit_of(path))
                    .any(|unit| covers(pattern, &unit))
            })
    }
}

/// Whether a pattern covers a whole text. On a mismatch only the last `*` takes one more character, so the time is the
/// product of both lengths at worst.
fn covers(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Result<ServiceRule, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn patterns_cover_whole_texts() {
        for (pattern, text, covered) in [
            ("/opt/*/bin/orders", "/opt/shop/1.2/bin/orders", true),
            ("/opt/*", "/srv/opt/x", false),
            ("*.jar", "/srv/orders.jar", true),
            ("*.jar", "/srv/orders.jar.bak", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*ab*ab", "abababxab", true),
            ("*ab*abc", "ababab", false),
            ("**", "", true),
            ("", "", true),
            ("?", "é", true),
        ] {
            assert_eq!(covers(pattern, text), covered, "{pattern} {text}");
        }
        // A pattern made to cost time.
        assert!(!covers(&"*a".repeat(200), &"a".repeat(199)));
        assert!(covers(&"*a".repeat(200), &"a".repeat(4096)));
    }

    #[test]
    fn everything_that_a_rule_says_must_hold() {
        let facts = ProcessFacts {
            comm: "java".into(),
            exe: "/usr/lib/jvm/bin/java".into(),
            cmdline: ["java", "-jar", "/srv/orders.jar"].map(str::to_owned).into(),
            cgroups: vec![
                "/".into(),
                "/system.slice/system-shop.slice/shop@eu.service".into(),
            ],
            ..ProcessFacts::default()
        };
        for (text, matched) in [
            ("exe = '*/java'", true),
            ("exe = '*/java'\narg = '*/orders.jar'", true),
            ("exe = '*/java'\narg = '*/cart.jar'", false),
            ("arg = '-jar /srv/*'", false),
            ("comm = 'jav?'", true),
            ("comm = 'jav'", false),
            ("cgroup = '/system.slice/*'", true),
            ("cgroup = '/user.slice/*'", false),
            ("unit = 'shop@*'", true),
            ("unit = 'shop@eu.service'", true),
            ("unit = 'shop'", false),
        ] {
            let rule = rule(&format!("name = 'x'\n{text}")).unwrap();
            assert_eq!(rule.matches(&facts), matched, "{text}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, error) in [
            (
                "name = 'x'",
                "the rule for \"x\" matches nothing: give at least one of exe, arg, cgroup, comm, unit",
            ),
            ("comm = 'x'", "missing field `name`"),
            ("name = ' '\ncomm = 'x'", "name is empty"),
            (
                "name = 'x'\ncomm = ''",
                "comm is empty; leave it out, or write \"*\"",
            ),
            ("name = 'x'\ncomm = 'y'\nversion = ''", "version is empty"),
            ("name = \"a\\nb\"\ncomm = 'y'", "name has control characters"),
            (
                "name = 'x'\nexe = 'java'",
                "exe = \"java\" never matches: paths begin with / (or write \"*/java\")",
            ),
        ] {
            assert_eq!(rule(text).unwrap_err(), error, "{text}");
        }
        let long = format!("name = '{}'\ncomm = 'x'", "x".repeat(129));
        assert_eq!(rule(&long).unwrap_err(), "name is longer than 128 characters");
        assert!(
            rule("name = 'x'\ncom = 'x'")
                .unwrap_err()
                .starts_with("unknown field `com`")
        );
    }
}
