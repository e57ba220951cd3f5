//! What a request for a profile asks for.

use std::time::Duration;

use anyhow::Result;

use super::profile::{self, Profile};
use crate::aggregate::{ProfileQuery, Service, Snapshot, StackKind, WindowProfile};

/// How far back a profile reaches if nothing else is asked for.
const DEFAULT_SINCE: Duration = Duration::from_secs(300);

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Svg,
    Pprof,
    Folded,
}

/// A valid request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProfileRequest {
    namespace: String,
    service: String,
    version: Option<String>,
    kind: StackKind,
    pub(super) format: Format,
    since: Duration,
    idle: bool,
    net: bool,
    /// `since` was asked for.
    timed: bool,
}

impl ProfileRequest {
    /// Reads path and query; the error lists what would have been valid.
    pub(super) fn parse(namespace: String, service: String, kind: &str, query: &str) -> Result<Self, String> {
        let Some(kind) = StackKind::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == kind)
        else {
            let valid: Vec<&str> = StackKind::ALL.iter().map(|kind| kind.as_str()).collect();
            return Err(format!("no profile {kind:?}; valid ones: {}", valid.join(", ")));
        };
        let namespace = if namespace == "-" {
            String::new()
        } else {
            namespace
        };
        let mut request = Self {
            namespace,
            service,
            version: None,
            kind,
            format: Format::Svg,
            since: DEFAULT_SINCE,
            idle: false,
            net: false,
            timed: false,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            request.set(name, &decode(value))?;
            request.timed |= matches!(name, "since" | "seconds");
        }
        Ok(request)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "format" => {
                self.format = match value {
                    "svg" => Format::Svg,
                    "pprof" => Format::Pprof,
                    "folded" => Format::Folded,
                    _ => return Err(format!("no format {value:?}; valid ones: svg, pprof, folded")),
                }
            }
            "since" => self.since = positive(name, value, humantime::parse_duration(value).ok())?,
            // What `go tool pprof -seconds N` asks for.
            "seconds" => self.since = positive(name, value, value.parse().ok().map(Duration::from_secs))?,
            "version" => self.version = Some(value.to_owned()),
            "idle" => self.idle = truth(name, value)?,
            "net" if self.kind == StackKind::Memory => self.net = truth(name, value)?,
            _ => {
                return Err(format!(
                    "no parameter {name:?}; valid ones: format, since, seconds, version, idle, for memory also net"
                ));
            }
        }
        Ok(())
    }

    /// Merges the windows, `None` for a service that is not known.
    pub(super) fn profile(&self, snapshot: &Snapshot) -> Option<WindowProfile> {
        if let Some(version) = &self.version
            && !snapshot
                .find(&self.namespace, &self.service)
                .any(|s| s.service.version == *version)
        {
            return None;
        }
        let query = ProfileQuery {
            namespace: &self.namespace,
            name: &self.service,
            version: self.version.as_deref(),
            kind: self.kind,
            since: self.since,
            idle: self.idle,
        };
        if self.net {
            snapshot.net_profile(&query, self.timed.then_some(self.since))
        } else {
            snapshot.profile(&query)
        }
    }

    /// Says which service is not known.
    pub(super) fn unknown(&self) -> String {
        let version = self
            .version
            .as_ref()
            .map(|version| format!(" version {version:?}"))
            .unwrap_or_default();
        let namespace = if self.namespace.is_empty() {
            "-"
        } else {
            &self.namespace
        };
        format!(
            "no service {:?}{version} in namespace {namespace:?} (- is none); /api/v1/services lists all",
            self.service
        )
    }

    /// Writes the profile in the format that was asked for.
    pub(super) fn render(&self, profile: &WindowProfile) -> Result<Vec<u8>> {
        let service = Service {
            name: profile.name.clone(),
            namespace: profile.namespace.clone(),
            version: self.version.clone().unwrap_or_default(),
        };
        match self.format {
            Format::Svg => profile::svg(&Profile::new(service, profile)),
            Format::Pprof => profile::pprof(&Profile::all(&service, profile)),
            Format::Folded => Ok(profile::folded(&Profile::new(service, profile)).into_bytes()),
        }
    }

    /// A name for the file, of harmless characters only.
    pub(super) fn file_name(&self) -> String {
        let name: String = self
            .service
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                    c
                } else {
                    '_'
                }
            })
            .take(100)
            .collect();
        format!("{name}.{}.pb.gz", self.kind.as_str())
    }
}

fn truth(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{name} is true or false, not {value:?}")),
    }
}

fn positive(name: &str, value: &str, duration: Option<Duration>) -> Result<Duration, String> {
    duration.filter(|duration| !duration.is_zero()).ok_or_else(|| {
        let example = if name == "since" { "5m or 90s" } else { "30" };
        format!("{name} is a time like {example}, not {value:?}")
    })
}

/// Percent-decoding of a query's value; `+` is a space there.
fn decode(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        match (byte, digit(ahead.next()), digit(ahead.next())) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = ahead;
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Percent-encoding of one part of a path.
pub(super) fn encode(part: &str) -> String {
    let mut out = String::new();
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, query: &str) -> Result<ProfileRequest, String> {
        ProfileRequest::parse("-".into(), "shop".into(), kind, query)
    }

    #[test]
    fn defaults_and_everything_set() {
        let request = parse("wait", "").expect("valid");
        assert_eq!((request.namespace.as_str(), request.format), ("", Format::Svg));
        assert_eq!(
            (request.since, request.idle, request.version),
            (DEFAULT_SINCE, false, None)
        );
        let request = parse("cpu", "format=pprof&since=1m%2030s&version=1.2%2Bab&idle=true").expect("valid");
        assert_eq!((request.kind, request.format), (StackKind::Cpu, Format::Pprof));
        assert_eq!((request.since, request.idle), (Duration::from_secs(90), true));
        assert_eq!(request.version.as_deref(), Some("1.2+ab"));
        assert_eq!(
            parse("cpu", "seconds=30").expect("valid").since,
            Duration::from_secs(30)
        );
    }

    #[test]
    fn errors_list_what_is_valid() {
        for (kind, query, expected) in [
            ("waits", "", "alloc, alloc_objects, alloc_live, fd"),
            ("wait", "format=png", "svg, pprof, folded"),
            ("wait", "since=yesterday", "5m or 90s"),
            ("wait", "since=0s", "5m or 90s"),
            ("wait", "seconds=-1", "like 30"),
            ("wait", "sicne=5m", "format, since, seconds, version, idle"),
            ("wait", "idle=maybe", "true or false"),
            ("wait", "net=true", "for memory also net"),
            ("memory", "net=maybe", "net is true or false"),
        ] {
            let error = parse(kind, query).expect_err(query);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn encoding_round_trips() {
        for text in ["plain", "a b+c/d%", "ü\"<>", "100%"] {
            assert_eq!(decode(&encode(text)), text);
        }
        assert_eq!(decode("%zz%4"), "%zz%4");
    }
}
