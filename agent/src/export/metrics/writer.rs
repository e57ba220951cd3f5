//! Prometheus' text format (version 0.0.4).
//!
//! Written straight into one buffer: the `prometheus` crate's encoder wants every label of every series as an
//! allocated object first, which at 140,000 series costs more than a whole scrape may.

use std::fmt::Write;

/// A metric's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Counter,
    Gauge,
    Histogram,
}

/// A sample's value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Int(u64),
    /// Nanoseconds, written as seconds with every digit.
    Nanos(u64),
    /// The same where sums of very many may be.
    Sum(u128),
    Float(f64),
}

/// A metric's name, type and help text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Type,
    pub(super) help: &'static str,
}

/// The text so far.
pub(super) struct Writer {
    out: String,
}

impl Writer {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            out: String::with_capacity(capacity),
        }
    }

    /// Begins a metric; all its samples follow.
    pub(super) fn family(&mut self, family: Family) {
        let kind = match family.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        for part in [
            "# HELP ",
            family.name,
            " ",
            family.help,
            "\n# TYPE ",
            family.name,
            " ",
            kind,
            "\n",
        ] {
            self.out.push_str(part);
        }
    }

    /// A sample with labels that are already written (`a="b",c="d"`) and more that are not.
    pub(super) fn sample(
        &mut self,
        name: &str,
        suffix: &str,
        ready: &str,
        more: &[(&str, &str)],
        value: Value,
    ) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        if !ready.is_empty() || !more.is_empty() {
            self.out.push('{');
            self.out.push_str(ready);
            for (at, (name, value)) in more.iter().enumerate() {
                if at > 0 || !ready.is_empty() {
                    self.out.push(',');
                }
                label(&mut self.out, name, value);
            }
            self.out.push('}');
        }
        self.out.push(' ');
        number(&mut self.out, value);
        self.out.push('\n');
    }

    pub(super) fn finish(self) -> String {
        self.out
    }
}

/// Labels, written once for many samples.
pub(super) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (at, (name, value)) in pairs.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        label(&mut out, name, value);
    }
    out
}

fn label(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push_str("=\"");
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        out.push_str(&rest[..at]);
        out.push_str(match rest.as_bytes()[at] {
            b'\\' => "\\\\",
            b'"' => "\\\"",
            _ => "\\n",
        });
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
    out.push('"');
}

fn integer(out: &mut String, value: u64) {
    // Writing to a String cannot fail.
    let _ = write!(out, "{value}");
}

fn number(out: &mut String, value: Value) {
    match value {
        Value::Int(value) => integer(out, value),
        Value::Float(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Nanos(ns) => seconds(out, ns / NANOS, ns % NANOS),
        Value::Sum(ns) => {
            let (whole, rest) = (ns / u128::from(NANOS), ns % u128::from(NANOS));
            seconds(out, u64::try_from(whole).unwrap_or(u64::MAX), rest as u64);
        }
    }
}

const NANOS: u64 = 1_000_000_000;

/// Seconds and the nanoseconds behind them.
fn seconds(out: &mut String, whole: u64, mut rest: u64) {
    integer(out, whole);
    if rest > 0 {
        let mut digits = *b".000000000";
        for digit in digits[1..].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        out.push_str(str::from_utf8(&digits).unwrap_or(".0").trim_end_matches('0'));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Value) -> String {
        let mut out = String::new();
        number(&mut out, value);
        out
    }

    #[test]
    fn nanoseconds_keep_every_digit() {
        for (ns, seconds) in [
            (0, "0"),
            (1, "0.000000001"),
            (1_500_000_000, "1.5"),
            (10_000_000_000, "10"),
            (u64::MAX, "18446744073.709551615"),
        ] {
            assert_eq!(text(Value::Nanos(ns)), seconds);
            assert_eq!(text(Value::Sum(ns.into())), seconds);
        }
        let years = u128::from(u64::MAX) * 10;
        assert_eq!(text(Value::Sum(years)), "184467440737.09551615");
        assert_eq!(
            (text(Value::Float(0.25)), text(Value::Int(7))),
            ("0.25".into(), "7".into())
        );
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(labels(&[("a", "x\"y\\z\n"), ("b", "")]), r#"a="x\"y\\z\n",b="""#);
    }
}
