//! How each probe ended: plain values, for `/status`, `/metrics` and `tieback doctor`.

use serde::Serialize;

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Attached.
    Ok,
    /// The kernel lacks something that it needs.
    Unsupported,
    /// It should have worked and did not.
    Broken,
    /// Switched off by configuration or by the kill switch.
    Disabled,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: &'static [Self] = &[Self::Ok, Self::Unsupported, Self::Broken, Self::Disabled];

    /// The label value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unsupported => "unsupported",
            Self::Broken => "broken",
            Self::Disabled => "disabled",
        }
    }
}

/// A probe's verdict with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeStatus {
    /// Name of the probe.
    pub probe: &'static str,
    /// What it measures.
    pub help: &'static str,
    /// What became of it.
    pub verdict: Verdict,
    /// Why, empty when it is `ok`.
    pub reason: String,
}
