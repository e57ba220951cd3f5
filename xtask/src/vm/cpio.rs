//! Writes the archive that Linux unpacks at boot: cpio in the `newc` form
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::{Component, Path},
};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// An archive that is being written.
pub(super) struct Archive<W> {
    to: W,
    inode: u32,
    known: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            inode: 0,
            known: BTreeSet::new(),
        }
    }

    /// Adds a file (readable and executable by all) and the folders above it. A path that is there already is kept.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.with_parents(path, PROGRAM, content)
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, target: &str) -> io::Result<()> {
        self.with_parents(path, LINK, target.as_bytes())
    }

    /// Adds a folder and those above it.
    pub(super) fn folder(&mut self, path: &Path) -> io::Result<()> {
        self.with_parents(path, FOLDER, &[])
    }

    /// Whether this path was added.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.known.contains(&name(path))
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn with_parents(&mut self, path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
        let path = name(path);
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default();
            if self.known.insert(parent.to_owned()) {
                self.entry(parent, FOLDER, &[])?;
            }
        }
        if self.known.insert(path.clone()) {
            self.entry(&path, mode, content)?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let too_long = |_| io::Error::other(format!("{name} is too long for a cpio archive"));
        let size = u32::try_from(content.len()).map_err(too_long)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
        self.inode += 1;
        // Magic, then: inode, mode, uid, gid, links, time, size, device (2), node's device (2), name's size, checksum.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.to.write_all(header.as_bytes())?;
        self.to.write_all(name.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.to.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.to
            .write_all([0; 3].get(..(4 - written % 4) % 4).unwrap_or_default())
    }
}

/// Names in an archive have no leading slash.
fn name(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(part) => Some(part.to_string_lossy()),
        _ => None,
    });
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::path::Path;

    #[test]
    fn entries_are_aligned_and_parents_come_first() {
        let mut archive = Archive::new(Vec::new());
        archive.file(Path::new("/a/b/x"), b"hello").unwrap();
        archive.file(Path::new("/a/b/x"), b"again").unwrap();
        archive.link(Path::new("/a/y"), "b/x").unwrap();
        assert!(archive.has(Path::new("/a/b")) && !archive.has(Path::new("/b")));
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert!(starts.iter().all(|at| at % 4 == 0), "{starts:?}");
        let names: Vec<_> = starts
            .iter()
            .map(|at| text[at + 110..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/x", "a/y", "TRAILER!!!"]);
        assert_eq!(&text[starts[2] + 6 + 6 * 8..][..8], "00000005");
    }
}
