//! Debug files of their own, where distributions and build systems put them.
//!
//! What a file says chooses nothing but a name in three directories, and what is found there counts only if it belongs to
//! the file: the same build id, or the checksum.

use std::fs::{File, Metadata};
use std::path::Path;

use super::link::Link;
use super::{DebugFiles, Wanted};
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::{FileIdentity, Headers, identity};
use crate::symbolize::image::Image;
use crate::symbolize::module::Via;
use crate::symbolize::open::{open_in_root, open_regular};
use crate::symbolize::{DebugFile, Outcome, SymbolizerConfig};

/// Where distributions put the debug files of what they ship.
const DIRECTORY: &str = "/usr/lib/debug";

/// The debug file of a mapped file, and whether it has symbols.
pub(super) fn find(
    files: &mut DebugFiles,
    config: &SymbolizerConfig,
    via: Via<'_>,
    file: &File,
    headers: &Headers,
    wanted: Wanted,
    until: CpuTime,
) -> Option<(Image, bool)> {
    let link = Link::read(file, headers);
    let own_root = config.proc.join(via.pid.to_string()).join("root");
    let roots = [via.alive.then_some(own_root.as_path()), Some(&config.root)];
    let mut search = Search {
        files,
        config,
        build_id: headers.build_id.as_deref(),
        link: link.as_ref(),
        wanted,
        until,
        seen: Vec::new(),
    };
    let by_id = headers.build_id.as_deref().and_then(path_of_id);
    let by_link = link
        .as_ref()
        .map_or(Vec::new(), |link| paths_of_link(&via.mapping.path, &link.name));
    let by_id = by_id.iter().map(|path| (path, DebugFile::BuildId));
    let ways = by_id.chain(by_link.iter().map(|path| (path, DebugFile::DebugLink)));
    // A container knows best what it runs, so its own root is first.
    for root in roots.into_iter().flatten() {
        for (path, how) in ways.clone() {
            if let Some(found) = search.at(root, path, how) {
                return Some(found);
            }
        }
    }
    search.fetched(headers.build_id.as_deref()?)
}

/// `/usr/lib/debug/.build-id/xx/yyyy.debug`.
fn path_of_id(id: &str) -> Option<String> {
    let (first, rest) = id.split_at_checked(2)?;
    (!rest.is_empty()).then(|| format!("{DIRECTORY}/.build-id/{first}/{rest}.debug"))
}

/// In the directory of the file, in `.debug` there, and in that of the distribution.
fn paths_of_link(mapped: &str, name: &str) -> Vec<String> {
    let Some((directory, _)) = mapped.rsplit_once('/').filter(|_| mapped.starts_with('/')) else {
        return Vec::new();
    };
    vec![
        format!("{directory}/{name}"),
        format!("{directory}/.debug/{name}"),
        format!("{DIRECTORY}{directory}/{name}"),
    ]
}

struct Search<'a> {
    files: &'a mut DebugFiles,
    config: &'a SymbolizerConfig,
    build_id: Option<&'a str>,
    link: Option<&'a Link>,
    wanted: Wanted,
    until: CpuTime,
    /// The host's files are often the process's own: each is judged once.
    seen: Vec<FileIdentity>,
}

impl Search<'_> {
    fn at(&mut self, root: &Path, path: &str, how: DebugFile) -> Option<(Image, bool)> {
        let opened = open_in_root(&self.config.proc, root, path, self.config.max_file_bytes);
        self.take(opened, how)
    }

    /// What was fetched from a server; what was not is asked for.
    fn fetched(&mut self, id: &str) -> Option<(Image, bool)> {
        let path = self.files.client.as_ref()?.path(id);
        let opened = open_regular(&self.config.proc, &path, self.config.max_file_bytes);
        let missing = opened.is_err();
        let found = self.take(opened, DebugFile::Debuginfod);
        if missing && let Some(client) = &mut self.files.client {
            client.want(id);
        }
        found
    }

    fn take(&mut self, opened: Result<(File, Metadata), Outcome>, how: DebugFile) -> Option<(Image, bool)> {
        match opened.and_then(|(file, metadata)| self.judge(&file, &metadata)) {
            Ok(Some(found)) => {
                self.files.count(how);
                Some(found)
            }
            // What is not there is no news.
            Ok(None) | Err(Outcome::ProcessGone) => None,
            Err(why) => {
                self.files.count(DebugFile::of(why));
                None
            }
        }
    }

    fn judge(&mut self, file: &File, metadata: &Metadata) -> Result<Option<(Image, bool)>, Outcome> {
        let identity = identity(metadata);
        if self.seen.contains(&identity) {
            return Ok(None);
        }
        self.seen.push(identity);
        let headers = Headers::read(file)?;
        if !self.belongs(file, &headers)? {
            self.files.count(DebugFile::Mismatch);
            return Ok(None);
        }
        if !self.wanted.in_file(&headers) {
            return Ok(None);
        }
        let image = headers.copy(file, metadata.len(), self.config.max_image_bytes, self.until)?;
        Ok(Some((image, headers.has(".symtab"))))
    }

    fn belongs(&self, file: &File, headers: &Headers) -> Result<bool, Outcome> {
        match (self.build_id, headers.build_id.as_deref(), self.link) {
            (Some(own), Some(found), _) => Ok(own == found),
            (_, _, Some(link)) => link.is(file, self.until),
            _ => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_debug_files_are() {
        assert_eq!(
            path_of_id("abcdef01").unwrap(),
            "/usr/lib/debug/.build-id/ab/cdef01.debug"
        );
        assert_eq!((path_of_id("ab"), path_of_id("a")), (None, None));
        assert_eq!(
            paths_of_link("/opt/shop/bin/shop", "shop.debug"),
            [
                "/opt/shop/bin/shop.debug",
                "/opt/shop/bin/.debug/shop.debug",
                "/usr/lib/debug/opt/shop/bin/shop.debug"
            ]
        );
        assert_eq!(paths_of_link("/shop", "x")[0], "/x");
        assert!(paths_of_link("memfd:x", "x").is_empty());
    }
}
