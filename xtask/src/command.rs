//! Starting other programs: found, as root where needed, failures told with the command line.

use anyhow::{Context as _, Result, bail};
use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where a program is: on the PATH, or where Debian keeps those that users rarely call.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let postgres = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|dir| dir.path().join("bin"));
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(postgres)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// The cargo that runs this program, else the first on the PATH.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A command that runs as root; `None` where there is no way to become root. `env` is handed over through sudo too.
pub(crate) fn as_root<'a>(
    program: impl AsRef<OsStr>,
    env: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
) -> Option<Command> {
    if is_root() {
        let mut command = Command::new(program);
        command.envs(env);
        return Some(command);
    }
    let mut command = Command::new(find("sudo")?);
    command.arg("env");
    for (key, value) in env {
        let mut assignment = std::ffi::OsString::from(key);
        assignment.push("=");
        assignment.push(value);
        command.arg(assignment);
    }
    command.arg(program);
    Some(command)
}

/// Runs a command and fails with its command line unless it succeeds.
pub(crate) fn checked(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("start {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// What a command prints; fails with its errors unless it succeeds.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            line(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("read the output of {}", line(command)))
}

/// The command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = std::iter::once(name)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    format!("`{}`", words.join(" "))
}
