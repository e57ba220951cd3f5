//! Services whose allocations are watched.

use std::fmt;
use std::str::FromStr;

/// How allocations are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllocMode {
    /// In short windows, within a budget: shares by code, totals estimated.
    #[default]
    Duty,
    /// All the time: exact totals, what lives, what leaks; it costs what the program's allocations cost.
    Full,
}

impl AllocMode {
    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Duty => "duty",
            Self::Full => "full",
        }
    }
}

impl FromStr for AllocMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "duty" => Ok(Self::Duty),
            "full" => Ok(Self::Full),
            _ => Err(format!("{text:?} is not one of duty, full")),
        }
    }
}

/// Services by name, `NAME` or `NAMESPACE/NAME`, each with `=duty` or `=full` after it; `off` is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched(pub Vec<(String, AllocMode)>);

impl Watched {
    /// How a service is watched.
    #[must_use]
    pub fn mode(&self, namespace: &str, name: &str) -> Option<AllocMode> {
        let with_namespace = format!("{namespace}/{name}");
        let wanted = |known: &str| known == name || known == with_namespace;
        self.0
            .iter()
            .find(|(known, _)| wanted(known))
            .map(|(_, mode)| *mode)
    }
}

impl FromStr for Watched {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::default());
        }
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let watched: Vec<(String, AllocMode)> = parts
            .map(|part| match part.rsplit_once('=') {
                Some((name, mode)) if !name.is_empty() => Ok((name.to_owned(), mode.parse()?)),
                Some(_) => Err(format!("{part:?} names no service")),
                None => Ok((part.to_owned(), AllocMode::default())),
            })
            .collect::<Result<_, String>>()?;
        if watched.is_empty() {
            return Err("neither a service nor off".to_owned());
        }
        Ok(Self(watched))
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("off");
        }
        let all: Vec<String> = self
            .0
            .iter()
            .map(|(name, mode)| format!("{name}={}", mode.as_str()))
            .collect();
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_read_with_their_modes() {
        let watched: Watched = "shop, web/gunicorn shop.wsgi=full".parse().unwrap();
        assert_eq!(watched.mode("", "shop"), Some(AllocMode::Duty));
        assert_eq!(watched.mode("any", "shop"), Some(AllocMode::Duty));
        assert_eq!(watched.mode("web", "gunicorn shop.wsgi"), Some(AllocMode::Full));
        assert_eq!(watched.mode("", "gunicorn shop.wsgi"), None);
        assert_eq!(watched.to_string().parse(), Ok(watched));
        assert_eq!("off".parse(), Ok(Watched::default()));
        for text in ["", " , ", "shop=some", "=full"] {
            assert!(text.parse::<Watched>().is_err(), "{text}");
        }
    }
}
