//! The maps of the kernel side, searched as it does.

use std::collections::HashMap;

use agent_ebpf::wire::unwind::{
    BLOCK_WORDS, MAX_RULES, Mapping, Module, PAGE_BITS, Page, Rule, SEGMENT_WORDS, Space, SpaceKey,
};
use anyhow::{Context as _, Result, ensure};

use super::super::functions::Row;
use super::super::table::{Table, find};
use super::super::tables::{Mapped, Sink, Tables};

#[derive(Default)]
pub(super) struct Maps {
    rules: HashMap<u32, Rule>,
    segments: HashMap<u32, Vec<u16>>,
    pages: HashMap<u32, Page>,
    modules: HashMap<u32, Module>,
    mappings: HashMap<u32, Mapping>,
    pub(super) spaces: HashMap<SpaceKey, Space>,
}

impl Sink for Maps {
    fn rule(&mut self, number: u32, rule: Rule) -> Result<()> {
        ensure!(number < MAX_RULES);
        self.rules.insert(number, rule);
        Ok(())
    }

    fn segment(&mut self, segment: u32, there: bool) -> Result<()> {
        if there {
            let old = self.segments.insert(segment, vec![0; SEGMENT_WORDS as usize]);
            ensure!(old.is_none(), "segment {segment} is there already");
        } else {
            self.segments.remove(&segment).context("no such segment")?;
        }
        Ok(())
    }

    fn block(&mut self, segment: u32, block: u32, words: &[u16; BLOCK_WORDS as usize]) -> Result<()> {
        let at = (block * BLOCK_WORDS) as usize;
        self.segments.get_mut(&segment).context("no such segment")?[at..at + words.len()]
            .copy_from_slice(words);
        Ok(())
    }

    fn page(&mut self, number: u32, page: Page) -> Result<()> {
        self.pages.insert(number, page);
        Ok(())
    }

    fn module(&mut self, number: u32, module: Module) -> Result<()> {
        self.modules.insert(number, module);
        Ok(())
    }

    fn mapping(&mut self, number: u32, mapping: Mapping) -> Result<()> {
        self.mappings.insert(number, mapping);
        Ok(())
    }

    fn space(&mut self, key: SpaceKey, space: Option<Space>) -> Result<()> {
        match space {
            Some(space) => self.spaces.insert(key, space),
            None => self.spaces.remove(&key),
        };
        Ok(())
    }
}

impl Maps {
    /// The table of an address of a process.
    pub(super) fn module(&self, key: SpaceKey, ip: u64) -> Option<u32> {
        let space = self.spaces.get(&key)?;
        let mut mappings = (space.first..space.first + space.count).map(|number| self.mappings[&number]);
        let mapping = mappings.find(|mapping| (mapping.start..mapping.end).contains(&ip))?;
        mapping.module.checked_sub(1)
    }

    /// The rule at an address of a process.
    pub(super) fn rule_of(&self, key: SpaceKey, ip: u64) -> Option<Rule> {
        self.rules.get(&u32::from(self.find(key, ip)?)).copied()
    }

    /// Its number.
    fn find(&self, key: SpaceKey, ip: u64) -> Option<u16> {
        let space = self.spaces.get(&key)?;
        let mapping = (space.first..space.first + space.count)
            .map(|number| self.mappings[&number])
            .find(|mapping| (mapping.start..mapping.end).contains(&ip))?;
        let module = self.modules[&mapping.module.checked_sub(1)?];
        let at = ip.wrapping_add(mapping.bias).wrapping_sub(module.base);
        if at >> PAGE_BITS >= u64::from(module.pages) {
            return None;
        }
        let page = self.pages[&(module.first_page + (at >> PAGE_BITS) as u32)];
        if page.rules == 0 {
            return u16::try_from(page.first).ok();
        }
        let segment = self.segments.get(&(page.first / SEGMENT_WORDS))?;
        find(
            &segment[(page.first % SEGMENT_WORDS) as usize..],
            page.rules,
            at as u16,
        )
    }
}

fn table(count: u64, step: u64, rule: u16) -> Table {
    let rows: Vec<Row> = (0..count)
        .map(|i| Row::new(0x1000 + i * step, rule + (i % 2) as u16))
        .collect();
    Table::pack(&rows).unwrap()
}

const KEY: SpaceKey = SpaceKey { slot: 7, pid: 40 };

