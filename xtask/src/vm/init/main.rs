//! Process 1 of a test machine: mounts what a Linux host has, runs the tests that `/tasks` lists, powers off.
//!
//! `/tasks` has one task a line, its words separated by tabs: `module PATH`, `env NAME VALUE`,
//! `test FOLDER PROGRAM ARGUMENT...`.

use anyhow::{Context as _, Result};
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};
use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
};

/// Kind and place, in an order in which each place exists when its turn comes.
const MOUNTS: [(&str, &str); 10] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("tmpfs", "/dev/shm"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
    ("securityfs", "/sys/kernel/security"),
    ("cgroup2", "/sys/fs/cgroup"),
];

fn main() {
    if let Err(error) = run() {
        println!("vm: {error:#}");
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        println!("vm: cannot power off: {error}");
    }
}

fn run() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("create {place}"))?;
        mount(kind, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {kind} at {place}"))?;
    }
    loopback_up().context("bring the loopback interface up")?;
    fs::write("/proc/sys/kernel/hostname", "tieback-vm").context("set the host's name")?;

    // The kernel's console is the first port; the tests have the second one for themselves.
    let mut out = File::options()
        .write(true)
        .open("/dev/ttyS1")
        .context("open /dev/ttyS1")?;
    let tasks = fs::read_to_string("/tasks").context("read /tasks")?;
    let mut env = vec![
        ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("RUST_BACKTRACE", "1"),
    ];
    let mut failed = 0;
    for task in tasks.lines() {
        let words: Vec<&str> = task.split('\t').collect();
        match words.as_slice() {
            ["module", path] => {
                let module = File::open(path).with_context(|| format!("open {path}"))?;
                if let Err(error) = finit_module(&module, c"", 0) {
                    println!("vm: {path}: {error}");
                }
            }
            ["env", name, value] => env.push((*name, *value)),
            ["test", folder, program, arguments @ ..] => {
                writeln!(out, "vm: {program}")?;
                let output = || out.try_clone().map(Stdio::from);
                let status = Command::new(program)
                    .args(arguments)
                    .current_dir(folder)
                    .env_clear()
                    .envs(env.iter().copied())
                    .stdin(Stdio::null())
                    .stdout(output()?)
                    .stderr(output()?)
                    .status();
                match status {
                    Ok(status) if status.success() => {}
                    Ok(status) => {
                        failed += 1;
                        writeln!(out, "vm: {program}: {status}")?;
                    }
                    Err(error) => {
                        failed += 1;
                        writeln!(out, "vm: {program} does not start: {error}")?;
                    }
                }
            }
            _ => println!("vm: no such task: {task}"),
        }
    }
    writeln!(out, "vm: finished, {failed} test binaries failed")?;
    out.flush()?;
    // Closing waits until the port has sent everything.
    drop(out);
    Ok(())
}

/// As `ip link set lo up` does.
fn loopback_up() -> Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("open a socket")?;
    // SAFETY: `ifreq` is plain data, for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING)?;
    // SAFETY: the descriptor is open, and the kernel only reads an `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result != 0 {
        return Err(std::io::Error::last_os_error()).context("SIOCSIFFLAGS");
    }
    Ok(())
}
