//! Modules that come with samples of processes that the agent does not know yet.

use std::collections::HashMap;

use agent_ebpf::wire::{self, MODULE_EXECUTABLE, MODULE_VDSO, SAMPLE_MODULES};

use super::events::read;
use super::harvest::PAGE;
use super::model::{CapturedCode, CapturedFile, CapturedModule, SlotId};

/// Modules that wait for the end of the tick, at most: a storm of a thousand programs a second has some 3,000 a second.
const MAX: usize = 32_768;
/// Behind all addresses of processes.
const END: u64 = 1 << 56;

/// What was captured, by process image.
#[derive(Debug, Default)]
pub struct Captured {
    modules: HashMap<(SlotId, u32), Vec<CapturedModule>>,
    count: usize,
    /// Modules that found no room.
    pub dropped: u64,
}

impl Captured {
    pub(super) fn add(&mut self, process: (SlotId, u32), modules: Vec<CapturedModule>) {
        if self.count >= MAX {
            self.dropped += modules.len() as u64;
        } else if !modules.is_empty() {
            let known = self.modules.entry(process).or_default();
            let before = known.len();
            for module in modules {
                if !known.contains(&module) {
                    known.push(module);
                }
            }
            self.count += known.len() - before;
        }
    }

    /// What there is.
    pub fn take(&mut self) -> HashMap<(SlotId, u32), Vec<CapturedModule>> {
        self.count = 0;
        std::mem::take(&mut self.modules)
    }
}

/// The modules of a record, behind its frames; `None` where it has not as many as it says. One that makes no sense is left out.
pub(super) fn decode(bytes: &[u8], count: u32) -> Option<Vec<CapturedModule>> {
    let count = usize::try_from(count).ok()?;
    if count > SAMPLE_MODULES {
        return None;
    }
    let size = size_of::<wire::CapturedModule>();
    let bytes = bytes.get(..count * size)?;
    Some(bytes.chunks_exact(size).filter_map(module).collect())
}

fn module(bytes: &[u8]) -> Option<CapturedModule> {
    let wire: wire::CapturedModule = read(bytes)?;
    let offset = wire.page_offset.checked_mul(PAGE)?;
    if wire.start >= wire.end || wire.end > END || offset.checked_add(wire.end - wire.start).is_none() {
        return None;
    }
    let code = if wire.flags & MODULE_VDSO != 0 {
        CapturedCode::Vdso
    } else if wire.inode == 0 {
        CapturedCode::Memory
    } else {
        CapturedCode::File(CapturedFile {
            device: (wire.device >> 20, wire.device & 0xf_ffff),
            inode: wire.inode,
            generation: wire.generation,
            size: wire.size,
            mtime: (wire.mtime, i64::from(wire.mtime_nsec)),
        })
    };
    Some(CapturedModule {
        start: wire.start,
        end: wire.end,
        offset,
        code,
        executable: wire.flags & MODULE_EXECUTABLE != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(modules: &[wire::CapturedModule]) -> Vec<u8> {
        // SAFETY: plain records without padding.
        unsafe { std::slice::from_raw_parts(modules.as_ptr().cast::<u8>(), size_of_val(modules)) }.to_vec()
    }

    fn good() -> wire::CapturedModule {
        wire::CapturedModule {
            start: 0x55d0_c000_2000,
            end: 0x55d0_c000_5000,
            page_offset: 2,
            inode: 42,
            size: 5000,
            mtime: 1_700_000_000,
            mtime_nsec: 7,
            device: 0xfe << 20 | 1,
            generation: 9,
            flags: MODULE_EXECUTABLE,
        }
    }

    #[test]
    fn a_module_is_what_the_kernel_side_wrote() {
        let vdso = wire::CapturedModule {
            inode: 0,
            flags: MODULE_VDSO,
            ..good()
        };
        let memory = wire::CapturedModule { flags: 0, ..vdso };
        let all = decode(&bytes(&[good(), vdso, memory]), 3).unwrap();
        let file = CapturedFile {
            device: (0xfe, 1),
            inode: 42,
            generation: 9,
            size: 5000,
            mtime: (1_700_000_000, 7),
        };
        let expected = CapturedModule {
            start: 0x55d0_c000_2000,
            end: 0x55d0_c000_5000,
            offset: 0x2000,
            code: CapturedCode::File(file),
            executable: true,
        };
        assert_eq!(all[0], expected);
        assert_eq!(
            (all[1].code, all[2].code, all[1].executable),
            (CapturedCode::Vdso, CapturedCode::Memory, false)
        );
    }

    #[test]
    fn what_makes_no_sense_is_no_module() {
        let good = good();
        for lie in [
            wire::CapturedModule {
                end: good.start,
                ..good
            },
            wire::CapturedModule { end: 0, ..good },
            wire::CapturedModule { end: END + 1, ..good },
            wire::CapturedModule {
                page_offset: u64::MAX,
                ..good
            },
            wire::CapturedModule {
                page_offset: u64::MAX / PAGE,
                ..good
            },
        ] {
            assert_eq!(decode(&bytes(&[lie, good]), 2).unwrap().len(), 1, "{lie:?}");
        }
        let two = bytes(&[good, good]);
        assert_eq!(decode(&two, 2).unwrap().len(), 2);
        for (bytes, count) in [
            (&two[..127], 2),
            (&two[..], 3),
            (&two[..], 9),
            (&two[..], u32::MAX),
        ] {
            assert_eq!(decode(bytes, count), None, "{count}");
        }
        assert_eq!(decode(&[], 0), Some(Vec::new()));
    }

    #[test]
    fn the_modules_of_all_samples_are_bounded() {
        let module = decode(&bytes(&[good()]), 1).unwrap()[0];
        let mut captured = Captured::default();
        for pid in 0..MAX as u32 + 10 {
            captured.add((SlotId(1), pid), vec![module, module]);
        }
        captured.add((SlotId(2), 1), Vec::new());
        // The second of each process is the first.
        assert_eq!(captured.dropped, 20);
        let taken = captured.take();
        assert_eq!(taken.values().map(Vec::len).sum::<usize>(), MAX);
        assert!(taken.values().all(|modules| modules.len() <= 1) && captured.take().is_empty());
    }
}
