//! Writes the running kernel's offsets into the instructions of the object.

use agent_ebpf::offsets::{MARK, Offsets};
use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, SectionKind};

/// `BPF_ALU64 | BPF_MOV | BPF_K`: a constant into a register.
const MOVE: u8 = 0xb7;
/// `BPF_LD | BPF_DW | BPF_IMM`: the one instruction of two slots.
const WIDE: u8 = 0x18;

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

/// The object with `offsets` instead of their marks.
pub(super) fn with_offsets(compiled: &[u8], offsets: Offsets) -> Result<Bytes> {
    let mut bytes = compiled.to_vec();
    let file = object::File::parse(compiled).context("the embedded BPF object is no ELF file")?;
    for section in file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
    {
        let Some((start, len)) = section.file_range() else {
            continue;
        };
        let code = usize::try_from(start)
            .ok()
            .zip(usize::try_from(start + len).ok())
            .and_then(|(from, to)| bytes.get_mut(from..to))
            .context("the embedded BPF object is cut off")?;
        patch(code, &offsets);
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

fn patch(code: &mut [u8], offsets: &Offsets) {
    let mut slots = code.chunks_exact_mut(8);
    while let Some(slot) = slots.next() {
        match slot[0] {
            WIDE => {
                slots.next();
            }
            MOVE => {
                let constant = u32::from_le_bytes([slot[4], slot[5], slot[6], slot[7]]);
                if let Some(offset) = constant.checked_sub(MARK).and_then(|at| offsets.at(at as usize)) {
                    slot[4..].copy_from_slice(&offset.to_le_bytes());
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_ebpf::offsets::Field;

    fn offsets() -> Offsets {
        let mut offsets = Offsets::UNSET;
        offsets.set(Field::TaskTgid, 0x1234);
        offsets
    }

    #[test]
    fn only_moves_of_marks_are_changed() {
        let slot = |code: u8, constant: u32| {
            let [a, b, c, d] = constant.to_le_bytes();
            [code, 1, 0, 0, a, b, c, d]
        };
        let second = MARK + 4;
        let beyond = MARK + size_of::<Offsets>() as u32;
        let mut code: Vec<u8> = [
            slot(MOVE, second),
            slot(MOVE, MARK),
            slot(MOVE, beyond),
            slot(WIDE, second),
            slot(MOVE, second),
            slot(0x07, second),
        ]
        .concat();
        patch(&mut code, &offsets());
        let wanted = [
            slot(MOVE, 0x1234),
            slot(MOVE, u32::MAX),
            slot(MOVE, beyond),
            slot(WIDE, second),
            slot(MOVE, second),
            slot(0x07, second),
        ]
        .concat();
        assert_eq!(code, wanted);
    }

    #[test]
    fn the_compiled_object_has_marks_and_loses_all_of_them() {
        let count = |object: &[u8]| {
            let file = object::File::parse(object).unwrap();
            let marks = |section: object::Section<'_, '_>| {
                let moves = section
                    .data()
                    .unwrap()
                    .chunks_exact(8)
                    .filter(|slot| slot[0] == MOVE);
                moves.filter(|slot| slot[6..] == MARK.to_le_bytes()[2..]).count()
            };
            let text = file
                .sections()
                .filter(|section| section.kind() == SectionKind::Text);
            text.map(marks).sum::<usize>()
        };
        assert!(count(crate::load::OBJECT) > 30);
        let object = with_offsets(crate::load::OBJECT, offsets()).unwrap();
        assert_eq!(count(object.bytes()), 0);
    }
}
