//! Opening files that belong to somebody else.

use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::Outcome;

/// Opens a regular file of bounded size. The path is first opened without access to its contents (`O_PATH`), so that a
/// FIFO cannot block and a device has no side effect; the descriptor found to be regular is the one then read, so the
/// path cannot change in between.
pub(super) fn open_regular(proc: &Path, path: &Path, max_bytes: u64) -> Result<(File, Metadata), Outcome> {
    let handle = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| of_error(&error))?;
    open_handle(proc, &handle, max_bytes)
}

/// The same under the root directory of another process; no symbolic link in it leads out of that root.
pub(super) fn open_in_root(
    proc: &Path,
    root: &Path,
    path: &str,
    max_bytes: u64,
) -> Result<(File, Metadata), Outcome> {
    let root = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(root)
        .map_err(|error| of_error(&error))?;
    let handle = openat2(
        &root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|errno| of_error(&errno.into()))?;
    open_handle(proc, &File::from(handle), max_bytes)
}

/// The file of a descriptor that gives no access to its contents.
pub(super) fn open_handle(proc: &Path, handle: &File, max_bytes: u64) -> Result<(File, Metadata), Outcome> {
    let metadata = handle.metadata().map_err(|error| of_error(&error))?;
    if !metadata.is_file() {
        return Err(Outcome::OddFile);
    }
    if metadata.len() > max_bytes {
        return Err(Outcome::TooLarge);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(proc.join(format!("self/fd/{}", handle.as_raw_fd())))
        .map_err(|error| of_error(&error))?;
    Ok((file, metadata))
}

fn of_error(error: &std::io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::NotFound => Outcome::ProcessGone,
        _ => Outcome::ElfError,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn open(path: &Path, max: u64) -> Result<u64, Outcome> {
        open_regular(&PathBuf::from("/proc"), path, max).map(|(_, metadata)| metadata.len())
    }

    #[test]
    fn a_fifo_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("lib.so");
        let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(status.success());
        assert_eq!(open(&fifo, 1 << 20), Err(Outcome::OddFile));
    }

    #[test]
    fn only_regular_files_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, [7; 100]).unwrap();
        assert_eq!(open(&file, 100), Ok(100));
        assert_eq!(open(&file, 99), Err(Outcome::TooLarge));
        assert_eq!(open(dir.path(), 99), Err(Outcome::OddFile));
        assert_eq!(open(Path::new("/dev/zero"), 99), Err(Outcome::OddFile));
        assert_eq!(open(&dir.path().join("none"), 99), Err(Outcome::ProcessGone));
    }

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("inside"), "in").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("up")).unwrap();
        std::os::unix::fs::symlink("/inside", root.join("rooted")).unwrap();
        let open = |path| open_in_root(Path::new("/proc"), &root, path, 100).map(|(_, m)| m.len());
        assert_eq!(open("/absolute"), Err(Outcome::ProcessGone));
        assert_eq!(open("/up"), Err(Outcome::ProcessGone));
        assert_eq!(open("/rooted"), Ok(2));
    }
}
