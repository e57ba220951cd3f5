//! What the linkers' stubs are made of: the code that jumps to wherever a slot of the global offset table says.
//!
//! A stub is told by its instructions, not by its size: linkers differ in sizes, and the slot that is found has to be one that
//! a relocation fills. Forms: those of the psABIs and of GNU ld, gold, lld and mold.

/// `EM_X86_64` and `EM_AARCH64`.
const X86_64: u16 = 62;
const AARCH64: u16 = 183;

const ENDBR64: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
const BTI_C: u32 = 0xd503_245f;

/// What a stub says of where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// To what this slot holds, by its address.
    Slot(u64),
    /// To the linker, to be bound as this relocation of `.rela.plt` says.
    Number(u32),
}

/// A stub: where it begins and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) start: u64,
    pub(super) len: u8,
    pub(super) leads: Leads,
}

/// Appends the stubs of a section that begins at an address; false when there are more than `most`.
pub(super) fn stubs(machine: u16, base: u64, code: &[u8], most: usize, found: &mut Vec<Found>) -> bool {
    // How far apart stubs may begin, and how long one is at most.
    let (step, longest) = match machine {
        X86_64 => (8, 16),
        AARCH64 => (4, 24),
        _ => return true,
    };
    let first = found.len();
    for at in (0..code.len()).step_by(step) {
        let (Some(rest), Some(start)) = (code.get(at..), base.checked_add(at as u64)) else {
            break;
        };
        let leads = if machine == X86_64 {
            x86_64(base, start, rest)
        } else {
            aarch64(start, rest)
        };
        let Some(leads) = leads else { continue };
        let before = found[first..].last_mut();
        if let Some(before) = before {
            // What begins with `bti c` is found again one instruction later.
            if machine == AARCH64 && before.start + 4 == start && before.leads == leads {
                continue;
            }
            before.len = u8::try_from(start - before.start).map_or(before.len, |len| len.min(before.len));
        }
        if found.len() == most {
            return false;
        }
        let len = rest.len().min(longest);
        found.push(Found {
            start,
            len: u8::try_from(len).unwrap_or(0),
            leads,
        });
    }
    true
}

/// The number at the beginning.
fn number(code: &[u8]) -> Option<u32> {
    code.first_chunk().copied().map(u32::from_le_bytes)
}

/// An address relative to another.
fn relative(to: u64, distance: u32) -> u64 {
    to.wrapping_add_signed(i64::from(distance.cast_signed()))
}

fn x86_64(base: u64, start: u64, code: &[u8]) -> Option<Leads> {
    let body = code.strip_prefix(ENDBR64).unwrap_or(code);
    let end_of = |rest: &[u8]| start.wrapping_add((code.len() - rest.len()) as u64);
    // mov $number, %r11d
    let jump = match body.strip_prefix(&[0x41, 0xbb]) {
        Some(moved) => moved.get(4..)?,
        None => body,
    };
    // bnd jmp *slot(%rip)
    let jump = jump.strip_prefix(&[0xf2]).unwrap_or(jump);
    if let Some(operand) = jump.strip_prefix(&[0xff, 0x25]) {
        return Some(Leads::Slot(relative(end_of(operand.get(4..)?), number(operand)?)));
    }
    // push $number; bnd jmp to the section's first stub
    let index = number(body.strip_prefix(&[0x68])?)?;
    let jump = body.get(5..)?;
    let target = jump.strip_prefix(&[0xf2]).unwrap_or(jump).strip_prefix(&[0xe9])?;
    let target = relative(end_of(target.get(4..)?), number(target)?);
    (target == base).then_some(Leads::Number(index))
}

