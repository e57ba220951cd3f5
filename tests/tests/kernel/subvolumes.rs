//! Files of btrfs, whose subvolumes have one device in `/proc/PID/maps` and number their files alike.

use std::fs::{create_dir, read_to_string};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::chains::{Programs, run};

/// A fresh file system in a file, mounted as long as this lives.
struct Btrfs(PathBuf);

impl Btrfs {
    /// `None`: this kernel has none.
    fn mount(folder: &Path) -> Result<Option<Self>> {
        // Built in, a module, or not there: the list tells.
        let _ = Command::new("modprobe").arg("btrfs").output();
        if !read_to_string("/proc/filesystems")?.contains("btrfs") {
            return Ok(None);
        }
        let (image, at) = (folder.join("image"), folder.join("mounted"));
        create_dir(&at)?;
        std::fs::File::create(&image)?.set_len(256 << 20)?;
        done(Command::new("mkfs.btrfs").arg("-q").arg(&image))?;
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))?;
        Ok(Some(Self(at)))
    }

    /// A subvolume with a copy of `program` that has no build id, as its first file.
    fn subvolume(&self, name: &str, program: &Path) -> Result<PathBuf> {
        let subvolume = self.0.join(name);
        done(
            Command::new("btrfs")
                .args(["subvolume", "create"])
                .arg(&subvolume),
        )?;
        let own = subvolume.join("own");
        std::fs::copy(program, &own)?;
        let file = std::fs::metadata(&own)?.ino();
        // Made elsewhere and copied over: the file itself stays.
        let bare = self.0.join("bare");
        done(
            Command::new("objcopy")
                .arg("--remove-section=.note.gnu.build-id")
                .args([&own, &bare]),
        )?;
        std::fs::write(&own, std::fs::read(&bare)?)?;
        ensure!(std::fs::metadata(&own)?.ino() == file, "another file");
        Ok(own)
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        if let Err(error) = done(Command::new("umount").arg("--lazy").arg(&self.0)) {
            eprintln!("{error:#}");
        }
    }
}

fn done(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn stacks_are_exact_in_subvolumes_that_number_their_files_alike() -> Result<()> {
    let programs = Programs::build()?;
    let folder = tempfile::tempdir()?;
    let Some(btrfs) = Btrfs::mount(folder.path())? else {
        eprintln!("this kernel has no btrfs: nothing to see");
        return Ok(());
    };
    let mut cases = Vec::new();
    let mut files = Vec::new();
    // The same names at other addresses.
    for program in ["chain", "chain-unoptimized"] {
        let path = btrfs.subvolume(program, &programs.0.path(program))?;
        for work in ["cpu", "sleep"] {
            let mut case = programs.case(program, "deep", work);
            case.command[0] = path.to_string_lossy().into_owned();
            cases.push(case);
        }
        files.push(std::fs::metadata(&path)?.ino());
    }
    ensure!(files[0] == files[1], "the files' numbers differ: {files:?}");
    run(&cases)
}
