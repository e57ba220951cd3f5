//! `/proc/PID/cgroup` as runtimes leave it: v1, v2 and hybrid.

use super::*;
use crate::host::cgroups;
use crate::host::damage::{Bounds, harmless};

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const OUTER: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
const UID: &str = "1f0e1f0e-aaaa-bbbb-cccc-0123456789ab";
const UID_: &str = "1f0e1f0e_aaaa_bbbb_cccc_0123456789ab";

/// A whole file: the path in every controller of v1 and in systemd's own hierarchy.
fn v1(path: &str) -> String {
    format!("12:memory:{path}\n11:cpu,cpuacct:{path}\n10:cpuset:/\n1:name=systemd:{path}\n")
}

fn found(file: &str) -> Option<Container> {
    cgroups(file).iter().find_map(|path| container_of(path))
}

#[test]
fn containers_by_id() {
    let kube = format!("/kubepods/burstable/pod{UID}");
    let slice = format!("kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice");
    for (path, runtime) in [
        // Docker: cgroupfs, systemd, rootless, in a parent of the user's, inside Docker, in Kubernetes.
        (format!("/docker/{ID}"), "docker"),
        (format!("/system.slice/docker-{ID}.scope"), "docker"),
        (
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope"),
            "docker",
        ),
        (format!("/batch/{ID}"), ""),
        (format!("/docker/{OUTER}/docker/{ID}"), "docker"),
        (
            format!("/system.slice/docker-{OUTER}.scope/docker/{ID}/init"),
            "docker",
        ),
        (format!("/kubepods.slice/{slice}/docker-{ID}.scope"), "docker"),
        // Podman: as root and as a user, both drivers, split from its unit, with and without its inner group.
        (format!("/machine.slice/libpod-{ID}.scope"), "podman"),
        (format!("/machine.slice/libpod-{ID}.scope/container"), "podman"),
        (
            format!("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container"),
            "podman",
        ),
        (format!("/libpod_parent/libpod-{ID}"), "podman"),
        (format!("/libpod_parent/{ID}"), "podman"),
        (
            format!("/system.slice/shop.service/libpod-payload-{ID}"),
            "podman",
        ),
        // Kubernetes by cgroupfs: burstable, besteffort, guaranteed; systemd inside the container.
        (format!("{kube}/{ID}"), "containerd"),
        (format!("/kubepods/besteffort/pod{UID}/{ID}"), "containerd"),
        (format!("/kubepods/pod{UID}/{ID}"), "containerd"),
        (format!("{kube}/crio-{ID}"), "cri-o"),
        (format!("{kube}/{ID}/system.slice/nginx.service"), "containerd"),
        // Kubernetes by systemd, also with kind's and k3s's roots.
        (
            format!("/kubepods.slice/{slice}/cri-containerd-{ID}.scope"),
            "containerd",
        ),
        (
            format!("/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope"),
            "containerd",
        ),
        (format!("/kubepods.slice/{slice}/crio-{ID}.scope"), "cri-o"),
        (
            format!("/kubepods.slice/{slice}/crio-{ID}.scope/container"),
            "cri-o",
        ),
        (
            format!("/kubelet.slice/kubelet-kubepods.slice/kubelet-{slice}/cri-containerd-{ID}.scope"),
            "containerd",
        ),
        (format!("/docker/{OUTER}/kubelet{kube}/{ID}"), "containerd"),
        // runc's cgroupfs driver given systemd's form, also below the runtime's unit.
        (
            format!("/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}"),
            "containerd",
        ),
        (
            format!("/system.slice/containerd.service/kubepods-pod{UID_}.slice:cri-containerd:{ID}"),
            "containerd",
        ),
        (format!("/kubepods-pod{UID_}.slice:crio:{ID}"), "cri-o"),
        // Others.
        (format!("/system.slice/nerdctl-{ID}.scope"), "containerd"),
        (format!("/default/{ID}"), ""),
        (format!("/ecs/0a1b2c3d/{ID}"), ""),
        // As an agent in a cgroup namespace of its own sees its neighbours.
        (
            format!("/../../kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope"),
            "containerd",
        ),
    ] {
        let hybrid = format!("{}0::/system.slice/containerd.service\n", v1(&path));
        for file in [v1(&path), format!("0::{path}\n"), hybrid] {
            let container = found(&file).unwrap_or_else(|| panic!("none in {file}"));
            assert_eq!(
                (container.id.as_str(), container.runtime),
                (ID, runtime),
                "{file}"
            );
            assert_eq!(container.name, None, "{file}");
        }
    }
    let fargate = "0123456789abcdef0123456789abcdef-1234567890";
    let container = found(&v1(&format!("/ecs/0123456789abcdef0123456789abcdef/{fargate}"))).unwrap();
    assert_eq!(
        (container.id.as_str(), container.runtime),
        (fargate, "containerd")
    );
}

