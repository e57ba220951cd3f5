//! What real programs are called: each writes its command line, title and cgroup in its own way.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use tieback_tests::agent::Agent;
use tieback_tests::metrics::{Sample, Scrape};

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only where it has already ended.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Starts a program that waits; `None` where it is not installed.
fn start(dir: &Path, words: &[&str]) -> Result<Option<Running>> {
    let [program, arguments @ ..] = words else {
        return Ok(None);
    };
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        other => Ok(Some(Running(other.with_context(|| format!("start {program}"))?))),
    }
}

#[test]
fn programs_are_called_as_a_person_would() -> Result<()> {
    if std::fs::read_to_string("/proc/self/cgroup")?.contains(".service") {
        println!("skipped: below a systemd unit everything is called like the unit");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_str().context("path")?.to_owned())
    };
    let python = file("tb-worker.py", "import time\ntime.sleep(600)\n")?;
    let shell = file("tb-loop.sh", "read line\n")?;
    let perl = file("tb-job.pl", "sleep 600;\n")?;
    let node = file("tb-server.js", "setInterval(() => {}, 1000);\n")?;
    let port = || Ok::<_, std::io::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string());
    let (redis, registry) = (port()?, port()?);
    // A program that every Java runtime has.
    let class = "java.rmi/sun.rmi.registry.RegistryImpl";
    let conf = format!(
        "pid {0}/nginx.pid; daemon off; error_log stderr; events {{}}",
        dir.path().display()
    );
    let conf = file("nginx.conf", &conf)?;

    let wanted: [(&[&str], &str, &str); 8] = [
        (&["python3", "-u", &python], "tb-worker.py", "python"),
        (&["bash", &shell], "tb-loop.sh", "shell"),
        (&["perl", "-w", &perl], "tb-job.pl", "perl"),
        (&["node", &node], "tb-server.js", "node"),
        (
            &["java", "-Xmx64m", "-m", class, &registry],
            "RegistryImpl",
            "jvm",
        ),
        (
            &["redis-server", "--port", &redis, "--save", ""],
            "redis-server",
            "native",
        ),
        (&["nginx", "-c", &conf], "nginx", "native"),
        (&["sleep", "600"], "sleep", "native"),
    ];
    let mut running = Vec::new();
    for (words, name, runtime) in wanted {
        if let Some(child) = start(dir.path(), words)? {
            running.push((child, name, runtime));
        }
    }
    let agent = Agent::start(&["--min-age", "0s"])?;
    for (child, name, runtime) in &running {
        let pid = child.0.id().to_string();
        let line = |scrape: &Scrape| {
            let of = |info: &&Sample| info.labels["pids"].split(',').any(|known| known == pid);
            scrape
                .0
                .iter()
                .filter(|info| info.name == "tieback_service_info")
                .find(of)
                .cloned()
        };
        let found = agent.wait_for(name, |scrape| line(scrape).is_some())?;
        let info = line(&found).context("vanished")?;
        let label = |name: &str| info.labels[name].as_str();
        assert_eq!((label("service_name"), label("runtime")), (*name, *runtime));
        // An interpreter's own build is no release of what it runs.
        assert_eq!(
            label("service_version").is_empty(),
            *runtime != "native",
            "{name}"
        );
    }
    assert!(running.len() >= 4, "hardly anything is installed");
    Ok(())
}
