//! The files that a process runs code of.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use super::Host;

/// A file that this module opened, and checked.
pub type OpenFile = File;

/// Mappings that are looked at, at most.
const MOST: usize = 16_384;
/// Threads that are asked for their children, at most.
const MOST_TASKS: usize = 256;

/// Executable memory with a file behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedFile {
    /// First address in the process.
    pub start: u64,
    /// Offset of `start` in the file.
    pub offset: u64,
    /// Inode of the file.
    pub inode: u64,
    /// Path under the process's root, without the mark of a deleted file.
    pub path: String,
}

impl Host {
    /// Files of which a process has code mapped, in the order of their addresses.
    pub fn mapped_files(&self, pid: u32) -> io::Result<Vec<MappedFile>> {
        let text = self.read(&format!("proc/{pid}/maps"), 16 << 20)?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().filter_map(mapped).take(MOST).collect())
    }

    /// Opens a mapped file under the root of its process: a regular file, and the one that is mapped.
    pub fn open_mapped(&self, pid: u32, mapped: &MappedFile) -> io::Result<File> {
        let path = self.path(&format!("proc/{pid}/root{}", mapped.path));
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(path)?;
        let about = file.metadata()?;
        if !about.is_file() || about.ino() != mapped.inode {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "another file than the one that is mapped has its path now",
            ));
        }
        Ok(file)
    }

    /// A path that leads to the very file that is open, whatever has its own path now.
    pub fn own_path(file: &File) -> std::path::PathBuf {
        format!("/proc/self/fd/{}", file.as_raw_fd()).into()
    }

    /// Inode, size and time of change: what tells one file, in one state, from others.
    pub fn file_state(file: &File) -> io::Result<(u64, u64, i64)> {
        let about = file.metadata()?;
        Ok((about.ino(), about.len(), about.mtime()))
    }

    /// Processes that a process has started and that still run.
    pub fn children(&self, pid: u32) -> io::Result<Vec<u32>> {
        let mut children = Vec::new();
        for task in std::fs::read_dir(self.path(&format!("proc/{pid}/task")))?.take(MOST_TASKS) {
            // A thread that is gone has no children.
            let text = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children.extend(
                text.split_ascii_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
        Ok(children)
    }

    /// Path of what a process runs.
    pub fn program_path(&self, pid: u32) -> io::Result<std::path::PathBuf> {
        std::fs::read_link(self.path(&format!("proc/{pid}/exe")))
    }

    /// CPU seconds that a process has used so far, all its threads together, dead ones included.
    pub fn cpu_seconds(&self, pid: u32) -> io::Result<f64> {
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        let mut clock = 0;
        // SAFETY: the function writes a clock id to where it is told, which is a variable of that type.
        let error = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: as above, for a time.
        if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
    }
}

fn mapped(line: &str) -> Option<MappedFile> {
    let mut fields = line.splitn(6, ' ');
    let (start, _) = fields.next()?.split_once('-')?;
    if fields.next()?.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let path = fields.next()?.trim_start();
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    (inode != 0 && path.starts_with('/')).then(|| MappedFile {
        start: u64::from_str_radix(start, 16).unwrap_or(0),
        offset,
        inode,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_files_is_listed() {
        let line = "7f0000010000-7f0000020000 r-xp 00010000 00:1f 99    /app/a lib.so (deleted)";
        let wanted = MappedFile {
            start: 0x7f00_0001_0000,
            offset: 0x10000,
            inode: 99,
            path: "/app/a lib.so".to_owned(),
        };
        assert_eq!(mapped(line), Some(wanted));
        for other in [
            "55d0c0000000-55d0c0002000 r--p 00000000 fe:01 42   /usr/bin/a",
            "7f0000000000-7f0000001000 rwxp 00000000 00:00 0",
            "7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0   [vdso]",
        ] {
            assert_eq!(mapped(other), None);
        }
    }

    #[test]
    fn own_code_is_opened_and_own_time_grows() {
        let host = Host::new("/");
        let own = std::process::id();
        let files = host.mapped_files(own).unwrap();
        assert!(host.open_mapped(own, &files[0]).is_ok());
        let wrong = MappedFile {
            inode: 1,
            ..files[0].clone()
        };
        assert!(host.open_mapped(own, &wrong).is_err());
        let before = host.cpu_seconds(own).unwrap();
        while host.cpu_seconds(own).unwrap() == before {}
        assert!(host.cpu_seconds(4_194_305).is_err());
    }
}
