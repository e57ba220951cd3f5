//! The Rust files of the workspace.

use super::Finding;
use anyhow::{Context as _, Result};
use std::{fs, path::Path};

/// The folders that hold our own Rust files.
const FOLDERS: [&str; 4] = ["agent", "agent-ebpf", "tests", "xtask"];

/// One file.
pub(super) struct Source {
    /// From the workspace's folder, with `/` between.
    pub(super) file: String,
    pub(super) text: String,
}

impl Source {
    #[cfg(test)]
    pub(super) fn new(file: &str, text: &str) -> Self {
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
        }
    }

    /// Every file of the workspace, in the order of their names.
    pub(super) fn all(root: &Path) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for folder in FOLDERS {
            collect(root, &root.join(folder), &mut found)?;
        }
        found.sort_by(|a, b| a.file.cmp(&b.file));
        Ok(found)
    }

    pub(super) fn parse(&self) -> Result<syn::File> {
        syn::parse_file(&self.text).with_context(|| format!("parse {}", self.file))
    }

    pub(super) fn finding(&self, line: usize, text: impl Into<String>) -> Finding {
        Finding {
            file: self.file.clone(),
            line,
            text: text.into(),
        }
    }
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                collect(root, &path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let file = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .to_string_lossy()
                .into_owned();
            found.push(Source { file, text });
        }
    }
    Ok(())
}
