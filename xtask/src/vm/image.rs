//! The initramfs of a test machine: our process 1, the tests, the programs they call, the modules they need.

use super::{cpio::Archive, kernel::Kernel};
use crate::{command, test::Binaries, workspace, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

/// Programs of this host that tests may call. One that is not here is left out; the test that calls it says so.
const PROGRAMS: [&str; 35] = [
    "bash",
    "bpftool",
    "cat",
    "cp",
    "dd",
    "dmesg",
    "echo",
    "env",
    "grep",
    "head",
    "ip",
    "kill",
    "losetup",
    "ls",
    "mkdir",
    "mkfs.ext4",
    "mknod",
    "mount",
    "nsenter",
    "ps",
    "rm",
    "sed",
    "seq",
    "sh",
    "sleep",
    "strace",
    "stat",
    "sync",
    "sysctl",
    "taskset",
    "tc",
    "touch",
    "true",
    "umount",
    "unshare",
];
/// Kernel modules that tests may need, by name.
const MODULES: [&str; 4] = ["loop", "ext4", "veth", "inet_diag"];
/// More of them, which only some kernels have as modules.
const SOME_MODULES: [&str; 4] = ["tcp_diag", "udp_diag", "unix_diag", "crc32c_generic"];
/// Where process 1 finds what to do; see `init/main.rs`.
const TASKS: &str = "/tasks";

/// Writes the archive and tells where it is.
pub(super) fn build(kernel: &Kernel, binaries: &Binaries, filters: &[String]) -> Result<PathBuf> {
    let path = kernel.folder.join("initramfs.cpio");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let mut image = Image {
        archive: Archive::new(BufWriter::new(file)),
        tasks: String::new(),
    };

    image.program_at(&init()?, Path::new("/init"))?;
    for name in MODULES.into_iter().chain(SOME_MODULES) {
        image.module(&kernel.modules, name)?;
    }
    for program in PROGRAMS {
        if let Some(found) = command::find(program) {
            image.program(&found)?;
        }
    }
    image.task(&["env", "TIEBACK_BIN", &text(&binaries.agent)?]);
    // Times are within 10 % there.
    image.task(&["env", "TIEBACK_TEST_LEAST_TOLERANCE", "0.1"]);
    image.task(&["env", "TIEBACK_VM", &kernel.release]);
    image.program(&binaries.agent)?;
    for program in &binaries.programs {
        image.program(program)?;
    }
    image.task(&["env", "TIEBACK_CHAINS", &text(&binaries.chains)?]);
    for entry in fs::read_dir(&binaries.chains).context("read the programs whose stacks are known")? {
        let path = entry?.path();
        if path.is_file() {
            image.program(&path)?;
        }
    }
    for test in &binaries.tests {
        image.program(&test.path)?;
        let folder = test
            .folder
            .canonicalize()
            .with_context(|| format!("find {}", test.folder.display()))?;
        image.archive.folder(&folder)?;
        let (path, folder) = (text(&test.path)?, text(&folder)?);
        let mut task = vec!["test", &folder, &path, "--test-threads=1"];
        task.extend(filters.iter().map(String::as_str));
        image.task(&task);
    }
    image
        .archive
        .file(Path::new("/etc/passwd"), b"root:x:0:0:root:/root:/bin/sh\n")?;
    image
        .archive
        .file(Path::new("/etc/hosts"), b"127.0.0.1 localhost\n::1 localhost\n")?;
    let tasks = std::mem::take(&mut image.tasks);
    image.archive.file(Path::new(TASKS), tasks.as_bytes())?;
    image
        .archive
        .finish()
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Builds the machine's process 1.
fn init() -> Result<PathBuf> {
    command::checked(
        command::cargo()
            .args(["build", "--quiet", "--package", "xtask", "--bin", "vm-init"])
            .current_dir(workspace::root()),
    )?;
    Ok(Workspace::load()?.target_directory.join("debug/vm-init"))
}

struct Image {
    archive: Archive<BufWriter<File>>,
    tasks: String,
}

impl Image {
    fn task(&mut self, words: &[&str]) {
        self.tasks.push_str(&words.join("\t"));
        self.tasks.push('\n');
    }

    /// A program at the path it has here, with its libraries.
    fn program(&mut self, program: &Path) -> Result<()> {
        self.program_at(program, program)
    }

    fn program_at(&mut self, program: &Path, place: &Path) -> Result<()> {
        self.copy(program, place)?;
        // Merged /usr: what is called /bin/sh may be asked for as /usr/bin/sh and the other way round.
        if let Ok(short) = place.strip_prefix("/usr")
            && (short.starts_with("bin") || short.starts_with("sbin"))
        {
            self.archive.link(&Path::new("/").join(short), &text(place)?)?;
        }
        // `ldd` fails on a static program, which needs nothing.
        let Ok(libraries) = command::stdout(Command::new("ldd").arg(program)) else {
            return Ok(());
        };
        for library in libraries.lines().filter_map(library_path) {
            self.copy(Path::new(library), Path::new(library))?;
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        if self.archive.has(to) {
            return Ok(());
        }
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.archive
            .file(to, &content)
            .with_context(|| format!("archive {}", to.display()))
    }

    /// A module, after those it depends on.
    fn module(&mut self, modules: &Path, name: &str) -> Result<()> {
        let place = PathBuf::from(format!("/modules/{name}.ko"));
        if self.archive.has(&place) {
            return Ok(());
        }
        let Some(file) = find_module(&modules.join("kernel"), name)? else {
            // Built in; or not part of this kernel, and then the test that needs it says so.
            return Ok(());
        };
        let content = if file.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("xz")
                .args(["--decompress", "--stdout"])
                .arg(&file)
                .output()
                .context("start xz")?;
            if !output.status.success() {
                bail!("xz cannot read {}", file.display());
            }
            output.stdout
        } else {
            fs::read(&file).with_context(|| format!("read {}", file.display()))?
        };
        for dependency in dependencies(&content) {
            self.module(modules, &dependency)?;
        }
        self.archive.file(&place, &content)?;
        self.task(&["module", &text(&place)?]);
        Ok(())
    }
}

/// `name => /path (0x...)`, or `/path (0x...)` of the loader itself; the vDSO has no path.
fn library_path(line: &str) -> Option<&str> {
    let path = line
        .split_once("=>")
        .map_or(line, |(_, path)| path)
        .split_whitespace()
        .next()?;
    path.starts_with('/').then_some(path)
}

fn find_module(folder: &Path, name: &str) -> Result<Option<PathBuf>> {
    let same = |file: &str| {
        let base = file.strip_suffix(".xz").unwrap_or(file).strip_suffix(".ko");
        base.is_some_and(|base| base.replace('-', "_") == name.replace('-', "_"))
    };
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find_module(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if same(&entry.file_name().to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The module's own list: `depends=a,b` in its section `.modinfo`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module
        .get(at + KEY.len()..)
        .unwrap_or_default()
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{dependencies, library_path};

    #[test]
    fn libraries_are_read_from_ldd() {
        let lines = [
            "\tlinux-vdso.so.1 (0x00007f9587c21000)",
            "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f957e81e000)",
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f9587c23000)",
            "\tlibgone.so => not found",
        ];
        let found: Vec<_> = lines.into_iter().filter_map(library_path).collect();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }

    #[test]
    fn modules_name_what_they_need() {
        assert_eq!(
            dependencies(b"x\0license=GPL\0depends=mbcache,jbd2\0name=ext4\0"),
            ["mbcache", "jbd2"]
        );
        assert!(dependencies(b"x\0depends=\0").is_empty());
        assert!(dependencies(b"no modinfo").is_empty());
    }
}
