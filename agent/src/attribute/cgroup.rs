//! What a cgroup path tells: the container and its runtime, or the systemd unit. One row a form, innermost first.

/// A container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id: 64 hexadecimal digits, or the name for LXC and nspawn.
    pub id: String,
    /// Its runtime as far as the path tells.
    pub runtime: &'static str,
    /// A name that people gave it, where the path holds one.
    pub name: Option<String>,
}

/// Prefixes of a path element that hold a container id, and the runtime that writes them.
const PREFIXES: &[(&str, &str)] = &[
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("crio-conmon-", ""),
    ("libpod-conmon-", ""),
    ("crio-", "cri-o"),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
    ("nerdctl-", "containerd"),
];

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The innermost container of a cgroup path.
#[must_use]
pub fn container_of(path: &str) -> Option<Container> {
    let elements: Vec<&str> = path.split('/').filter(|element| !element.is_empty()).collect();
    for (i, element) in elements.iter().enumerate().rev() {
        let bare = element.strip_suffix(".scope").unwrap_or(element);
        // containerd's cgroupfs driver with a systemd-style name writes `slice:prefix:id`.
        let bare = bare.rsplit(':').next().unwrap_or(bare);
        if is_id(bare) {
            let parent = i
                .checked_sub(1)
                .and_then(|i| elements.get(i))
                .copied()
                .unwrap_or_default();
            let runtime = if parent == "docker" {
                "docker"
            } else if element.contains(":cri-containerd:") || path.contains("kubepods") {
                "containerd"
            } else {
                ""
            };
            return Some(Container {
                id: bare.to_owned(),
                runtime,
                name: None,
            });
        }
        for (prefix, runtime) in PREFIXES {
            if let Some(id) = bare.strip_prefix(prefix)
                && is_id(id)
            {
                // A monitor beside the container is not part of it.
                return (!runtime.is_empty()).then(|| Container {
                    id: id.to_owned(),
                    runtime,
                    name: None,
                });
            }
        }
        if let Some(name) = bare.strip_prefix("lxc.payload.") {
            return Some(Container {
                id: name.to_owned(),
                runtime: "lxc",
                name: Some(name.to_owned()),
            });
        }
        if let Some(name) = bare.strip_prefix("machine-")
            && element.ends_with(".scope")
        {
            return Some(Container {
                id: name.to_owned(),
                runtime: "systemd-nspawn",
                name: Some(name.to_owned()),
            });
        }
        if i > 0 && elements.get(i - 1) == Some(&"lxc") {
            return Some(Container {
                id: bare.to_owned(),
                runtime: "lxc",
                name: Some(bare.to_owned()),
            });
        }
    }
    None
}

/// The systemd service of a cgroup path, without its suffix; sessions, user managers and transient scopes are none.
#[must_use]
pub fn unit_of(path: &str) -> Option<String> {
    let unit = path
        .split('/')
        .rev()
        .find_map(|element| element.strip_suffix(".service"))?;
    let transient = unit.strip_prefix("run-").is_some_and(|rest| {
        rest.strip_prefix('u')
            .unwrap_or(rest)
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-')
            || rest.starts_with('r') && rest.len() >= 32
    });
    if transient || unit.starts_with("user@") || unit.is_empty() {
        return None;
    }
    Some(unescape(unit))
}

/// systemd writes characters that paths lack as `\xNN` (systemd.unit(5)).
fn unescape(unit: &str) -> String {
    let mut text = String::new();
    let mut rest = unit;
    while let Some(at) = rest.find("\\x") {
        text.push_str(&rest[..at]);
        match rest
            .get(at + 2..at + 4)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            Some(byte) => text.push(char::from(byte)),
            None => return unit.to_owned(),
        }
        rest = &rest[at + 4..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn containers_by_path() {
        for (path, runtime) in [
            (format!("/docker/{ID}"), "docker"),
            (format!("/system.slice/docker-{ID}.scope"), "docker"),
            (format!("/kubepods/besteffort/pod1f0e/{ID}"), "containerd"),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"
                ),
                "containerd",
            ),
            (
                format!("/kubepods.slice/kubepods-pod1.slice:cri-containerd:{ID}"),
                "containerd",
            ),
            (
                format!("/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope"),
                "cri-o",
            ),
            (format!("/machine.slice/libpod-{ID}.scope/container"), "podman"),
            (
                format!("/docker/{}/kubepods/pod1/{ID}", ID.replace('0', "f")),
                "containerd",
            ),
        ] {
            let container = container_of(&path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(
                (container.id.as_str(), container.runtime),
                (ID, runtime),
                "{path}"
            );
        }
        assert_eq!(
            container_of("/lxc.payload.web/system.slice")
                .unwrap()
                .name
                .as_deref(),
            Some("web")
        );
        assert_eq!(
            container_of("/lxc/web/init.scope").unwrap().name.as_deref(),
            Some("web")
        );
        assert_eq!(
            container_of(&format!("/machine.slice/libpod-conmon-{ID}.scope")),
            None
        );
        for path in [
            "/",
            "/system.slice/nginx.service",
            "/user.slice/user-0.slice/session-1.scope",
            "/docker/short",
        ] {
            assert_eq!(container_of(path), None, "{path}");
        }
    }

    #[test]
    fn units_by_path() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx")),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service",
                Some("postgresql@15-main"),
            ),
            (
                "/user.slice/user-1.slice/user@1.service/app.slice/sync.service",
                Some("sync"),
            ),
            ("/system.slice/my\\x2dapp.service", Some("my-app")),
            ("/user.slice/user-0.slice/user@0.service/init.scope", None),
            ("/system.slice/run-u12.service", None),
            ("/user.slice/user-0.slice/session-1.scope", None),
            ("/init.scope", None),
            ("/", None),
        ] {
            assert_eq!(unit_of(path).as_deref(), unit, "{path}");
        }
    }
}
