//! Slots come and go; services, releases and counts stay right.

use super::*;

fn opened(slot: u32, pid: u32, parent: Option<u32>) -> Lifecycle {
    Lifecycle::Opened {
        slot: SlotId(slot),
        pid,
        parent: parent.map(SlotId),
        comm: "x".into(),
    }
}

fn tick(slots: &[(u32, u64)]) -> Tick {
    let totals = |faults| {
        Box::new(Totals {
            faults_minor: faults,
            ..Totals::default()
        })
    };
    Tick {
        slots: slots
            .iter()
            .map(|(slot, n)| (SlotId(*slot), totals(*n)))
            .collect(),
        ..Tick::default()
    }
}

fn faults(attributed: &AttributedTick, name: &str) -> u64 {
    attributed
        .services
        .iter()
        .filter(|(service, _)| service.name == name)
        .map(|(_, t)| t.faults_minor)
        .sum()
}

/// Nothing is lost or counted twice while a slot is undecided, and a short life is its parent's.
#[test]
fn short_lives_are_charged_to_the_parent() {
    let start = Instant::now();
    let mut attributor = Attributor::new(Host::new("/"), Duration::from_secs(1), 10, Vec::new());
    attributor.apply(&opened(2, std::process::id(), None), start);
    let own = attributor.service_of(SlotId(2)).name.clone();
    attributor.apply(&opened(3, u32::MAX, Some(2)), start);
    let first = attributor.attribute(tick(&[(2, 5), (3, 7)]));
    assert_eq!(faults(&first, &own), 5);
    attributor.finish(SlotId(3), start);
    let second = attributor.attribute(tick(&[(2, 1)]));
    assert_eq!(faults(&second, &own), 8);
    assert_eq!(attributor.stats().vanished, 1);
    assert_eq!(attributor.service_of(SlotId(3)).name, own);
}

/// Also where the agent came in time to see it, and the tick comes long after it is gone.
#[test]
fn a_short_life_that_was_seen_is_charged_to_the_parent() {
    let fixture = Fixture(tempfile::tempdir().unwrap());
    let start = Instant::now();
    let after = |ms| start + Duration::from_millis(ms);
    let mut attributor = Attributor::new(
        Host::new(fixture.0.path()),
        Duration::from_secs(1),
        10,
        Vec::new(),
    );
    for (pid, path) in [(20, "/srv/parent"), (21, "/srv/brief"), (22, "/srv/longer")] {
        fixture.process(pid, 20, path, "0::/\n", b"");
    }
    attributor.apply(&opened(2, 20, None), start);
    attributor.apply(&opened(3, 21, Some(2)), start);
    attributor.apply(&opened(4, 22, Some(2)), start);
    attributor.apply(&Lifecycle::Closed { slot: SlotId(3) }, after(100));
    attributor.settle(after(1500));
    // In the very tick in which it ended.
    let first = attributor.attribute(tick(&[(3, 7)]));
    assert_eq!(faults(&first, "parent"), 7);
    attributor.apply(&Lifecycle::Closed { slot: SlotId(4) }, after(1600));
    for slot in [3, 4] {
        attributor.finish(SlotId(slot), after(10_000));
    }
    assert_eq!(attributor.service_of(SlotId(3)).name, "parent");
    assert_eq!(attributor.service_of(SlotId(4)).name, "longer");
}

#[test]
fn services_are_bounded() {
    let start = Instant::now();
    let mut attributor = Attributor::new(Host::new("/"), Duration::ZERO, 0, Vec::new());
    attributor.apply(&opened(2, std::process::id(), None), start);
    assert_eq!(attributor.service_of(SlotId(2)).name, "(other)");
    assert_eq!(attributor.stats().capped, 1);
    assert_eq!(attributor.service_of(SlotId::KERNEL).name, "(kernel)");
    assert_eq!(attributor.service_of(SlotId(99)).name, "(unknown)");
}