fn mapped(start: u64, file: Option<&'static str>) -> Mapped<&'static str> {
    Mapped {
        start,
        end: start + 0x1000_0000,
        bias: 0u64.wrapping_sub(start),
        file,
    }
}

#[test]
fn every_address_leads_to_its_rule_through_segments_and_blocks() {
    let (mut maps, mut tables) = (Maps::default(), Tables::new(64 << 20));
    // 600,000 rows are more than a segment holds.
    let (large, small) = (table(600_000, 7, 10), table(100, 64, 20));
    assert!(tables.place(&mut maps, "large", &large).unwrap());
    assert!(tables.place(&mut maps, "small", &small).unwrap());
    let space = [
        mapped(0x4000_0000, Some("small")),
        mapped(0x7000_0000, Some("large")),
        mapped(0x9000_0000, None),
    ];
    assert!(tables.map(&mut maps, KEY, &space).unwrap());
    assert_eq!((tables.row_bytes(), maps.segments.len()), (2 << 20, 2));
    for address in (0..600_000 * 7 + 0x2000).step_by(13) {
        assert_eq!(
            maps.find(KEY, 0x7000_0000 + address),
            large.find(address),
            "{address:#x}"
        );
        assert_eq!(
            maps.find(KEY, 0x4000_0000 + address),
            small.find(address),
            "{address:#x}"
        );
    }
    assert_eq!(maps.find(KEY, 0x9000_0000), None);
    assert_eq!(maps.find(SpaceKey { slot: 7, pid: 0 }, 0x7000_1000), None);
}

#[test]
fn unused_tables_make_room_and_their_memory_is_given_back() {
    let (mut maps, mut tables) = (Maps::default(), Tables::new(1 << 20));
    let half = table(240_000, 3, 10);
    assert!(tables.place(&mut maps, "one", &half).unwrap());
    assert!(tables.place(&mut maps, "two", &half).unwrap());
    assert!(!tables.place(&mut maps, "three", &half).unwrap());
    assert!(!tables.has(&"three"));
    assert!(
        tables
            .map(&mut maps, KEY, &[mapped(0x4000_0000, Some("one"))])
            .unwrap()
    );
    for _ in 0..3 {
        tables.turn(&mut maps).unwrap();
    }
    tables.evict(2);
    assert!(tables.has(&"one") && !tables.has(&"two"));
    // A walk may still read what was dropped just now.
    assert!(!tables.place(&mut maps, "three", &half).unwrap());
    tables.turn(&mut maps).unwrap();
    assert!(tables.place(&mut maps, "three", &half).unwrap());
    assert_eq!(maps.find(KEY, 0x4000_1003), half.find(0x1003));
    tables.unmap(&mut maps, KEY).unwrap();
    assert_eq!(maps.find(KEY, 0x4000_1003), None);
    for _ in 0..3 {
        tables.turn(&mut maps).unwrap();
    }
    tables.evict(2);
    tables.turn(&mut maps).unwrap();
    assert_eq!((tables.row_bytes(), maps.segments.len()), (0, 0));
}

#[test]
fn a_process_that_maps_anew_keeps_no_old_places() {
    let (mut maps, mut tables) = (Maps::default(), Tables::new(1 << 20));
    assert!(tables.place(&mut maps, "one", &table(10, 16, 10)).unwrap());
    for round in 0..200_000u64 {
        let space = [
            mapped(0x4000_0000, Some("one")),
            mapped(0x7000_0000 + (round << 28), None),
        ];
        assert!(tables.map(&mut maps, KEY, &space).unwrap(), "round {round}");
        tables.turn(&mut maps).unwrap();
    }
    assert_eq!(maps.spaces[&KEY].count, 2);
}

#[test]
fn a_table_that_comes_later_is_there_for_those_who_still_want_it() {
    let (mut maps, mut tables) = (Maps::default(), Tables::new(1 << 20));
    let keys = [1, 2, 3, 4].map(|pid| SpaceKey { slot: 7, pid });
    let space = [
        mapped(0x4000_0000, Some("late")),
        mapped(0x7000_0000, Some("never")),
    ];
    for key in keys {
        assert!(tables.map(&mut maps, key, &space).unwrap());
        assert_eq!(maps.find(key, 0x4000_1000), None);
    }
    // One ends, one has something else in that place by then.
    tables.unmap(&mut maps, keys[1]).unwrap();
    assert!(
        tables
            .map(&mut maps, keys[2], &[mapped(0x4000_0000, None)])
            .unwrap()
    );
    let late = table(10, 16, 10);
    assert!(tables.place(&mut maps, "late", &late).unwrap());
    tables.unwanted(&"never");
    let found = keys.map(|key| maps.find(key, 0x4000_1000));
    assert_eq!(found, [late.find(0x1000), None, None, late.find(0x1000)]);
    // It is kept for as long as one of the two has it mapped.
    tables.unmap(&mut maps, keys[0]).unwrap();
    for (key, kept) in [(keys[1], true), (keys[3], false)] {
        tables.unmap(&mut maps, key).unwrap();
        for _ in 0..3 {
            tables.turn(&mut maps).unwrap();
        }
        tables.evict(2);
        assert_eq!(tables.has(&"late"), kept);
    }
}
