//! Where things of this workspace are, as cargo tells.

use crate::command;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The part of `cargo metadata` that is used.
#[derive(Deserialize)]
pub(crate) struct Workspace {
    /// Where cargo builds.
    pub(crate) target_directory: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn load() -> Result<Self> {
        let text = command::stdout(
            command::cargo()
                .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
                .current_dir(root()),
        )?;
        serde_json::from_str(&text).context("read the output of cargo metadata")
    }

    /// Names of the integration tests of a package.
    pub(crate) fn integration_tests(&self, package: &str) -> Vec<&str> {
        let targets = self
            .packages
            .iter()
            .filter(|p| p.name == package)
            .flat_map(|p| &p.targets);
        targets
            .filter(|t| t.kind.iter().any(|kind| kind == "test"))
            .map(|t| t.name.as_str())
            .collect()
    }
}