/// A host that has seen many programs still names the next one.
#[test]
fn services_without_processes_make_room() {
    let fixture = Fixture(tempfile::tempdir().unwrap());
    let start = Instant::now();
    let mut attributor = Attributor::new(Host::new(fixture.0.path()), Duration::ZERO, 2, Vec::new());
    for (pid, path) in [(20, "/srv/first"), (21, "/srv/second"), (22, "/srv/third")] {
        fixture.process(pid, 1, path, "0::/\n", b"");
    }
    let name = |attributor: &mut Attributor, slot: u32, pid| {
        attributor.apply(&opened(slot, pid, None), start);
        attributor.service_of(SlotId(slot)).name.clone()
    };
    assert_eq!(name(&mut attributor, 2, 20), "first");
    assert_eq!(name(&mut attributor, 3, 21), "second");
    assert_eq!(name(&mut attributor, 4, 22), "(other)");
    attributor.finish(SlotId(2), start);
    assert_eq!(attributor.service_of(SlotId(2)).name, "first", "late samples");
    attributor.finish(SlotId(4), start);
    assert_eq!(name(&mut attributor, 5, 22), "third");
    assert_eq!(attributor.stats().capped, 1);
}

/// A launcher becomes the program (exec) before the agent looks: the process is of the program's service, and stays so
/// when the launcher's slot ends; it leaves with its own slot.
#[test]
fn a_process_outlives_the_slots_of_its_launchers() {
    let fixture = Fixture(tempfile::tempdir().unwrap());
    let start = Instant::now();
    let mut attributor = Attributor::new(Host::new(fixture.0.path()), Duration::ZERO, 10, Vec::new());
    fixture.process(20, 1, "/srv/program", "0::/\n", b"");
    attributor.apply(&opened(2, 20, None), start);
    attributor.apply(&opened(3, 20, Some(2)), start);
    let pids = |attributor: &Attributor| -> Vec<u32> {
        let infos = attributor.infos();
        let info = infos.iter().find(|(service, _)| service.name == "program");
        info.unwrap().1.pids.iter().copied().collect()
    };
    attributor.finish(SlotId(2), start);
    assert_eq!(pids(&attributor), [20]);
    attributor.finish(SlotId(3), start);
    assert!(pids(&attributor).is_empty());
}

/// A fixture of `/proc`: processes with a parent, a cgroup and the executable at `program`.
struct Fixture(tempfile::TempDir);

