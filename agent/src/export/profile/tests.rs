//! Numbers in, the same numbers out.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;

use super::*;
use crate::aggregate::{Cause, Owner, ProfileQuery, Stack, fixture};

fn frame(function: &str, module: &str, address: u64) -> Frame {
    Frame {
        function: (!function.is_empty()).then(|| function.into()),
        file: None,
        line: 0,
        module: module.into(),
        build_id: None,
        address,
        inlined: false,
        kernel: module == "[kernel]",
    }
}

fn stack(frames: Vec<Frame>, owner: &str) -> SharedStack {
    let owner = Owner {
        function: owner.into(),
        file: "".into(),
    };
    Arc::new(Stack {
        frames: frames.into_iter().map(Arc::new).collect(),
        owner,
        idle: false,
        truncated: false,
    })
}

fn source(frame: Frame, file: &str, line: u32) -> Frame {
    Frame {
        file: Some(file.into()),
        line,
        build_id: Some("ab12".into()),
        ..frame
    }
}

/// Two stacks that share `load`, the first sampled twice: 3 s + 1 s, and 2 s.
pub(super) fn profile() -> Profile {
    let load = || source(frame("shop::load", "/app/shop", 0x1200), "/src/load.rs", 40);
    let inner = Frame {
        inlined: true,
        ..source(frame("shop::inner", "/app/shop", 0x1200), "/src/load.rs", 7)
    };
    let main = || source(frame("shop::main", "/app/shop", 0x1000), "/src/main.rs", 3);
    let first = stack(
        vec![
            frame("do_futex", "[kernel]", 0xffff_ffff_8100_0000),
            frame("syscall", "/lib/libc.so.6", 0x500),
            inner,
            load(),
            main(),
        ],
        "shop::inner",
    );
    let second = stack(
        vec![frame("read", "/lib/libc.so.6", 0x700), load(), main()],
        "shop::load",
    );
    Profile {
        service: Service {
            name: "shop".into(),
            namespace: "prod".into(),
            version: "1.2".into(),
        },
        kind: StackKind::Wait,
        objects: false,
        start_unix_ns: 1_700_000_000_000_000_000,
        duration_ns: 60_000_000_000,
        period: 50_000_000,
        samples: vec![
            sample(Arc::clone(&first), "lock", 3_000_000_000),
            sample(second, "disk", 2_000_000_000),
            sample(first, "lock", 1_000_000_000),
        ],
    }
}

fn sample(stack: SharedStack, cause: &'static str, value: i64) -> Sample {
    let label = (!cause.is_empty()).then(|| ("cause", cause.into()));
    let labels = label.into_iter().collect();
    Sample { stack, labels, value }
}

fn decoded(profile: &Profile) -> proto::Profile {
    decoded_all(std::slice::from_ref(profile))
}

fn decoded_all(profiles: &[Profile]) -> proto::Profile {
    let bytes = pprof(profiles).unwrap();
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice())
        .read_to_end(&mut plain)
        .unwrap();
    proto::Profile::decode(plain.as_slice()).unwrap()
}

