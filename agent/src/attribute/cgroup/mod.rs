//! What a cgroup path tells: the container and its runtime, or the systemd unit. One row a form, innermost first.

#[cfg(test)]
mod tests;

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

/// What a path element is.
enum Element<'a> {
    /// A container by its id.
    Id(&'a str, &'static str),
    /// A container by the name that people gave it.
    Named(String, &'static str),
    /// Something that stands beside a container and is no part of it: a monitor, a supervisor, a virtual machine.
    Outside,
    /// Anything else.
    Other,
}

/// Prefixes of an element that holds a container id, and the runtime that writes them. An empty runtime is a monitor's.
const PREFIXES: &[(&str, &str)] = &[
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-conmon-", ""),
    ("crio-", "cri-o"),
    ("libpod-conmon-", ""),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
];

/// 64 hexadecimal digits, or what ECS on Fargate writes: 32 and a number.
fn is_id(text: &str) -> bool {
    let hex = |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex(text, 64)
        || text.split_once('-').is_some_and(|(task, number)| {
            hex(task, 32) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// The innermost container of a cgroup path.
#[must_use]
pub fn container_of(path: &str) -> Option<Container> {
    let elements: Vec<&str> = path.split('/').filter(|element| !element.is_empty()).collect();
    for (i, element) in elements.iter().enumerate().rev() {
        let parent = i.checked_sub(1).and_then(|i| elements.get(i)).copied();
        let child = elements.get(i + 1).copied();
        let (id, runtime, name) = match meaning(element, parent.unwrap_or_default(), child) {
            Element::Id(id, "") if path.contains("kubepods") => (id.to_owned(), "containerd", None),
            Element::Id(id, runtime) => (id.to_owned(), runtime, None),
            Element::Named(name, runtime) => (name.clone(), runtime, Some(name)),
            Element::Outside => return None,
            Element::Other => continue,
        };
        return Some(Container { id, runtime, name });
    }
    None
}

fn meaning<'a>(element: &'a str, parent: &str, child: Option<&str>) -> Element<'a> {
    let scope = element.strip_suffix(".scope");
    let bare = scope.unwrap_or(element);
    // runc's cgroupfs driver takes systemd's form literally: `SLICE:PREFIX:ID`.
    let (prefix, bare) = match bare.rsplit_once(':') {
        Some((left, id)) => (left.rsplit(':').next().unwrap_or_default(), id),
        None => ("", bare),
    };
    if is_id(bare) {
        return Element::Id(
            bare,
            match (prefix, parent) {
                ("cri-containerd" | "nerdctl", _) => "containerd",
                ("crio", _) => "cri-o",
                ("libpod", _) | (_, "libpod_parent") => "podman",
                ("docker", _) | (_, "docker") => "docker",
                _ if bare.len() < 64 => "containerd",
                _ => "",
            },
        );
    }
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = bare.strip_prefix(prefix)
            && is_id(id)
        {
            return if runtime.is_empty() {
                Element::Outside
            } else {
                Element::Id(id, runtime)
            };
        }
    }
    if let Some(name) = bare.strip_prefix("lxc.payload.") {
        return Element::Named(name.to_owned(), "lxc");
    }
    if matches!(parent, "lxc" | "lxc.payload") {
        return Element::Named(bare.to_owned(), "lxc");
    }
    if bare.starts_with("lxc.monitor") || parent == "lxc.monitor" {
        return Element::Outside;
    }
    if let Some(machine) = element
        .strip_prefix("systemd-nspawn@")
        .and_then(|rest| rest.strip_suffix(".service"))
    {
        return match child {
            Some("supervisor") => Element::Outside,
            _ => Element::Named(unescape(machine), "systemd-nspawn"),
        };
    }
    if let Some(machine) = scope.and_then(|scope| scope.strip_prefix("machine-")) {
        let machine = unescape(machine);
        // libvirt writes `DRIVER-NUMBER-NAME`.
        if machine.starts_with("qemu-") {
            return Element::Outside;
        }
        return match machine.strip_prefix("lxc-").and_then(|rest| rest.split_once('-')) {
            Some((_, name)) => Element::Named(name.to_owned(), "lxc"),
            None => Element::Named(machine, "systemd-nspawn"),
        };
    }
    Element::Other
}

/// The systemd service of a cgroup path, without its suffix; sessions, user managers and transient units are none. On
/// OpenRC with cgroup v2, its service.
#[must_use]
pub fn unit_of(path: &str) -> Option<String> {
    if let Some(service) = path
        .split('/')
        .find_map(|element| element.strip_prefix("openrc."))
    {
        return (!service.is_empty()).then(|| service.to_owned());
    }
    let unit = path
        .split('/')
        .rev()
        .find_map(|element| element.strip_suffix(".service"))?;
    if is_transient(unit) || unit.starts_with("user@") || unit.is_empty() {
        return None;
    }
    Some(unescape(unit))
}

/// What `systemd-run` calls a unit that was given no name: `run-u12`, `run-r` and an id, `run-p12-i34`.
fn is_transient(unit: &str) -> bool {
    let Some(rest) = unit.strip_prefix("run-") else {
        return false;
    };
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let random = rest.strip_prefix('r').is_some_and(|id| id.len() >= 32);
    let process = rest
        .strip_prefix('p')
        .and_then(|rest| rest.split_once("-i"))
        .is_some_and(|(process, id)| number(process) && number(id));
    random || process || number(rest.strip_prefix('u').unwrap_or(rest))
}

/// systemd writes characters that paths lack as `\xNN` (systemd.unit(5)).
fn unescape(unit: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = unit;
    while let Some(at) = rest.find("\\x") {
        let digits = rest.get(at + 2..at + 4);
        let Some(byte) = digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
            return unit.to_owned();
        };
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        bytes.push(byte);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}
