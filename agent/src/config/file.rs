//! The configuration file, checked key by key so that every complaint names its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fields::fields_of;
use super::settings::Settings;

/// One `[[service]]` or `[[owner]]` table, to be read by the stage that knows its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleTable {
    /// `FILE:LINE` of its first value.
    pub origin: String,
    /// What it says.
    pub table: toml::Table,
}

impl RuleTable {
    /// All rules of a kind, in their order.
    pub fn read_all<T: DeserializeOwned>(tables: &[Self]) -> Result<Vec<T>> {
        tables.iter().map(Self::read).collect()
    }

    /// The rule in the shape that its stage gives it; errors name the place in the file.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        let valid = fields_of::<T>();
        if let Some(key) = self.table.keys().find(|key| !valid.contains(&key.as_str()))
            && !valid.is_empty()
        {
            bail!("{}", unknown(&self.origin, key, valid));
        }
        self.table
            .clone()
            .try_into()
            .map_err(|error| anyhow!("{}: {}", self.origin, one_line(&error)))
    }
}

/// What a file says.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    path: PathBuf,
    pub(super) settings: Settings,
    /// Line of each setting.
    lines: BTreeMap<String, usize>,
    pub(super) probes: BTreeMap<String, bool>,
    pub(super) services: Vec<RuleTable>,
    pub(super) owners: Vec<RuleTable>,
}

const TABLES: &[&str] = &["service", "owner", "probes"];

impl File {
    pub(super) fn read(path: &Path, probes: &[&str]) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(path, &text, probes)
    }

    /// `FILE:LINE` of a setting.
    pub(super) fn origin(&self, key: &str) -> Option<String> {
        self.lines
            .get(key)
            .map(|line| format!("{}:{line}", self.path.display()))
    }

    pub(super) fn parse(path: &Path, text: &str, probes: &[&str]) -> Result<Self> {
        let place = |at: usize| format!("{}:{}", path.display(), line(text, at));
        let document = DeTable::parse(text).map_err(|error| {
            anyhow!(
                "{}: {}",
                place(error.span().map_or(0, |span| span.start)),
                one_line(&error)
            )
        })?;
        let mut file = Self {
            path: path.to_owned(),
            ..Self::default()
        };
        for (key, value) in document.get_ref() {
            let name = key.get_ref().as_ref();
            let here = || place(key.span().start);
            match name {
                "service" => file.services = rules(name, value, &place)?,
                "owner" => file.owners = rules(name, value, &place)?,
                "probes" => file.probes = probe_tables(value, probes, &place)?,
                _ => {
                    let Some(scalar) = scalar(value.get_ref()) else {
                        if Settings::KEYS.contains(&name) {
                            bail!("{}: {name} must be a string or a number", here());
                        }
                        bail!("{}", unknown(&here(), name, Settings::KEYS.iter().chain(TABLES)));
                    };
                    match file.settings.set(name, &scalar) {
                        Some(set) => set.map_err(|error| anyhow!("{}: {name}: {error}", here()))?,
                        None => bail!("{}", unknown(&here(), name, Settings::KEYS.iter().chain(TABLES))),
                    }
                    file.lines.insert(name.to_owned(), line(text, key.span().start));
                }
            }
        }
        Ok(file)
    }
}

/// The text of a string or a number.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.as_str().replace('_', "")),
        DeValue::Float(number) => Some(number.as_str().replace('_', "")),
        _ => None,
    }
}

fn rules(
    name: &str,
    value: &Spanned<DeValue<'_>>,
    place: &impl Fn(usize) -> String,
) -> Result<Vec<RuleTable>> {
    let DeValue::Array(rules) = value.get_ref() else {
        bail!(
            "{}: write [[{name}]], with two brackets: there can be several",
            place(value.span().start)
        );
    };
    rules
        .iter()
        .map(|rule| {
            let origin = place(rule.span().start);
            match own(rule.get_ref()).map_err(|error| anyhow!("{origin}: {error}"))? {
                toml::Value::Table(table) => Ok(RuleTable { origin, table }),
                _ => bail!("{origin}: {name} holds tables: write [[{name}]]"),
            }
        })
        .collect()
}

/// A value without its spans.
fn own(value: &DeValue<'_>) -> Result<toml::Value> {
    Ok(match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            let number = i64::from_str_radix(&digits, number.radix());
            toml::Value::Integer(number.with_context(|| format!("{digits} is too large"))?)
        }
        DeValue::Float(number) => toml::Value::Float(number.as_str().replace('_', "").parse()?),
        DeValue::Boolean(value) => toml::Value::Boolean(*value),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(values) => toml::Value::Array(
            values
                .iter()
                .map(|value| own(value.get_ref()))
                .collect::<Result<_>>()?,
        ),
        DeValue::Table(table) => {
            let entries = table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().to_string(), own(value.get_ref())?)));
            toml::Value::Table(entries.collect::<Result<_>>()?)
        }
    })
}

fn probe_tables(
    value: &Spanned<DeValue<'_>>,
    known: &[&str],
    place: &impl Fn(usize) -> String,
) -> Result<BTreeMap<String, bool>> {
    let Some(tables) = value.get_ref().as_table() else {
        bail!(
            "{}: write [probes.NAME] and under it enabled = true or false",
            place(value.span().start)
        );
    };
    let mut probes = BTreeMap::new();
    for (name, value) in tables {
        let here = place(name.span().start);
        let name = name.get_ref().as_ref();
        if !known.contains(&name) {
            bail!(
                "{}",
                unknown(
                    &here,
                    &format!("probes.{name}"),
                    known.iter().map(|k| format!("probes.{k}"))
                )
            );
        }
        let Some(table) = value.get_ref().as_table() else {
            bail!("{here}: write [probes.{name}] and under it enabled = true or false");
        };
        for (key, value) in table {
            let here = place(key.span().start);
            if key.get_ref() != "enabled" {
                bail!("{}", unknown(&here, key.get_ref(), ["enabled"]));
            }
            let Some(enabled) = value.get_ref().as_bool() else {
                bail!("{here}: probes.{name}.enabled is true or false");
            };
            probes.insert(name.to_owned(), enabled);
        }
    }
    Ok(probes)
}

/// Names the nearest valid key, or all of them if none is near.
fn unknown(here: &str, key: &str, valid: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let valid: Vec<String> = valid.into_iter().map(|valid| valid.as_ref().to_owned()).collect();
    let wanted = key.replace('-', "_");
    let nearest = valid
        .iter()
        .map(|valid| (strsim::jaro_winkler(&wanted, valid), valid))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 0.8);
    match nearest {
        Some((_, nearest)) => format!("{here}: unknown key {key:?}; did you mean {nearest:?}?"),
        None => format!("{here}: unknown key {key:?}; valid ones: {}", valid.join(", ")),
    }
}

fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', "; ")
}