impl Fixture {
    fn process(&self, pid: u32, parent: u32, path: &str, cgroup: &str, program: &[u8]) {
        let root = self.0.path();
        let dir = root.join(format!("proc/{pid}"));
        std::fs::create_dir_all(&dir).unwrap();
        // The path that a process sees is the link's text; its end in the fixture is the program.
        let target = root.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(&target, program).unwrap();
        let link = dir.join("exe");
        let _old = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&target, link).unwrap();
        let stat = format!("{pid} (x) S {parent}{}\n", " 1".repeat(40));
        for (name, text) in [
            ("stat", stat.as_str()),
            ("comm", "x\n"),
            ("cmdline", ""),
            ("environ", ""),
            ("cgroup", cgroup),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
}

/// The beginning of the test's own binary under another build id: the linker's name for the release.
fn program(id: u8) -> Vec<u8> {
    let mut bytes = std::fs::read("/proc/self/exe").unwrap();
    bytes.truncate(64 << 10);
    let note = b"GNU\0";
    let at = bytes
        .windows(8)
        .position(|window| window[..4] == 3u32.to_le_bytes() && &window[4..] == note)
        .expect("a build id");
    bytes[at + 8..at + 14].fill(id);
    bytes
}

/// A service has the release of its own program: neither of the shell that starts it nor of the helpers that it
/// starts; a program that replaces itself brings its own.
#[test]
fn helpers_share_the_services_release() {
    let fixture = Fixture(tempfile::tempdir().unwrap());
    let (old, new) = (program(0xaa), program(0xbb));
    let unit = "0::/system.slice/shop.service\n";
    for (pid, parent, path, bytes) in [
        (10, 1, "/bin/sh", &new),
        (11, 10, "/srv/shop", &old),
        (12, 11, "/usr/bin/convert", &new),
        (13, 11, "/bin/dash", &new),
        (14, 13, "/usr/bin/convert", &new),
        (15, 11, "/srv/shop", &old),
        (16, 1, "/usr/bin/python3", &new),
        (17, 16, "/usr/bin/convert", &new),
    ] {
        fixture.process(pid, parent, path, unit, bytes);
    }
    let start = Instant::now();
    let mut attributor = Attributor::new(Host::new(fixture.0.path()), Duration::ZERO, 10, Vec::new());
    let mut version = |slot: u32, pid, parent| {
        attributor.apply(&opened(slot, pid, parent), start);
        let service = attributor.service_of(SlotId(slot));
        assert_eq!(service.name, "shop");
        service.version.clone()
    };
    assert_eq!(version(2, 10, None), "");
    // Both by the slot before the exec and, for those older than the agent, by the parent process.
    assert_eq!(version(3, 11, Some(2)), "aaaaaaaaaaaa");
    assert_eq!(version(4, 12, Some(3)), "aaaaaaaaaaaa");
    assert_eq!(version(5, 13, None), "aaaaaaaaaaaa");
    assert_eq!(version(6, 14, Some(5)), "aaaaaaaaaaaa");
    assert_eq!(version(7, 15, Some(3)), "aaaaaaaaaaaa");
    fixture.process(15, 11, "/srv/shop", unit, &new);
    assert_eq!(version(8, 15, Some(7)), "bbbbbbbbbbbb");
    assert_eq!(version(9, 16, None), "");
    assert_eq!(version(10, 17, Some(9)), "");
    let infos = attributor.infos();
    let info = |version: &str| {
        infos
            .iter()
            .find(|(service, _)| service.version == version)
            .map(|(_, info)| info)
    };
    let old = info("aaaaaaaaaaaa").unwrap();
    assert!(
        old.executable.ends_with("/srv/shop"),
        "a helper does not describe the service"
    );
    assert_eq!((old.runtime.as_str(), old.source.as_str()), ("native", "systemd"));
    assert_eq!(old.pids.iter().copied().collect::<Vec<_>>(), [11, 12, 13, 14, 15]);
    assert_eq!(info("").unwrap().runtime, "python");
}

/// What a recorded process starts is part of it, whatever it is; what it was before, and who gets its number later, are not.
#[test]
fn a_recorded_process_and_what_it_starts_are_one_service() {
    let start = Instant::now();
    let mut attributor = Attributor::new(Host::new("/"), Duration::from_secs(1), 10, Vec::new());
    attributor.record(Only {
        pid: Some(u32::MAX),
        to_come: true,
        namespace: RECORDED.into(),
        name: "make".into(),
    });
    attributor.apply(&opened(2, std::process::id(), None), start);
    // The process before it becomes the command, the command, what that starts, and another program's child.
    attributor.apply(&opened(3, u32::MAX, None), start);
    attributor.apply(&opened(4, u32::MAX, Some(3)), start);
    attributor.apply(&opened(5, u32::MAX - 1, Some(4)), start);
    attributor.apply(&opened(6, u32::MAX - 2, Some(2)), start);
    assert_eq!(attributor.young(start, Duration::from_secs(1)).len(), 2);
    let end = Lifecycle::Exited {
        slot: SlotId(4),
        pid: u32::MAX,
    };
    attributor.apply(&end, start);
    attributor.apply(&opened(7, u32::MAX, Some(2)), start);
    attributor.finish(SlotId(4), start);
    attributor.apply(&opened(8, u32::MAX - 3, Some(5)), start);
    let ticked = attributor.attribute(tick(&[
        (3, 1),
        (4, 20),
        (5, 300),
        (6, 4000),
        (7, 50_000),
        (8, 600_000),
    ]));
    let recorded: Vec<u64> = ticked
        .services
        .iter()
        .filter(|(service, _)| service.namespace == RECORDED)
        .map(|(_, totals)| totals.faults_minor)
        .collect();
    assert_eq!(recorded, [600_320]);
    for (slot, wanted) in [(2, false), (4, true), (5, true), (8, true)] {
        assert_eq!(attributor.wants(SlotId(slot)), wanted, "slot {slot}");
    }
}
