//! Values with units, as flags, the environment and the file write them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes: `256MiB`, `1GB`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => {
                return Err(format!(
                    "{text:?} is not a size such as 256MiB (units: B, KiB, MiB, GiB, kB, MB, GB)"
                ));
            }
        };
        let bytes = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor));
        bytes
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a size such as 256MiB"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => write!(f, "{}MiB", bytes >> 20),
            bytes => write!(f, "{bytes}B"),
        }
    }
}

/// A share: `1%`, `0.5%`. The sign is not optional, because `1` could be anything.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Percent(pub f64);

impl Percent {
    /// As a share of one.
    #[must_use]
    pub fn ratio(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text
            .strip_suffix('%')
            .and_then(|number| number.trim().parse::<f64>().ok());
        number
            .filter(|number| number.is_finite() && *number >= 0.0)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not a percentage such as 1%"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A length of time: `10s`, `15m`, `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| format!("{text:?} is not a time such as 10s, 15m or 1h"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// How exactly system calls are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SyscallMode {
    /// Exact while the cost is inside the budget, else in windows, with counts scaled.
    #[default]
    Auto,
    /// Every call, whatever it costs.
    Exact,
    /// Not at all.
    Off,
}

impl FromStr for SyscallMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "exact" => Ok(Self::Exact),
            "off" => Ok(Self::Off),
            _ => Err(format!("{text:?} is not one of auto, exact, off")),
        }
    }
}

impl fmt::Display for SyscallMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Off => "off",
        })
    }
}

/// Addresses of servers, in order: `off`, or some with spaces or commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Urls(pub Vec<String>);

impl FromStr for Urls {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::default());
        }
        let urls: Vec<&str> = text
            .split([' ', ','])
            .map(str::trim)
            .filter(|url| !url.is_empty())
            .collect();
        let host = |url: &str| url.split_once("://").map(|(_, host)| host.to_owned());
        for url in &urls {
            let known = url.starts_with("http://") || url.starts_with("https://");
            if !known || host(url).is_none_or(|host| host.is_empty() || host.starts_with('/')) {
                return Err(format!(
                    "{url:?} is not an address such as https://debuginfod.example.com"
                ));
            }
        }
        if urls.is_empty() {
            return Err("neither an address nor off".to_owned());
        }
        Ok(Self(urls.into_iter().map(str::to_owned).collect()))
    }
}

impl fmt::Display for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("off")
        } else {
            f.write_str(&self.0.join(" "))
        }
    }
}

/// A path from the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsolutePath(pub PathBuf);

impl FromStr for AbsolutePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(format!("{text:?} is not an absolute path"))
        }
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        for (text, bytes) in [
            ("4096", 4096),
            ("256MiB", 256 << 20),
            ("2 GiB", 2 << 30),
            ("1kB", 1000),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)));
        }
        for text in ["", "MiB", "1MIB", "1.5GiB", "-1", "99999999999999GiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!("0.5%".parse(), Ok(Percent(0.5)));
        for text in ["1", "%", "-1%", "NaN%", "inf%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
        assert_eq!("1h 30m".parse(), Ok(Span(Duration::from_secs(5400))));
        assert!("10".parse::<Span>().is_err());
        assert!("run/x".parse::<AbsolutePath>().is_err());
        let two = Urls(vec!["http://a:8002".into(), "https://b/x".into()]);
        assert_eq!("http://a:8002, https://b/x".parse(), Ok(two));
        assert_eq!("off".parse(), Ok(Urls::default()));
        for text in [
            "",
            " ",
            "debuginfod",
            "file:///x",
            "http://",
            "https:///x",
            "off http://a",
        ] {
            assert!(text.parse::<Urls>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        assert_eq!(Bytes(256 << 20).to_string().parse(), Ok(Bytes(256 << 20)));
        assert_eq!(Bytes(1000).to_string().parse(), Ok(Bytes(1000)));
        assert_eq!(Percent(0.25).to_string().parse(), Ok(Percent(0.25)));
        for mode in [SyscallMode::Auto, SyscallMode::Exact, SyscallMode::Off] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
    }
}
