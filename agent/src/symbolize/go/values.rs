//! Values by instruction: pairs of a change of the value and the number of bytes of code that it holds for, both as variable-length
//! numbers; signed ones in zigzag. The first value is a change from -1, and a change of zero that is not the first ends the list.

/// Pairs looked at: a function has one for each line at most.
const MAX_PAIRS: usize = 1 << 20;

/// The values one after the other, each with the end of what it holds for, from the function's beginning. It stops where the list is
/// broken.
pub(super) fn all(mut list: &[u8]) -> impl Iterator<Item = (u64, i64)> {
    let (mut value, mut end) = (-1i64, 0u64);
    (0..MAX_PAIRS).map_while(move |pair| {
        let change = number(&mut list)?;
        if change == 0 && pair > 0 {
            return None;
        }
        let change = i64::from(change);
        value += (change >> 1) ^ -(change & 1);
        // The least length of an instruction of x86-64 is a byte, and the unit.
        end += u64::from(number(&mut list)?);
        Some((end, value))
    })
}

/// The value at an offset from the function's beginning.
pub(super) fn at(list: &[u8], pc: u64) -> Option<i64> {
    all(list).find(|(end, _)| pc < *end).map(|(_, value)| value)
}

/// Seven bits a byte, the least first; the highest bit says that more follow.
fn number(list: &mut &[u8]) -> Option<u32> {
    let mut number = 0u32;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = list.split_first()?;
        *list = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_hold_until_the_next_change() {
        // 8 for 16 bytes, then 5 for 300, then 6 for 1.
        let list = [18, 16, 5, 0xac, 0x02, 2, 1, 0];
        for (pc, value) in [
            (0, Some(8)),
            (15, Some(8)),
            (16, Some(5)),
            (315, Some(5)),
            (316, Some(6)),
            (317, None),
        ] {
            assert_eq!(at(&list, pc), value, "{pc}");
        }
        assert_eq!(all(&list).collect::<Vec<_>>(), [(16, 8), (316, 5), (317, 6)]);
        assert_eq!(at(&list[..3], 16), None);
        assert_eq!(at(&[0xff; 9], 0), None);
        // The first change may be none.
        assert_eq!(at(&[0, 4, 0], 3), Some(-1));
    }
}
