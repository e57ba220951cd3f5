//! Reads the text format of Prometheus.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// One sample line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Name of the series.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Scrape(pub Vec<Sample>);

impl Scrape {
    /// Parses a whole exposition.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| sample(line).with_context(|| format!("line {line:?}")))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// The samples of `name` whose labels include all of `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|have| have == value))
        })
    }

    /// Their sum; 0 where there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// CPU time of a service in seconds, as the kernel accounts it: without what a hypervisor took.
    #[must_use]
    pub fn cpu(&self, service: &str) -> f64 {
        let of = |mode| {
            let labels = [("service_name", service), ("mode", mode)];
            self.sum("tieback_cpu_seconds_total", &labels)
        };
        of("user") + of("system")
    }

    /// What a probe lost.
    #[must_use]
    pub fn lost(&self, probe: &str) -> f64 {
        self.lost_for(probe).values().sum()
    }

    /// The same by reason. Of two nothing needs to be missing: switches that the kernel does not tell of, and changes of connections
    /// by packets that an interrupt receives just as `conn_state` begins or ends. Counts show whether something is.
    #[must_use]
    pub fn lost_for(&self, probe: &str) -> BTreeMap<String, f64> {
        let made_up_for = |reason: &str| reason == "untold" || probe == "conn" && reason == "recursion";
        self.select("tieback_lost_total", &[("probe", probe)])
            .filter_map(|sample| Some((sample.labels.get("reason")?.clone(), sample.value)))
            .filter(|(reason, value)| !made_up_for(reason) && *value != 0.0)
            .collect()
    }

    /// The sum of a `code` metric over the functions whose name contains `function`.
    #[must_use]
    pub fn code(&self, name: &str, labels: &[(&str, &str)], function: &str) -> f64 {
        self.select(name, labels)
            .filter(|sample| {
                sample
                    .labels
                    .get("function")
                    .is_some_and(|name| name.contains(function))
            })
            .map(|sample| sample.value)
            .sum()
    }
}

fn sample(line: &str) -> Result<Sample> {
    let end = line.find(['{', ' ', '\t']).context("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, quoted) = rest.split_once("=\"").context("a label without a value")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(key.trim().to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next().context("no value")?;
    Ok(Sample {
        name: name.to_owned(),
        labels,
        value: value.parse().context("not a number")?,
    })
}

/// The text up to the closing quote, with escapes undone, and what follows the quote.
fn unquote(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped)) => value.push(escaped),
                None => break,
            },
            other => value.push(other),
        }
    }
    bail!("an unterminated label value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_labels_escapes_and_values() {
        let text = "# HELP a b\n# TYPE a counter\na{x=\"1,}\",function=\"say \\\"hi\\\" \\\\n\"} 2.5\na{x=\"2\"} 1e3 123\nb +Inf\n";
        let scrape = Scrape::parse(text).unwrap();
        assert_eq!(scrape.sum("a", &[]), 1002.5);
        assert_eq!(scrape.sum("a", &[("x", "1,}")]), 2.5);
        assert_eq!(scrape.code("a", &[], "\"hi\" \\n"), 2.5);
        assert_eq!(scrape.sum("b", &[]), f64::INFINITY);
        assert_eq!(scrape.sum("c", &[]), 0.0);
    }

    #[test]
    fn refuses_what_is_not_an_exposition() {
        for text in ["a", "a{x=\"1} 2", "a{x} 1", "a one"] {
            assert!(Scrape::parse(text).is_err(), "{text}");
        }
    }
}
