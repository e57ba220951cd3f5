//! Names of system calls and errnos.
//!
//! The tables come from the kernel's own headers: `arch/x86/entry/syscalls/syscall_64.tbl`,
//! `include/uapi/asm-generic/unistd.h` (arm64 uses that one), `include/uapi/asm-generic/errno*.h`, and
//! `include/linux/errno.h` for the restart codes that never leave the kernel but are what `sys_exit` sees.

use std::sync::LazyLock;

/// What stands for a number without a name.
const UNKNOWN: &str = "(unknown)";

/// Kept in place of every system call number that has no name.
const UNKNOWN_SYSCALL: u16 = u16::MAX;

/// Kept in place of every errno that has no name.
const UNKNOWN_ERRNO: u16 = u16::MAX;

#[cfg(target_arch = "x86_64")]
const SYSCALLS: &str = include_str!("syscalls_x86_64.txt");
#[cfg(target_arch = "aarch64")]
const SYSCALLS: &str = include_str!("syscalls_aarch64.txt");
const ERRNOS: &str = include_str!("errnos.txt");

static SYSCALL_NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| parse(SYSCALLS));
static ERRNO_NAMES: LazyLock<Vec<&'static str>> = LazyLock::new(|| parse(ERRNOS));

/// Lines of `number name` → names by number, gaps empty.
fn parse(table: &'static str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for line in table.lines() {
        if let Some((number, name)) = line.split_once(' ')
            && let Ok(number) = number.parse::<usize>()
        {
            if names.len() <= number {
                names.resize(number + 1, "");
            }
            names[number] = name;
        }
    }
    names
}

fn look_up(names: &[&'static str], number: u16) -> Option<&'static str> {
    names
        .get(usize::from(number))
        .copied()
        .filter(|name| !name.is_empty())
}

/// All system calls of this architecture: number and name.
pub fn syscalls() -> impl Iterator<Item = (u16, &'static str)> {
    (0u16..)
        .zip(SYSCALL_NAMES.iter().copied())
        .filter(|(_, name)| !name.is_empty())
}

/// The name of a system call of this architecture, or `(unknown)`.
#[must_use]
pub fn syscall(number: u16) -> &'static str {
    look_up(&SYSCALL_NAMES, number).unwrap_or(UNKNOWN)
}

/// The name of an errno, or `(unknown)`.
#[must_use]
pub fn errno(number: u16) -> &'static str {
    look_up(&ERRNO_NAMES, number).unwrap_or(UNKNOWN)
}

/// The number itself if it has a name, else the one number that stands for all without.
pub(super) fn known_syscall(number: u16) -> u16 {
    look_up(&SYSCALL_NAMES, number).map_or(UNKNOWN_SYSCALL, |_| number)
}

/// The number itself if it has a name, else the one number that stands for all without.
pub(super) fn known_errno(number: u16) -> u16 {
    look_up(&ERRNO_NAMES, number).map_or(UNKNOWN_ERRNO, |_| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_libc() {
        for (number, name) in [
            (libc::SYS_read, "read"),
            (libc::SYS_openat, "openat"),
            (libc::SYS_getppid, "getppid"),
            (libc::SYS_futex, "futex"),
            (libc::SYS_mmap, "mmap"),
            (libc::SYS_newfstatat, "newfstatat"),
            (libc::SYS_futex_waitv, "futex_waitv"),
        ] {
            assert_eq!(syscall(u16::try_from(number).expect("small")), name);
        }
        for (number, name) in [
            (libc::ENOENT, "ENOENT"),
            (libc::EAGAIN, "EAGAIN"),
            (libc::ECONNREFUSED, "ECONNREFUSED"),
        ] {
            assert_eq!(errno(u16::try_from(number).expect("small")), name);
        }
        assert_eq!(errno(512), "ERESTARTSYS");
    }

    #[test]
    fn gaps_and_ends_have_no_name() {
        assert_eq!(
            (errno(0), errno(200), syscall(u16::MAX)),
            (UNKNOWN, UNKNOWN, UNKNOWN)
        );
        assert_eq!(known_syscall(400), UNKNOWN_SYSCALL);
        assert_eq!(known_errno(2), 2);
    }

    #[test]
    fn both_architectures_parse() {
        let arm = parse(include_str!("syscalls_aarch64.txt"));
        assert_eq!(
            (arm[56], arm[63], arm[98], arm[173], arm[222]),
            ("openat", "read", "futex", "getppid", "mmap")
        );
        let x86 = parse(include_str!("syscalls_x86_64.txt"));
        assert_eq!(
            (x86[0], x86[110], x86[202], x86[257], x86[452]),
            ("read", "getppid", "futex", "openat", "fchmodat2")
        );
    }
}
