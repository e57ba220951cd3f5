//! The programs whose stacks are known.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// The programs, compiled by `programs/build.sh`; where there is no compiler, `TIEBACK_CHAINS` tells where they are.
pub struct Chains {
    folder: PathBuf,
    _made: Option<TempDir>,
}

impl Chains {
    /// Compiles them, or finds them.
    pub fn build() -> Result<Self> {
        if let Some(folder) = std::env::var_os("TIEBACK_CHAINS") {
            return Ok(Self {
                folder: folder.into(),
                _made: None,
            });
        }
        let made = tempfile::tempdir()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build.sh");
        let output = Command::new(script)
            .arg(made.path())
            .output()
            .context("start programs/build.sh")?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self {
            folder: made.path().to_owned(),
            _made: Some(made),
        })
    }

    /// One of them.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }
}
