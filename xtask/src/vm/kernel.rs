//! Debian's kernels: fetched by apt, unpacked, kept.

use super::Series;
use crate::{command, packages, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// An unpacked kernel.
pub(super) struct Kernel {
    /// Its full version, the name of its modules' folder.
    pub(super) release: String,
    /// What QEMU boots.
    pub(super) image: PathBuf,
    /// Where its modules are.
    pub(super) modules: PathBuf,
    /// A folder for things that belong to this kernel.
    pub(super) folder: PathBuf,
}

/// The newest kernel of a series that apt knows; the one already here when apt knows none.
pub(super) fn fetch(series: Series) -> Result<Kernel> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("only x86_64 kernels are set up so far");
    }
    let cache = Workspace::load()?
        .target_directory
        .join("vm")
        .join(series.to_string());
    if let Some(kernel) = unpacked(&cache)? {
        return Ok(kernel);
    }
    let package = match newest(series)? {
        Some(package) => package,
        None => {
            packages::update()?;
            newest(series)?.with_context(|| {
                format!(
                    "apt knows no linux-image-{series}*-cloud-amd64-unsigned; add a Debian suite that has it"
                )
            })?
        }
    };
    println!("vm {series}: fetching {package}");
    let download = cache.join("download");
    fs::create_dir_all(&download).with_context(|| format!("create {}", download.display()))?;
    // `_apt` may not write here; as root apt then downloads unsandboxed and says so.
    command::checked(
        Command::new("apt-get")
            .args(["--quiet", "-o", "APT::Sandbox::User=root", "download", &package])
            .current_dir(&download),
    )?;
    let archive = only_entry(&download)?.context("apt-get download left no package")?;
    let unpacking = cache.join("unpacking");
    command::checked(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacking))?;
    // In one step, so that an interrupted run leaves nothing that looks complete.
    fs::rename(&unpacking, cache.join("root")).context("keep the unpacked kernel")?;
    fs::remove_dir_all(&download).context("remove the downloaded package")?;
    unpacked(&cache)?.with_context(|| format!("{package} holds no kernel"))
}

fn unpacked(cache: &Path) -> Result<Option<Kernel>> {
    let root = cache.join("root");
    // Merged-/usr packages have their modules under /usr/lib.
    for modules in [root.join("lib/modules"), root.join("usr/lib/modules")] {
        let Some(release) = only_entry(&modules)? else {
            continue;
        };
        let release = release
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        if image.exists() {
            return Ok(Some(Kernel {
                modules: modules.join(&release),
                image,
                release,
                folder: cache.to_owned(),
            }));
        }
    }
    Ok(None)
}

fn only_entry(folder: &Path) -> Result<Option<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().map(|entry| Ok(entry?.path())).transpose(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("list {}", folder.display())),
    }
}

fn newest(series: Series) -> Result<Option<String>> {
    let pattern = format!("^linux-image-{series}[.]");
    let listed = command::stdout(Command::new("apt-cache").args(["search", "--names-only", &pattern]))?;
    Ok(newest_of(
        listed.lines().filter_map(|line| line.split_whitespace().next()),
    ))
}

/// By the numbers in the names, so that `6.12.9` comes before `6.12.115`.
fn newest_of<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    names
        .filter(|name| name.ends_with("-cloud-amd64-unsigned"))
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::newest_of;

    #[test]
    fn versions_compare_as_numbers() {
        let names = [
            "linux-image-6.12.9+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.115+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64-dbg",
        ];
        assert_eq!(newest_of(names.into_iter()).as_deref(), Some(names[1]));
        assert_eq!(newest_of([].into_iter()), None);
    }
}