/// `adrp x16, page; ldr x17, [x16, #offset]`
fn aarch64(start: u64, code: &[u8]) -> Option<Leads> {
    let word = |at: usize| number(code.get(4 * at..)?);
    let first = usize::from(word(0)? == BTI_C);
    let (page, load) = (word(first)?, word(first + 1)?);
    if page & 0x9f00_001f != 0x9000_0010 || load & 0xffc0_03ff != 0xf940_0211 {
        return None;
    }
    // 21 bits, the lower two of them apart, of pages.
    let pages = ((((page >> 5) & 0x7_ffff) << 2) | ((page >> 29) & 3)) << 11;
    let distance = i64::from(pages.cast_signed() >> 11) << 12;
    let here = start.wrapping_add(4 * first as u64) & !0xfff;
    let slot = here
        .wrapping_add_signed(distance)
        .wrapping_add(u64::from((load >> 10) & 0xfff) * 8);
    Some(Leads::Slot(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// As `aarch64-linux-gnu-ld -shared` and `objdump -d` of binutils 2.40 have them; the first leads to the linker.
    #[test]
    fn stubs_of_aarch64() {
        let code = words(&[
            0xa9bf_7bf0,
            0xf000_00f0,
            0xf947_ea11,
            0x913f_4210,
            0xd61f_0220,
            0xd503_201f,
            0xd503_201f,
            0xd503_201f,
            0xf000_00f0,
            0xf947_ee11,
            0x913f_6210,
            0xd61f_0220,
            0xf000_00f0,
            0xf947_f211,
            0x913f_8210,
            0xd61f_0220,
            0x9000_0110,
            0xf940_0a11,
            0x9100_4210,
            0xd61f_0220,
        ]);
        let mut found = Vec::new();
        assert!(stubs(AARCH64, 0x290, &code, 8, &mut found));
        let found: Vec<_> = found
            .iter()
            .map(|stub| (stub.start, stub.len, stub.leads))
            .collect();
        assert_eq!(
            found,
            [
                (0x294, 24, Leads::Slot(0x1ffd0)),
                (0x2b0, 16, Leads::Slot(0x1ffd8)),
                (0x2c0, 16, Leads::Slot(0x1ffe0)),
                (0x2d0, 16, Leads::Slot(0x20010)),
            ]
        );
        // With `bti c`, one page before.
        let code = words(&[
            0xd503_245f,
            0xf0ff_fff0,
            0xf940_0211,
            0x9100_0210,
            0xd61f_0220,
            0xd503_201f,
        ]);
        let mut found = Vec::new();
        assert!(stubs(AARCH64, 0x2000, &code, 8, &mut found));
        let expected = Found {
            start: 0x2000,
            len: 24,
            leads: Leads::Slot(0x1000),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn forms_of_x86_64() {
        let one = |code: &[u8]| {
            let mut found = Vec::new();
            assert!(stubs(X86_64, 0x1020, code, 8, &mut found));
            found
                .iter()
                .map(|stub| (stub.start, stub.len, stub.leads))
                .collect::<Vec<_>>()
        };
        // mold: endbr64; mov $3, %r11d; jmp *slot
        let mold = [
            0xf3, 0x0f, 0x1e, 0xfa, 0x41, 0xbb, 3, 0, 0, 0, 0xff, 0x25, 0x50, 0x24, 0, 0,
        ];
        assert_eq!(one(&mold), [(0x1020, 16, Leads::Slot(0x1030 + 0x2450))]);
        // bnd jmp *slot before the section.
        let bnd = [0xf2, 0xff, 0x25, 0xf9, 0xff, 0xff, 0xff, 0x90];
        assert_eq!(one(&bnd), [(0x1020, 8, Leads::Slot(0x1020))]);
        // A push and a jump that does not lead to the first stub is none; one that does is.
        let mut push = [0x68, 7, 0, 0, 0, 0xe9, 0xf6, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
        assert_eq!(one(&push), [(0x1020, 16, Leads::Number(7))]);
        push[6] = 0;
        assert_eq!(one(&push), []);
        // Cut off.
        for len in 0..10 {
            assert_eq!(one(&push[..len]), []);
        }
        let mut found = Vec::new();
        assert!(!stubs(X86_64, 0, &bnd.repeat(9), 8, &mut found));
        assert_eq!(found.len(), 8);
    }
}
