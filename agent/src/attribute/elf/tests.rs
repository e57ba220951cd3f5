//! Real executables: the truth is what the compiler and the linker were told.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::host::damage::{Bounds, harmless};

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn build_of(path: &Path) -> Build {
    parse(Pieces(std::fs::read(path).unwrap().as_slice()))
}

fn compiled(dir: &Path, build_id: &str) -> PathBuf {
    let source = dir.join("main.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let program = dir.join("main");
    let build_id = format!("-Wl,--build-id={build_id}");
    run(Command::new("cc")
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .args(["-s", &build_id]));
    program
}

/// Adds a section; with binutils it has no segment, as after `objcopy` in a packaging script.
fn with_section(program: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let content = program.with_extension("section");
    std::fs::write(&content, bytes).unwrap();
    let out = program.with_extension(name.trim_start_matches('.'));
    let section = format!("{name}={}", content.display());
    run(Command::new("objcopy")
        .args(["--add-section", &section])
        .arg(program)
        .arg(&out));
    out
}

fn note(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let mut note = Vec::new();
    for word in [owner.len() as u32, desc.len() as u32, kind] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(&padded(owner));
    note.extend_from_slice(&padded(desc));
    note
}

fn go_info(version: &str, settings: &str) -> Vec<u8> {
    let module = format!(
        "{0}path\tshop\nmod\tshop\t{version}\t\ndep\tx\tv9.9.9\th1:{1}=\n{settings}{0}",
        "#".repeat(16),
        "x".repeat(99)
    );
    let mut info = [GO_MAGIC, &[8, 2], &[0; 16]].concat();
    assert_eq!(info.len(), GO_HEADER);
    info.extend_from_slice(b"\x08go1.26.0");
    let length = module.len();
    assert!(length > 127);
    info.extend_from_slice(&[(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
    info.extend_from_slice(module.as_bytes());
    info
}

#[test]
fn the_linkers_build_id_with_and_without_sections() {
    let dir = tempfile::tempdir().unwrap();
    let program = compiled(dir.path(), "0xc0ffee00112233445566778899aabbccddeeff00");
    let build = build_of(&program);
    assert_eq!(build.release.as_deref(), Some("c0ffee001122"));
    assert!(!build.go && !build.malformed);
    // As `sstrip` leaves it: no section headers at all (offset, count and index of names in the ELF header).
    let mut bytes = std::fs::read(&program).unwrap();
    bytes[0x28..0x30].fill(0);
    bytes[0x3c..0x40].fill(0);
    assert_eq!(parse(Pieces(bytes.as_slice())), build);
    let program = compiled(dir.path(), "none");
    assert_eq!(build_of(&program), Build::default());
}

#[test]
fn a_package_note_comes_before_the_build_id() {
    let dir = tempfile::tempdir().unwrap();
    let program = compiled(dir.path(), "0x12345678");
    assert_eq!(build_of(&program).release.as_deref(), Some("12345678"));
    let json = br#"{"type":"deb","os":"debian","name":"shop","version":"1.2-3","architecture":"amd64"}"#;
    for (desc, release) in [
        (&json[..], "1.2-3"),
        (br#"{"name":"shop"}"#, "12345678"),
        (b"{{{{", "12345678"),
        (br#"{"version":""}"#, "12345678"),
    ] {
        let packaged = with_section(&program, ".note.package", &note(b"FDO\0", PACKAGE_NOTE, desc));
        let build = build_of(&packaged);
        assert_eq!(build.release.as_deref(), Some(release), "{build:?}");
    }
}

#[test]
fn go_names_the_module_or_the_commit() {
    let dir = tempfile::tempdir().unwrap();
    let program = compiled(dir.path(), "0x12345678");
    let revision = "build\tvcs=git\nbuild\tvcs.revision=0123456789abcdef0123\n";
    for (version, settings, release) in [
        ("v1.4.2", revision.to_owned(), "v1.4.2"),
        ("(devel)", revision.to_owned(), "0123456789ab"),
        (
            "(devel)",
            format!("{revision}build\tvcs.modified=true\n"),
            "0123456789ab+dirty",
        ),
        ("(devel)", String::new(), "12345678"),
    ] {
        let go = build_of(&with_section(
            &program,
            ".go.buildinfo",
            &go_info(version, &settings),
        ));
        assert_eq!((go.release.as_deref(), go.go), (Some(release), true));
    }
    assert_eq!(go_release(&go_info("v1", "")[..60]), None);
    // Without sections the information is found where the data begins.
    let mut data = vec![0; 48];
    data.extend_from_slice(&go_info("v7", ""));
    assert_eq!(find_go_info(&data).and_then(go_release).as_deref(), Some("v7"));
}

/// The real tool, where it is installed; `go version -m` is the truth.
#[test]
fn what_go_itself_builds() {
    if Command::new("go").arg("version").output().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("go.mod"), "module example.org/shop\n\ngo 1.18\n").unwrap();
    std::fs::write(dir.path().join("main.go"), "package main\n\nfunc main() {}\n").unwrap();
    for flags in ["-s -w", "-s -w -B=0xfeedfacecafe0123"] {
        let program = dir.path().join("shop");
        run(Command::new("go")
            .args(["build", "-buildvcs=false", "-ldflags", flags, "-o"])
            .arg(&program)
            .current_dir(dir.path())
            .env("GOFLAGS", "-mod=mod")
            .env("GOCACHE", dir.path().join("cache")));
        let build = build_of(&program);
        assert!(build.go && !build.malformed);
        let id = Command::new("go")
            .args(["tool", "buildid"])
            .arg(&program)
            .output()
            .unwrap();
        let id = String::from_utf8(id.stdout).unwrap();
        let own: String = id
            .trim()
            .rsplit('/')
            .next()
            .unwrap()
            .chars()
            .take(ID_DIGITS)
            .collect();
        let wanted = if flags.contains("-B") {
            "feedfacecafe"
        } else {
            &own
        };
        assert_eq!(build.release.as_deref(), Some(wanted), "{flags}");
    }
}

/// Whatever is cut off or changed costs a mark, never more.
#[test]
fn broken_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let program = with_section(
        &compiled(dir.path(), "0x12345678"),
        ".go.buildinfo",
        &go_info("(devel)", ""),
    );
    let bytes = std::fs::read(&program).unwrap();
    for end in 0..bytes.len() {
        let _any = parse(Pieces(&bytes[..end]));
    }
    assert!(parse(Pieces(&bytes[..bytes.len() / 2])).malformed);
    assert!(parse(Pieces(b"#!/bin/sh\n".as_slice())).malformed);
    // Half of it in the headers: that is where lies do harm.
    let bounds = Bounds {
        bytes: 4 * bytes.len(),
        allocations: 2000,
    };
    let ends = harmless(5_000, &bytes, &[0..64, 64..1024], bounds, |broken| {
        let build = parse(Pieces(broken));
        assert!(build.release.is_none_or(|release| release.len() <= broken.len()));
        !build.malformed
    });
    ends.both_often();
}

/// A file of 2 MiB whose 16,000 sections are all the same 65,536 notes: they are not read again and again.
#[test]
fn notes_in_many_sections_are_read_within_limits() {
    let notes = note(b"GNU\0", 9, b"").repeat(1 << 16);
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let at = 64 + notes.len();
    let count: u16 = 16_000;
    file[16..24].copy_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    file[40..48].copy_from_slice(&(at as u64).to_le_bytes());
    file[52..64].copy_from_slice(&[64, 0, 56, 0, 0, 0, 64, 0, 0, 0, 0, 0]);
    file[60..62].copy_from_slice(&count.to_le_bytes());
    file.extend_from_slice(&notes);
    for _ in 0..count {
        let mut section = [0; 64];
        section[4] = 7;
        section[24] = 64;
        section[32..40].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        section[48] = 4;
        file.extend_from_slice(&section);
    }
    let mut finds = Finds::default();
    finds.file::<FileHeader64<Endianness>, _>(Pieces(file.as_slice()));
    assert!(finds.malformed);
    // Each section that is left says so, and no more.
    assert!(finds.notes <= NOTES + usize::from(count), "{}", finds.notes);
}
