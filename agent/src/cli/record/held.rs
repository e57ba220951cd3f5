//! A command that is started, and runs once everything is ready.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// A process that is to become a command.
pub(super) struct Held {
    /// Its number, which the command will have, too.
    pub(super) pid: u32,
    go: OwnedFd,
    /// Starting a process ends when it has become the command.
    started: JoinHandle<io::Result<Child>>,
}

fn read_all(from: &OwnedFd, bytes: &mut [u8]) -> Result<(), Errno> {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::read(from, &mut bytes[at..]) {
            Ok(0) => return Err(Errno::CANCELED),
            Ok(count) => at += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Held {
    /// Starts the process. It ends with this value if it is not let go.
    pub(super) fn start(command: &[OsString]) -> Result<Self> {
        let Some((program, arguments)) = command.split_first() else {
            bail!("no command");
        };
        let (pid_from, pid_to) = pipe_with(PipeFlags::CLOEXEC)?;
        let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = Command::new(program);
        command.args(arguments);
        let others = go.as_raw_fd();
        let hold = move || -> io::Result<()> {
            // SAFETY: the child's own copy, which nothing there uses; with it open, the end of this process would not be seen.
            drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(others) });
            let pid = rustix::process::getpid().as_raw_nonzero().get();
            rustix::io::write(&pid_to, &pid.to_ne_bytes())?;
            Ok(read_all(&wait, &mut [0])?)
        };
        // SAFETY: between fork and exec it only makes system calls.
        unsafe { command.pre_exec(hold) };
        let started = std::thread::spawn(move || command.spawn());
        let mut pid = [0; 4];
        if read_all(&pid_from, &mut pid).is_err() {
            drop(go);
            let result = started.join();
            let error = result.ok().and_then(Result::err);
            return Err(error.map_or_else(
                || anyhow::anyhow!("cannot start a process"),
                |error| anyhow::Error::new(error).context("cannot start a process"),
            ));
        }
        Ok(Self {
            pid: u32::from_ne_bytes(pid),
            go,
            started,
        })
    }

    /// It becomes the command, or says why it cannot.
    pub(super) fn release(self) -> Result<io::Result<Child>> {
        rustix::io::write(&self.go, &[1]).context("the command was ended before it began")?;
        self.started
            .join()
            .map_err(|_| anyhow::anyhow!("the starting thread panicked"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs_before_it_may() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("made");
        let command = [OsString::from("touch"), file.clone().into()];
        let held = Held::start(&command).unwrap();
        let pid = held.pid;
        assert!(!file.exists());
        let mut child = held.release().unwrap().unwrap();
        assert_eq!(child.id(), pid);
        assert!(child.wait().unwrap().success());
        assert!(file.exists());
    }

    #[test]
    fn one_that_is_not_let_go_ends() {
        let held = Held::start(&["true".into()]).unwrap();
        let Held { go, started, .. } = held;
        drop(go);
        assert!(started.join().unwrap().is_err());
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error_of_its_own() {
        let held = Held::start(&["/no/such/program".into()]).unwrap();
        let error = held.release().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
