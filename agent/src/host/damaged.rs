//! Files of `/proc` and `/sys` that say what no kernel says: this process's own, damaged.

use std::fs;
use std::path::Path;

use super::Host;
use super::damage::{Bounds, Ends, harmless};

/// A copy of what the kernel says of this process as 7, and of the host.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for dir in ["proc/7/task/7", "sys/devices/system/cpu"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for file in ["stat", "comm", "cgroup", "maps", "auxv"] {
        fs::copy(Path::new("/proc/self").join(file), at("proc/7").join(file)).unwrap();
    }
    fs::copy("/proc/meminfo", at("proc/meminfo")).unwrap();
    fs::write(at("proc/7/cmdline"), "shop\0--port\x001\0").unwrap();
    fs::write(
        at("proc/7/environ"),
        "A=1\0OTEL_SERVICE_NAME=shop\0OTEL_RESOURCE_ATTRIBUTES=a=b,c=d\0",
    )
    .unwrap();
    fs::write(at("proc/7/task/7/children"), "8 9 10 ").unwrap();
    fs::write(at("sys/devices/system/cpu/online"), "0-3,8-11\n").unwrap();
    std::os::unix::fs::symlink("/usr/bin/shop", at("proc/7/exe")).unwrap();
    root
}

/// Damages one file, and has all of it read that is made from it.
fn damage(file: &str, times: usize, reader: impl Fn(&Host) -> bool) -> Ends {
    let root = root();
    let (host, path) = (Host::new(root.path()), root.path().join(file));
    let good = fs::read(&path).unwrap();
    assert!(reader(&host), "{file}");
    let bounds = Bounds {
        bytes: times * good.len() + (16 << 10),
        allocations: 100 + good.len(),
    };
    harmless(1_000, &good, &[], bounds, |damaged| {
        fs::write(&path, damaged).unwrap();
        reader(&host)
    })
}

#[test]
fn damaged_facts_of_a_process_are_an_error_or_text() {
    let read = |host: &Host| {
        host.process(7)
            .is_ok_and(|facts| facts.pid == 7 && facts.parent != 0)
    };
    damage("proc/7/stat", 32, read).both_often();
    for file in ["comm", "cmdline", "cgroup", "environ"] {
        let read = |host: &Host| {
            let facts = host.process(7).unwrap();
            assert!(facts.comm.len() + facts.cmdline.join(" ").len() < 4 << 10);
            true
        };
        damage(&format!("proc/7/{file}"), 32, read).always();
    }
    let named = |host: &Host| host.process(7).unwrap().otel.service_name.is_some();
    damage("proc/7/environ", 32, named).both_often();
}

#[test]
fn damaged_mappings_are_no_more_than_their_lines() {
    let count = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let good = Host::new("/").mapped_files(std::process::id()).unwrap().len();
    let read = |host: &Host| {
        let files = host.mapped_files(7).unwrap();
        assert!(files.len() <= 2 * count && files.iter().all(|file| file.path.starts_with('/')));
        files.len() >= good
    };
    damage("proc/7/maps", 16, read).both_often();
    damage("proc/7/auxv", 16, |host| host.entry(7).is_ok()).both_often();
}

#[test]
fn damaged_numbers_are_no_number_or_another() {
    damage("proc/7/task/7/children", 16, |host| {
        host.children(7).unwrap().len() >= 2
    })
    .both_often();
    damage("proc/meminfo", 16, |host| host.memory_limit(7).is_some()).both_often();
    damage("proc/7/cgroup", 64, |host| host.memory_limit(7).is_some()).always();
    damage("sys/devices/system/cpu/online", 16 << 10, |host| {
        host.online_cpus().is_ok()
    })
    .both_often();
}
