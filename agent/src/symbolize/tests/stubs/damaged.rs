//! Stubs and relocations made to do harm.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::super::{start_program, stop};
use super::{address_of, build, named, sections};
use crate::host::damage::{Bounds, harmless};
use crate::symbolize::cpu_time::CpuTime;
use crate::symbolize::headers::Headers;
use crate::symbolize::stubs::{Stubs, Target};
use crate::symbolize::{Outcome, Symbolizer, SymbolizerConfig};

/// Where the header of a section is in a file.
fn header(file: &[u8], name: &str) -> usize {
    let headers = Headers::read(&written(file)).unwrap();
    let index = headers.names.iter().position(|each| each == name).unwrap();
    usize::try_from(headers.table_offset).unwrap() + 64 * index
}

fn written(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn put(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn late() -> CpuTime {
    CpuTime::now() + std::time::Duration::from_secs(60)
}

#[test]
fn a_section_that_is_too_large_costs_its_names_and_is_counted() {
    let program = build("gcc", &[]);
    let main = address_of(&program.whole, "main");
    let of = |wanted: &str| {
        let sections = sections(&program.whole);
        let found = sections.iter().find(|(section, _)| section == wanted).unwrap();
        found.1.start
    };
    for (size, why) in [(1 << 40, Outcome::TooLarge), (24 << 10, Outcome::ElfError)] {
        let mut crafted = std::fs::read(&program.stripped).unwrap();
        let at = header(&crafted, ".rela.dyn");
        put(&mut crafted, at + 32, size);
        let offset = crafted.len() as u64 - 24;
        put(&mut crafted, at + 24, offset);
        std::fs::write(&program.stripped, crafted).unwrap();
        let (mut child, address) = start_program(&program.stripped);
        let mut symbolizer = Symbolizer::new(SymbolizerConfig::default());
        let mut name = |at| named(&mut symbolizer, child.id(), at + (address - main));
        assert_eq!(name(of(".plt.got")), None);
        assert!(name(of(".plt") + 16).unwrap().ends_with("@plt"));
        assert_eq!(symbolizer.stats().count(why), 1, "{why:?}");
        assert_eq!(symbolizer.stats().count(Outcome::Ok), 1);
        stop(&mut child);
    }
}

#[test]
fn damaged_relocations_and_stubs_cost_no_more_than_the_file() {
    let program = build("gcc", &["-fcf-protection=full", "-Wl,-z,ibtplt"]);
    let whole = std::fs::read(&program.stripped).unwrap();
    let headers = Headers::read(&written(&whole)).unwrap();
    let range = |name: &str| {
        let (offset, size) = headers.range(name).unwrap();
        let offset = usize::try_from(offset).unwrap();
        offset..offset + usize::try_from(size).unwrap()
    };
    let names = [
        ".plt",
        ".plt.sec",
        ".plt.got",
        ".rela.plt",
        ".rela.dyn",
        ".dynsym",
        ".dynstr",
    ];
    let mut weak: Vec<_> = names.map(range).into();
    weak.extend(names.map(|name| {
        let at = header(&whole, name);
        at..at + 64
    }));
    let bounds = Bounds {
        bytes: 16 * whole.len() + (512 << 10),
        allocations: 4_000,
    };
    let mut unnamed = 0;
    harmless(3_000, &whole, &weak, bounds, |damaged| {
        let file = written(damaged);
        let Ok(headers) = Headers::read(&file) else {
            return false;
        };
        let Ok(image) = headers.copy(&file, damaged.len() as u64, 1 << 20, late()) else {
            return false;
        };
        let stubs = Stubs::read(&file, &headers, late());
        assert!(stubs.bytes() <= 8 * damaged.len() as u64);
        let mut all = true;
        for at in (0x1000..0x1200).step_by(4).chain([0, u64::MAX]) {
            if let Some(Target::Symbol(symbol)) = stubs.at(at) {
                let name = stubs.name(&image, symbol);
                assert!(name.as_ref().is_none_or(|name| name.len() < damaged.len()));
                all &= name.is_some();
            }
            let _any = stubs.failed(at);
        }
        unnamed += u64::from(!all);
        all && stubs.bytes() > 0
    })
    .both_often();
    assert!(unnamed > 30, "{unnamed}");
}

/// Tens of thousands of stubs that all jump to one slot, and as many relocations that all fill it.
#[test]
fn what_repeats_itself_is_looked_at_once() {
    let program = build("gcc", &[]);
    let whole = std::fs::read(&program.stripped).unwrap();
    let (base, slot, relocations) = (0x10_0000_u64, 0x8000_u64, 65_536);
    for (count, failed) in [(60_000, None), (70_000, Some(Outcome::TooLarge))] {
        let mut file = whole.clone();
        for stub in 0..count {
            let next = base + 16 * stub + 6;
            let distance = i32::try_from(slot.wrapping_sub(next).cast_signed()).unwrap();
            file.extend([0xff, 0x25]);
            file.extend(distance.to_le_bytes());
            file.extend([0x90; 10]);
        }
        let relocations_at = file.len() as u64;
        for word in [slot, (1 << 32) | 7, 0].repeat(relocations) {
            file.extend(word.to_le_bytes());
        }
        let (plt, filled) = (header(&whole, ".plt"), header(&whole, ".rela.plt"));
        put(&mut file, plt + 16, base);
        put(&mut file, plt + 24, whole.len() as u64);
        put(&mut file, plt + 32, 16 * count);
        put(&mut file, filled + 24, relocations_at);
        put(&mut file, filled + 32, 24 * relocations as u64);
        let opened = written(&file);
        // Some bytes for each stub, and none for a relocation; and it does not take long.
        let bounds = Bounds {
            bytes: 16 << 20,
            allocations: 1_000,
        };
        harmless(1, &[0], &[], bounds, |_| {
            let stubs = Stubs::read(&opened, &Headers::read(&opened).unwrap(), late());
            assert_eq!(stubs.at(base + 16 * 59_999 + 3), Some(Target::Symbol(1)));
            assert_eq!((stubs.failed(base), stubs.at(base + 16 * 69_999)), (failed, None));
            assert!(stubs.bytes() <= 65_536 * 32);
            true
        });
    }
}