#[test]
fn pprof_holds_the_numbers() {
    let out = decoded(&profile());
    let text = |index: i64| out.string_table[usize::try_from(index).unwrap()].as_str();
    assert_eq!(text(0), "");
    let types: Vec<_> = out
        .sample_type
        .iter()
        .map(|t| (text(t.r#type), text(t.unit)))
        .collect();
    assert_eq!(types, [("wait", "nanoseconds")]);
    assert_eq!(text(out.default_sample_type), "wait");
    assert_eq!(
        (out.time_nanos, out.duration_nanos, out.period),
        (1_700_000_000_000_000_000, 60_000_000_000, 50_000_000)
    );
    assert_eq!(text(out.comment[0]), "service: prod/shop 1.2");

    let function = |id: u64| text(out.function.iter().find(|f| f.id == id).unwrap().name);
    let location = |id: u64| out.location.iter().find(|l| l.id == id).unwrap();
    type Lines<'a> = Vec<(&'a str, i64)>;
    let mut samples: Vec<(i64, Vec<Lines<'_>>)> = out
        .sample
        .iter()
        .map(|sample| {
            let lines = |id: &u64| {
                location(*id)
                    .line
                    .iter()
                    .map(|l| (function(l.function_id), l.line))
                    .collect()
            };
            (sample.value[0], sample.location_id.iter().map(lines).collect())
        })
        .collect();
    samples.sort();
    assert_eq!(
        samples,
        [
            (
                2_000_000_000,
                vec![
                    vec![("read", 0)],
                    vec![("shop::load", 40)],
                    vec![("shop::main", 3)]
                ]
            ),
            (
                4_000_000_000,
                vec![
                    vec![("do_futex", 0)],
                    vec![("syscall", 0)],
                    // Innermost first, as pprof wants it.
                    vec![("shop::inner", 7), ("shop::load", 40)],
                    vec![("shop::main", 3)]
                ]
            ),
        ]
    );
}

#[test]
fn pprof_tells_the_causes_of_waits_apart() {
    let mut profile = profile();
    let first = Arc::clone(&profile.samples[0].stack);
    profile.samples.push(sample(Arc::clone(&first), "idle", 5));
    let waits = [false, true].map(|memory| StackValue {
        stack: Arc::clone(&first),
        detail: StackDetail::Wait {
            cause: Cause::Fault,
            call: None,
            memory,
        },
        value: if memory { 11 } else { 13 },
    });
    profile.samples.extend(samples(&waits));
    profile.samples.push(sample(first, "", 7));
    let out = decoded(&profile);
    let text = |index: i64| out.string_table[usize::try_from(index).unwrap()].as_str();
    let mut causes: Vec<_> = out
        .sample
        .iter()
        .map(|sample| {
            let labels = sample.label.iter();
            let labels: Vec<_> = labels.map(|label| (text(label.key), text(label.str))).collect();
            (labels, sample.value[0])
        })
        .collect();
    causes.sort();
    assert_eq!(
        causes,
        [
            (vec![], 7),
            (vec![("cause", "disk")], 2_000_000_000),
            (vec![("cause", "fault")], 13),
            (vec![("cause", "fault"), ("stall", "memory")], 11),
            (vec![("cause", "idle")], 5),
            (vec![("cause", "lock")], 4_000_000_000),
        ]
    );
}

#[test]
fn pprof_has_peers_of_connections_and_objects_of_what_lives() {
    let snapshot = fixture::snapshot();
    let of = |kind| {
        let query = ProfileQuery {
            namespace: "prod",
            name: "shop",
            version: None,
            kind,
            since: Duration::MAX,
            idle: false,
        };
        let windows = snapshot.profile(&query).unwrap();
        let out = decoded_all(&Profile::all(&profile().service, &windows));
        let text = |index: i64| out.string_table[usize::try_from(index).unwrap()].clone();
        let types: Vec<_> = out.sample_type.iter().map(|one| text(one.r#type)).collect();
        let samples: Vec<_> = out
            .sample
            .iter()
            .map(|sample| {
                let labels = sample.label.iter();
                let labels: Vec<_> = labels.map(|label| (text(label.key), text(label.str))).collect();
                (labels, sample.value.clone())
            })
            .collect();
        (types, samples, windows.sums())
    };
    let (types, samples, (opened, _)) = of(StackKind::Conn);
    assert_eq!(types, ["connections"]);
    let peer = ("peer".to_owned(), "10.0.0.9:6379".to_owned());
    assert_eq!(samples, [(vec![peer], vec![i64::try_from(opened).unwrap()])]);
    let (types, samples, _) = of(StackKind::AllocLive);
    assert_eq!(types, ["inuse_space", "inuse_objects"]);
    assert_eq!(samples, [(vec![], vec![2048, 4])]);
}

#[test]
fn pprof_mappings_and_ids() {
    let out = decoded(&profile());
    let text = |index: i64| out.string_table[usize::try_from(index).unwrap()].as_str();
    let mappings: Vec<_> = out
        .mapping
        .iter()
        .map(|m| (m.id, text(m.filename), text(m.build_id)))
        .collect();
    assert_eq!(
        mappings,
        [
            (1, "/app/shop", "ab12"),
            (2, "[kernel]", ""),
            (3, "/lib/libc.so.6", "")
        ]
    );
    let app = &out.mapping[0];
    assert!(app.has_functions && app.has_filenames && app.has_line_numbers && app.has_inline_frames);
    assert!(!out.mapping[2].has_filenames && out.mapping[2].has_functions);
    for location in &out.location {
        let mapping = out.mapping.iter().find(|m| m.id == location.mapping_id).unwrap();
        assert!((mapping.memory_start..mapping.memory_limit).contains(&location.address));
    }
    // `shop::load` with and without the inlined function are two locations; each id occurs once.
    let mut ids: Vec<_> = out.location.iter().map(|l| l.id).collect();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    assert_eq!(out.function.len(), 6);
}

#[test]
fn names_of_what_has_none() {
    let mut profile = profile();
    let nameless = Frame {
        build_id: Some("cd".into()),
        ..frame("", "/app/stripped", 0x77)
    };
    profile.samples = vec![sample(
        stack(vec![frame("", "[unknown]", 5), nameless], "(unknown)"),
        "",
        9,
    )];
    let out = decoded(&profile);
    let names: Vec<_> = out
        .function
        .iter()
        .map(|f| out.string_table[usize::try_from(f.name).unwrap()].as_str())
        .collect();
    assert_eq!(names, ["[unknown]"]);
    assert_eq!(out.location[1].line, []);
    assert_eq!(out.location[1].address, 0x77);
    assert_eq!(folded(&profile), "[stripped];[unknown] 9\n");
}

#[test]
fn folded_lines() {
    assert_eq!(
        folded(&profile()),
        "shop::main;shop::load;read 2000000000\n\
         shop::main;shop::load;shop::inner_[i];syscall;do_futex_[k] 4000000000\n"
    );
}

#[test]
fn folded_names_cannot_break_the_format() {
    let mut profile = profile();
    let frames = vec![frame("a;b\nc", "/x", 1), frame("f(int) 12", "/x", 2)];
    profile.samples = vec![
        sample(stack(frames, "x"), "", 3),
        sample(stack(Vec::new(), "x"), "", 4),
        sample(stack(Vec::new(), "x"), "", 0),
    ];
    assert_eq!(folded(&profile), "[unknown] 4\nf(int)_12;a:b c 3\n");
}

#[test]
fn flame_graph() {
    let svg = String::from_utf8(svg(&profile()).unwrap()).unwrap();
    assert!(
        svg.contains("<title>shop::load (6,000 ms, 100.00%)</title>"),
        "{svg}"
    );
    assert!(svg.contains("read (2,000 ms, 33.33%)"));
    assert!(svg.contains("prod/shop 1.2: wait (ms)"));
    assert!(svg.trim_end().ends_with("</svg>"));
}

#[test]
fn flame_graph_of_nothing_and_of_hostile_names() {
    let mut profile = profile();
    profile.samples.clear();
    assert!(
        String::from_utf8(svg(&profile).unwrap())
            .unwrap()
            .contains("No samples")
    );
    profile.service.name = "<script>alert(1)</script>".into();
    profile.samples = vec![sample(stack(vec![frame("<img src=x>&\"", "/x", 1)], "x"), "", 1)];
    let svg = String::from_utf8(svg(&profile).unwrap()).unwrap();
    assert!(!svg.contains("<script>alert") && !svg.contains("<img"));
}

#[test]
fn sample_types() {
    let all: Vec<_> = StackKind::ALL.iter().map(|kind| sample_type(*kind)).collect();
    assert_eq!(
        all,
        [
            ("wait", "nanoseconds"),
            ("cpu", "nanoseconds"),
            ("syscalls", "count"),
            ("growth", "bytes"),
            ("connections", "count"),
            ("alloc_space", "bytes"),
            ("alloc_objects", "count"),
            ("inuse_space", "bytes"),
            ("descriptors", "count")
        ]
    );
}
