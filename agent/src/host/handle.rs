//! Files by their number: for one whose number is all that is known of it, because the process that had it open is gone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Handles that tell a file by a number of 32 bits and by its generation (`include/linux/exportfs.h`).
const INO32_GEN: i32 = 1;
/// The same with a number of 64 bits, of XFS.
const XFS_INO64_GEN: i32 = 0x81;
/// Mounts that are tried.
const MOST_MOUNTS: usize = 4;

/// `struct file_handle` with room for what is used here.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    handle: [u32; 3],
}

/// A filesystem that is mounted.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    at: PathBuf,
    kind: String,
}

/// Opens the file with this number on the filesystem of this device, without access to its contents (`O_PATH`). Needs
/// `CAP_DAC_READ_SEARCH`.
pub(crate) fn open_by_number(
    proc: &Path,
    device: (u32, u32),
    inode: u64,
    generation: u32,
) -> io::Result<File> {
    // As the first process sees them, because the agent may have a mount namespace of its own; and as the agent does, where the
    // first one's root is closed to it.
    by_mounts_of(&proc.join("1"), device, inode, generation)
        .or_else(|_| by_mounts_of(&proc.join("self"), device, inode, generation))
}

/// The same by the mounts that one process sees.
fn by_mounts_of(process: &Path, device: (u32, u32), inode: u64, generation: u32) -> io::Result<File> {
    let text = fs::read_to_string(process.join("mountinfo"))?;
    let mut last = io::ErrorKind::NotFound.into();
    for mount in mounts(&text, device).into_iter().take(MOST_MOUNTS) {
        let Some(mut handle) = handle(&mount.kind, inode, generation) else {
            continue;
        };
        let at = process
            .join("root")
            .join(mount.at.strip_prefix("/").unwrap_or(&mount.at));
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(at)
            .and_then(|mount| open(&mount, &mut handle));
        match opened {
            Ok(file) => return Ok(file),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open(mount: &File, handle: &mut Handle) -> io::Result<File> {
    // SAFETY: the handle is as long as it says, and laid out as the call wants it.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            std::ptr::from_mut(handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call gave the descriptor to this process, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// What names the file to the kernel, for filesystems of which that is known.
fn handle(filesystem: &str, inode: u64, generation: u32) -> Option<Handle> {
    let low = u32::try_from(inode);
    match (filesystem, low) {
        ("ext2" | "ext3" | "ext4" | "f2fs", Ok(low)) => Some(Handle {
            bytes: 8,
            kind: INO32_GEN,
            handle: [low, generation, 0],
        }),
        ("xfs", _) => Some(Handle {
            bytes: 12,
            kind: XFS_INO64_GEN,
            handle: [inode as u32, (inode >> 32) as u32, generation],
        }),
        _ => None,
    }
}

/// Where a device is mounted, by `proc_pid_mountinfo(5)`; mounts of a whole filesystem first.
fn mounts(text: &str, device: (u32, u32)) -> Vec<Mount> {
    let device = format!("{}:{}", device.0, device.1);
    let mut found: Vec<(bool, Mount)> = text
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let fields: Vec<&str> = before.split(' ').collect();
            let (of, root, at) = (*fields.get(2)?, *fields.get(3)?, *fields.get(4)?);
            let mount = Mount {
                at: PathBuf::from(unescaped(at)),
                kind: after.split(' ').next()?.to_owned(),
            };
            (of == device).then_some((root != "/", mount))
        })
        .collect();
    found.sort_by_key(|(part, _)| *part);
    found.into_iter().map(|(_, mount)| mount).collect()
}

/// Blanks and the like are written as a backslash and three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (digits, part.get(3..)) {
            (Some(byte), Some(rest)) => {
                plain.push(char::from(byte));
                plain.push_str(rest);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
23 28 0:21 / /proc rw,nosuid - proc proc rw
30 28 254:1 /srv /bind rw,relatime shared:1 - ext4 /dev/vda1 rw
28 1 254:1 / /a\\040disk\\134 rw,relatime shared:1 master:2 - ext4 /dev/vda1 rw
31 28 254:1
bad line
";

    #[test]
    fn mounts_are_found_by_device_and_whole_ones_first() {
        let mount = |at: &str, kind: &str| Mount {
            at: at.into(),
            kind: kind.to_owned(),
        };
        assert_eq!(
            mounts(MOUNTS, (254, 1)),
            [mount("/a disk\\", "ext4"), mount("/bind", "ext4")]
        );
        assert_eq!(mounts(MOUNTS, (0, 21)), [mount("/proc", "proc")]);
        assert_eq!(mounts(MOUNTS, (254, 2)), []);
        assert_eq!(unescaped("\\04x\\"), "\\04x\\");
    }

    #[test]
    fn only_filesystems_with_known_handles_are_asked() {
        let words =
            |kind, inode| handle(kind, inode, 9).map(|handle| (handle.bytes, handle.kind, handle.handle));
        assert_eq!(words("ext4", 7), Some((8, 1, [7, 9, 0])));
        assert_eq!(words("ext4", 1 << 32), None);
        assert_eq!(words("xfs", 7 | 5 << 32), Some((12, 0x81, [7, 5, 9])));
        assert_eq!(words("overlay", 7), None);
        let none = open_by_number(Path::new("/proc"), (4000, 4000), 1, 1);
        assert_eq!(none.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
