//! A container by runc, where the kubelet would put it.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tieback_tests::agent::Agent;
use tieback_tests::program::{Program, built, unique_service};

/// The root of the pods, as kind has one.
const ROOT: &str = "/tieback-test";

/// A pod's cgroup as the kubelet names it.
fn pod() -> String {
    format!(
        "{ROOT}/kubepods/burstable/podt1eback0-0000-4000-8000-{:012}",
        std::process::id()
    )
}

/// Ends the container and removes what it leaves.
struct Container<'a> {
    id: &'a str,
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // Fails where the container has already ended, which is what is wanted.
        let _ended = Command::new("runc")
            .args(["delete", "--force", self.id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // One tree on cgroup v2, one a controller on v1.
        let mounted = Path::new("/sys/fs/cgroup");
        let controllers = std::fs::read_dir(mounted).into_iter().flatten().flatten();
        let trees = controllers.map(|entry| entry.path()).chain([mounted.to_owned()]);
        for tree in trees {
            // Innermost first; removing fails where runc was quicker.
            let pod = pod();
            let parents = Path::new(&pod).ancestors();
            for path in parents.filter(|path| path.starts_with(ROOT)) {
                let below = path.strip_prefix("/").unwrap_or(path);
                let _gone = std::fs::remove_dir(tree.join(below));
            }
        }
    }
}

fn spec(program: &str, cgroup: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": [program, "syscalls"],
            "env": ["PATH=/usr/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
        },
    })
}

/// The linker's id of an executable, as binutils read it.
fn build_id(path: &Path) -> Result<String> {
    let output = Command::new("readelf")
        .arg("-n")
        .arg(path)
        .output()
        .context("start readelf")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let id = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Build ID: "));
    Ok(id.context("no build id")?.to_owned())
}

#[test]
fn a_container_of_runc_is_a_service_of_its_own() -> Result<()> {
    let bundle = tempfile::tempdir()?;
    let root = bundle.path().join("rootfs");
    std::fs::create_dir_all(root.join("proc"))?;
    std::fs::create_dir(root.join("usr"))?;
    for folder in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{folder}"), root.join(folder))?;
    }
    let service = unique_service("runc");
    let program = root.join(&service);
    std::fs::copy(built("TIEBACK_WORKLOAD", "tieback-workload")?, &program)?;
    let id = format!("{:064x}", u128::from(std::process::id()) | 0xabcd << 64);
    let config = spec(&format!("/{service}"), &format!("{}/{id}", pod()));
    std::fs::write(bundle.path().join("config.json"), config.to_string())?;

    let agent = Agent::start(&["--syscall-mode", "exact"])?;
    let container = Container { id: &id };
    let mut runc = Command::new("runc");
    runc.arg("run")
        .arg("--bundle")
        .arg(bundle.path())
        .arg(container.id);
    let (mut workload, _) = Program::spawn(runc, service)?;
    let service = workload.service.clone();
    let running = agent.wait_for_service(&service)?;
    let name = ("service_name", service.as_str());
    let version = build_id(&program)?;
    let labels = [name];
    let infos: Vec<_> = running.select("tieback_service_info", &labels).collect();
    ensure!(infos.len() == 1, "{infos:?}");
    for (label, value) in [
        ("source", "container"),
        ("container_id", id.as_str()),
        ("container_runtime", "containerd"),
        ("runtime", "native"),
        ("executable", &format!("/{service}")),
        ("service_version", &version[..12]),
    ] {
        assert_eq!(
            infos[0].labels.get(label).map(String::as_str),
            Some(value),
            "{label}"
        );
    }
    workload.finish()?;
    let scrape = agent.settled()?;
    let calls = |syscall| scrape.sum("tieback_syscalls_total", &[name, ("syscall", syscall)]);
    assert_eq!(calls("getppid"), 1e6);
    let failed = |errno| {
        scrape.sum(
            "tieback_syscall_errors_total",
            &[name, ("syscall", "openat"), ("errno", errno)],
        )
    };
    assert_eq!(failed("ENOTDIR"), 1000.0);
    assert_eq!(scrape.sum("tieback_processes", &[name]), 0.0);
    Ok(())
}
