//! What runs a program: by the name of its executable, and by what Go leaves in it.

/// How a row's programs stand to the service that they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs the service's code: its own build says nothing about the service's release.
    Interpreter,
    /// Starts something else and is none of it: a shell, an init of containers, a wrapper.
    Starter,
}

/// Value of the label `runtime`, the programs that mean it (without their version), and their role.
const TABLE: &[(&str, &[&str], Role)] = &[
    ("python", &["python", "pypy", "uwsgi"], Role::Interpreter),
    ("jvm", &["java"], Role::Interpreter),
    ("node", &["node", "nodejs"], Role::Interpreter),
    ("bun", &["bun"], Role::Interpreter),
    ("deno", &["deno"], Role::Interpreter),
    ("ruby", &["ruby", "jruby", "truffleruby"], Role::Interpreter),
    ("perl", &["perl"], Role::Interpreter),
    ("php", &["php", "php-fpm", "php-cgi"], Role::Interpreter),
    ("dotnet", &["dotnet", "mono", "mono-sgen"], Role::Interpreter),
    ("beam", &["beam.smp", "erlexec"], Role::Interpreter),
    ("lua", &["lua", "luajit"], Role::Interpreter),
    ("r", &["R", "Rscript"], Role::Interpreter),
    (
        "shell",
        &["bash", "sh", "dash", "zsh", "ksh", "ash", "fish", "busybox"],
        Role::Starter,
    ),
    (
        "native",
        &[
            "catatonit",
            "chroot",
            "docker-init",
            "dumb-init",
            "env",
            "gosu",
            "nice",
            "nohup",
            "nsenter",
            "pause",
            "runc",
            "runuser",
            "s6-supervise",
            "s6-svscan",
            "setpriv",
            "setsid",
            "stdbuf",
            "su",
            "su-exec",
            "sudo",
            "supervisord",
            "taskset",
            "timeout",
            "tini",
            "tini-static",
            "unshare",
        ],
        Role::Starter,
    ),
];

/// `python3.11` → `python`, `php-fpm8.2` → `php-fpm`.
pub(super) fn family(name: &str) -> &str {
    let family = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
    if family.is_empty() { name } else { family }
}

/// What runs an executable, where its name tells it.
pub(super) fn runtime_of(executable: &str) -> Option<(&'static str, Role)> {
    let name = executable.rsplit('/').next().unwrap_or(executable);
    TABLE
        .iter()
        .find(|(_, names, _)| names.contains(&name) || names.contains(&family(name)))
        .map(|(runtime, _, role)| (*runtime, *role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_by_executable() {
        for (executable, runtime) in [
            ("/usr/bin/python3.11", Some("python")),
            ("/opt/pypy/bin/pypy3", Some("python")),
            ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", Some("jvm")),
            ("/usr/bin/node", Some("node")),
            ("/usr/sbin/php-fpm8.2", Some("php")),
            ("/usr/bin/perl5.36.0", Some("perl")),
            ("/usr/lib/erlang/erts-13.1/bin/beam.smp", Some("beam")),
            ("/usr/bin/ruby3.1", Some("ruby")),
            ("/bin/busybox", Some("shell")),
            ("/usr/sbin/nginx", None),
            ("/usr/bin/pythonic", None),
            ("/opt/123", None),
            ("", None),
        ] {
            assert_eq!(
                runtime_of(executable).map(|(runtime, _)| runtime),
                runtime,
                "{executable}"
            );
        }
    }
}
