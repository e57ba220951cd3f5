//! A flame graph.

use anyhow::{Context, Result};
use inferno::flamegraph::color::{MultiPalette, Palette};
use inferno::flamegraph::{self, Options};

use super::{Profile, folded};

/// The flame graph as an SVG document, values in milliseconds, KiB or counts. Kernel frames, inlined frames and others
/// have colours of their own.
pub fn svg(profile: &Profile) -> Result<Vec<u8>> {
    let (name, unit) = profile.sample_type();
    let (count_name, factor) = match unit {
        "nanoseconds" => ("ms", 1e-6),
        "bytes" => ("KiB", 1.0 / 1024.0),
        _ => (name, 1.0),
    };
    let mut options = Options::default();
    options.title = format!("{}: {name} ({count_name})", profile.title());
    options.subtitle = Some(format!("{} s", profile.duration_ns / 1_000_000_000));
    options.count_name = count_name.to_owned();
    options.factor = factor;
    options.colors = Palette::Multi(MultiPalette::Java);
    options.deterministic = true;
    let folded = folded(profile);
    if folded.is_empty() {
        return Ok(EMPTY.as_bytes().to_vec());
    }
    let mut out = Vec::new();
    flamegraph::from_lines(&mut options, folded.lines(), &mut out).context("draw a flame graph")?;
    Ok(out)
}

const EMPTY: &str = "<?xml version=\"1.0\" standalone=\"no\"?>\n\
    <svg version=\"1.1\" width=\"600\" height=\"60\" xmlns=\"http://www.w3.org/2000/svg\">\
    <text x=\"20\" y=\"35\" font-family=\"monospace\" font-size=\"14\">No samples in this time.</text></svg>\n";