#[test]
fn containers_by_name() {
    for (path, runtime, name) in [
        ("/lxc/web", "lxc", "web"),
        ("/lxc/web/init.scope", "lxc", "web"),
        ("/lxc/101/ns/system.slice/nginx.service", "lxc", "101"),
        ("/lxc.payload.web/system.slice/nginx.service", "lxc", "web"),
        ("/lxc.payload/web/init.scope", "lxc", "web"),
        ("/machine.slice/machine-lxc\\x2d3\\x2dweb.scope", "lxc", "web"),
        (
            "/machine.slice/machine-web\\x2deu.scope/payload",
            "systemd-nspawn",
            "web-eu",
        ),
        (
            "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service",
            "systemd-nspawn",
            "web",
        ),
    ] {
        for file in [v1(path), format!("0::{path}\n")] {
            let container = found(&file).unwrap_or_else(|| panic!("none in {file}"));
            assert_eq!(
                (container.runtime, container.name.as_deref()),
                (runtime, Some(name)),
                "{file}"
            );
        }
    }
}

#[test]
fn no_containers() {
    for path in [
        "/".to_owned(),
        "/init.scope".to_owned(),
        "/system.slice/nginx.service".to_owned(),
        "/user.slice/user-0.slice/session-1.scope".to_owned(),
        "/docker/short".to_owned(),
        format!("/kubepods.slice/kubepods-pod{UID_}.slice"),
        format!("/machine.slice/libpod-conmon-{ID}.scope"),
        format!("/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope"),
        "/lxc.monitor.web".to_owned(),
        "/lxc.monitor/web".to_owned(),
        "/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/emulator".to_owned(),
        "/machine.slice/systemd-nspawn@web.service/supervisor".to_owned(),
    ] {
        for file in [v1(&path), format!("0::{path}\n")] {
            assert_eq!(found(&file), None, "{file}");
        }
    }
    assert_eq!(found(""), None);
}

#[test]
fn units() {
    for (path, unit) in [
        ("/system.slice/nginx.service", Some("nginx")),
        ("/system.slice/nginx.service/worker", Some("nginx")),
        (
            "/system.slice/system-postgresql.slice/postgresql@15-main.service",
            Some("postgresql@15-main"),
        ),
        (
            "/user.slice/user-1.slice/user@1.service/app.slice/sync.service",
            Some("sync"),
        ),
        ("/system.slice/my\\x2dapp.service", Some("my-app")),
        ("/system.slice/caf\\xc3\\xa9.service", Some("café")),
        ("/system.slice/odd\\xzz.service", Some("odd\\xzz")),
        ("/system.slice/run-of-the-mill.service", Some("run-of-the-mill")),
        ("/openrc.nginx", Some("nginx")),
        ("/user.slice/user-0.slice/user@0.service/init.scope", None),
        (
            "/user.slice/user-0.slice/user@0.service/app.slice/app-x-17.scope",
            None,
        ),
        ("/system.slice/run-u12.service", None),
        ("/system.slice/run-12.service", None),
        ("/system.slice/run-p312-i4711.service", None),
        (
            "/system.slice/run-r0123456789abcdef0123456789abcdef.service",
            None,
        ),
        ("/user.slice/user-0.slice/session-1.scope", None),
        ("/init.scope", None),
        ("/", None),
    ] {
        let file = format!("12:pids:/\n1:name=systemd:{path}\n0::{path}\n");
        let found = cgroups(&file).iter().find_map(|path| unit_of(path));
        assert_eq!(found.as_deref(), unit, "{path}");
    }
}

#[test]
fn damaged_paths_harm_nobody() {
    let all = [
        format!("0::/system.slice/cri-containerd-{ID}.scope/system.slice/shop\\x2dweb.service\n"),
        format!(
            "9:memory:/machine.slice/machine-lxc\\x2d7\\x2dshop.scope\n0::/lxc.payload.shop/docker/{ID}\n"
        ),
        "0::/system.slice/systemd-nspawn@shop\\x2dweb.service/run-p12-i34.service/openrc.shop\n".to_owned(),
    ];
    for file in all {
        let bounds = Bounds {
            bytes: 32 * file.len() + 4096,
            allocations: 300,
        };
        harmless(2_000, file.as_bytes(), &[], bounds, |damaged| {
            let paths = cgroups(&String::from_utf8_lossy(damaged));
            let known = |path: &String| container_of(path).is_some() || unit_of(path).is_some();
            paths.iter().any(known)
        })
        .both_often();
    }
}
