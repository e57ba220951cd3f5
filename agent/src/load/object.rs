//! Writes what is known of the running kernel into the instructions of the object.

use agent_ebpf::offsets::{
    MARK, MARK_CAST, MARK_CASTS, MARK_DIRECT, MARK_FLAGS, MARK_IOWAIT, MARK_LOAD, MARK_MEMSTALL, MARK_REGS,
};
use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, SectionKind};

use crate::kernel::Layout;

/// `BPF_ALU64 | BPF_MOV | BPF_K`: a constant into a register.
const MOVE: u8 = 0xb7;
/// `BPF_LD | BPF_DW | BPF_IMM`: the one instruction of two slots.
const WIDE: u8 = 0x18;
/// `BPF_LDX | BPF_MEM` of four, two, one and eight bytes.
const LOADS: [u8; 4] = [0x61, 0x69, 0x71, 0x79];
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL` as the source register: the function is one of the kernel, by its type's id.
const KERNEL_FUNCTION: u8 = 2 << 4;

/// `BPF_F_NO_PREALLOC`: a map takes memory for an element when it is added.
const NO_PREALLOC: u32 = 1;

/// An object that is aligned as the ELF format wants it.
pub(super) struct Bytes {
    words: Vec<u64>,
    len: usize,
}

impl Bytes {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.whole()[..self.len]
    }

    fn whole(&self) -> &[u8] {
        // SAFETY: every byte of the words is initialized, and a byte needs no alignment.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.words.len() * 8) }
    }
}

/// The object with the kernel's numbers instead of their marks, and with threads in an array by their id or not.
pub(super) fn for_kernel(compiled: &[u8], layout: &Layout, direct: bool) -> Result<Bytes> {
    let mut bytes = compiled.to_vec();
    let file = object::File::parse(compiled).context("the embedded BPF object is no ELF file")?;
    for section in file.sections() {
        let types = section.name() == Ok(".BTF");
        let Some((start, len)) = section.file_range() else {
            continue;
        };
        if !types && section.kind() != SectionKind::Text {
            continue;
        }
        let inside = usize::try_from(start)
            .ok()
            .zip(usize::try_from(start + len).ok())
            .and_then(|(from, to)| bytes.get_mut(from..to))
            .context("the embedded BPF object is cut off")?;
        if types {
            flags(inside, layout.allocates);
        } else {
            patch(inside, layout, direct);
        }
    }
    let mut words = vec![0; bytes.len().div_ceil(8)];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut full = [0; 8];
        full[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_ne_bytes(full);
    }
    Ok(Bytes {
        words,
        len: bytes.len(),
    })
}

/// The flags of maps are the length of an array in the object's type information.
fn flags(types: &mut [u8], allocates: bool) {
    let flags = if allocates { NO_PREALLOC } else { 0 };
    for word in types.chunks_exact_mut(4) {
        if *word == (MARK_FLAGS as u32).to_le_bytes() {
            word.copy_from_slice(&flags.to_le_bytes());
        }
    }
}

fn patch(code: &mut [u8], layout: &Layout, direct: bool) {
    let registers = layout.cast.map_or(0, |cast| cast.registers);
    let mut slots = code.chunks_exact_mut(8);
    while let Some(slot) = slots.next() {
        let place = i16::from_le_bytes([slot[2], slot[3]]);
        let constant = u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]);
        match slot[0] {
            WIDE => {
                slots.next();
            }
            MOVE => {
                let number = match constant {
                    MARK_REGS => Some(registers),
                    MARK_CASTS => Some(u32::from(layout.cast.is_some())),
                    MARK_DIRECT => Some(u32::from(direct)),
                    MARK_IOWAIT => Some(layout.iowait_mask),
                    MARK_MEMSTALL => Some(layout.memstall_mask),
                    other => other
                        .checked_sub(MARK)
                        .and_then(|at| layout.offsets.at(at as usize)),
                };
                if let Some(number) = number {
                    slot[4..].copy_from_slice(&number.to_le_bytes());
                }
            }
            CALL => {
                if let Some(cast) = layout.cast.filter(|_| constant == MARK_CAST) {
                    slot[1] = KERNEL_FUNCTION;
                    slot[4..].copy_from_slice(&cast.function.to_le_bytes());
                }
            }
            code if LOADS.contains(&code) => {
                let at = place
                    .checked_sub(MARK_LOAD)
                    .and_then(|at| usize::try_from(at).ok());
                if let Some(offset) = at.and_then(|at| layout.offsets.at(at)) {
                    // A program with a field that is missing is not loaded, or does not get there.
                    let offset = i16::try_from(offset).unwrap_or(i16::MAX);
                    slot[2..4].copy_from_slice(&offset.to_le_bytes());
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Cast;
    use agent_ebpf::offsets::{Field, Offsets};

    fn layout(cast: Option<Cast>) -> Layout {
        let mut offsets = Offsets::UNSET;
        offsets.set(Field::TaskTgid, 0x1234);
        Layout {
            offsets,
            missing: std::collections::BTreeMap::new(),
            iowait_mask: 0x20,
            memstall_mask: 0x40,
            rss_stride: 8,
            cast,
            allocates: true,
        }
    }

    const CAST: Cast = Cast {
        function: 0x5678,
        registers: 0x9abc,
    };

    fn slot(code: u8, sources: u8, place: i16, constant: u32) -> [u8; 8] {
        let [low, high] = place.to_le_bytes();
        let [a, b, c, d] = constant.to_le_bytes();
        [code, sources, low, high, a, b, c, d]
    }

    fn patched(code: &[[u8; 8]], cast: Option<Cast>) -> Vec<[u8; 8]> {
        let mut code = code.concat();
        patch(&mut code, &layout(cast), true);
        code.chunks_exact(8)
            .map(|slot| slot.try_into().unwrap())
            .collect()
    }

    #[test]
    fn only_moves_of_marks_are_changed() {
        let slot = |code: u8, constant: u32| slot(code, 1, 0, constant);
        let second = MARK + 4;
        let beyond = MARK + size_of::<Offsets>() as u32;
        let code = [
            slot(MOVE, second),
            slot(MOVE, MARK),
            slot(MOVE, beyond),
            slot(WIDE, second),
            slot(MOVE, second),
            slot(0x07, second),
        ];
        let wanted = [
            slot(MOVE, 0x1234),
            slot(MOVE, u32::MAX),
            slot(MOVE, beyond),
            slot(WIDE, second),
            slot(MOVE, second),
            slot(0x07, second),
        ];
        assert_eq!(patched(&code, None), wanted);
    }

    #[test]
    fn loads_of_marks_get_the_offset_and_no_others() {
        let beyond = MARK_LOAD + size_of::<Offsets>() as i16;
        for code in LOADS {
            let slot = |place: i16| slot(code, 0x12, place, 0);
            let code = [-8, 16, MARK_LOAD, MARK_LOAD + 4, MARK_LOAD + 5, beyond].map(slot);
            let wanted = [-8, 16, i16::MAX, 0x1234, MARK_LOAD + 5, beyond].map(slot);
            assert_eq!(patched(&code, None), wanted);
        }
        let store = [slot(0x7b, 0x12, MARK_LOAD + 4, 0)];
        assert_eq!(patched(&store, None), store);
    }

    #[test]
    fn the_cast_is_a_call_of_the_kernel_where_there_is_one() {
        let code = [
            slot(MOVE, 2, 0, MARK_REGS),
            slot(CALL, 0, 0, MARK_CAST),
            slot(MOVE, 3, 0, MARK_CASTS),
            slot(CALL, 0, 0, 1),
        ];
        let wanted = [
            slot(MOVE, 2, 0, 0x9abc),
            slot(CALL, 0x20, 0, 0x5678),
            slot(MOVE, 3, 0, 1),
            slot(CALL, 0, 0, 1),
        ];
        assert_eq!(patched(&code, Some(CAST)), wanted);
        let without = patched(&code, None);
        assert_eq!(
            without[2],
            slot(MOVE, 3, 0, 0),
            "the verifier takes the call away"
        );
    }

    #[test]
    fn other_constants_are_written_too() {
        let code = [slot(MOVE, 1, 0, MARK_IOWAIT), slot(MOVE, 1, 0, MARK_DIRECT)];
        let wanted = [slot(MOVE, 1, 0, 0x20), slot(MOVE, 1, 0, 1)];
        assert_eq!(patched(&code, None), wanted);
    }

    #[test]
    fn maps_allocate_where_the_kernel_can() {
        for (allocates, wanted) in [(true, NO_PREALLOC), (false, 0)] {
            let mut types = [7, MARK_FLAGS as u32, 9].map(u32::to_le_bytes).concat();
            flags(&mut types, allocates);
            assert_eq!(types, [7, wanted, 9].map(u32::to_le_bytes).concat());
        }
    }

    #[test]
    fn the_compiled_object_has_marks_and_loses_all_of_them() {
        let count = |object: &[u8]| {
            let file = object::File::parse(object).unwrap();
            let text = file
                .sections()
                .filter(|section| section.kind() == SectionKind::Text);
            let mut count = [0; 4];
            let types = file.section_by_name(".BTF").unwrap().data().unwrap();
            let mark = (MARK_FLAGS as u32).to_le_bytes();
            count[3] = types.chunks_exact(4).filter(|word| *word == mark).count();
            for section in text {
                for slot in section.data().unwrap().chunks_exact(8) {
                    let place = i16::from_le_bytes([slot[2], slot[3]]);
                    let constant = u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]);
                    count[0] += usize::from(
                        slot[0] == MOVE && [MARK >> 16, MARK_CAST >> 16].contains(&(constant >> 16)),
                    );
                    count[1] += usize::from(LOADS.contains(&slot[0]) && place >= MARK_LOAD);
                    count[2] += usize::from(slot[0] == CALL && slot[1] == 0 && constant == MARK_CAST);
                }
            }
            count
        };
        let [moves, loads, casts, flags] = count(crate::load::OBJECT);
        assert!(moves > 10 && loads > 30 && casts > 0, "{moves} {loads} {casts}");
        assert!(flags > 0, "no map takes its memory when it needs it");
        let mut layout = layout(Some(CAST));
        for field in Field::ALL {
            layout.offsets.set(*field, 8);
        }
        let object = for_kernel(crate::load::OBJECT, &layout, true).unwrap();
        assert_eq!(count(object.bytes()), [0; 4]);
    }
}
