//! Fetched debug files on disk, bounded.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A directory of the agent's own; a file in it is called after its build id.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    directory: PathBuf,
    max_bytes: u64,
}

impl Cache {
    pub(super) fn new(directory: &Path, max_bytes: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            max_bytes,
        }
    }

    /// Where the debug file of a build is, if it is there.
    pub(super) fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.debug"))
    }

    fn part(&self) -> PathBuf {
        self.directory.join("fetching.part")
    }

    /// A file to fetch into; only one at a time.
    pub(super) fn begin(&self) -> io::Result<File> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        match std::fs::remove_file(self.part()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.part())
    }

    /// Keeps what was fetched; the oldest others make room.
    pub(super) fn keep(&self, id: &str) -> io::Result<()> {
        std::fs::rename(self.part(), self.path(id))?;
        self.trim(&self.path(id))
    }

    /// Drops what was fetched.
    pub(super) fn discard(&self) {
        // Where it cannot be removed, the next one replaces it.
        let _ = std::fs::remove_file(self.part());
    }

    fn trim(&self, newest: &Path) -> io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let path = entry.path();
            // Whatever else there is is not the agent's to remove.
            if metadata.is_file() && path.extension().is_some_and(|e| e == "debug") && path != newest {
                files.push((metadata.modified()?, metadata.len(), path));
            }
        }
        files.sort_unstable();
        let mut bytes = newest.metadata()?.len() + files.iter().map(|file| file.1).sum::<u64>();
        for (_, size, path) in files {
            if bytes <= self.max_bytes {
                break;
            }
            std::fs::remove_file(path)?;
            bytes -= size;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(&dir.path().join("cache"), 250);
        let add = |id: &str, age| {
            let mut file = cache.begin().unwrap();
            file.write_all(&[7; 100]).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age))
                .unwrap();
            cache.keep(id).unwrap();
        };
        add("aa", 30);
        std::fs::write(dir.path().join("cache/notes"), [7; 1000]).unwrap();
        add("bb", 40);
        add("cc", 20);
        let there = |id: &str| cache.path(id).exists();
        assert_eq!((there("aa"), there("bb"), there("cc")), (true, false, true));
        assert!(dir.path().join("cache/notes").exists());
        cache.begin().unwrap();
        cache.discard();
        assert!(!cache.part().exists());
    }
}
