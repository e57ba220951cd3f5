//! The table of locations of a code object (`co_linetable` since 3.11, Objects/locations.md): which line an instruction is of.

/// The line of an instruction, counted in units of two bytes; `None` where it has none, or the table ends before it.
pub(super) fn line(table: &[u8], first_line: u32, instruction: u32) -> Option<u32> {
    let mut bytes = table.iter().copied();
    let (mut line, mut end) = (i64::from(first_line), 0u64);
    // Each entry: a byte with a form and a number of units, then what that form has.
    while let Some(head) = bytes.next() {
        end += u64::from(head & 7) + 1;
        let (delta, has_line) = match head >> 3 & 15 {
            // Columns in one byte, on the same line.
            0..=9 => {
                bytes.next()?;
                (0, true)
            }
            // Columns in two bytes, on this or one of the next two lines.
            form @ 10..=12 => {
                bytes.nth(1)?;
                (i64::from(form) - 10, true)
            }
            // A line alone.
            13 => (signed(varint(&mut bytes)?), true),
            // A line, and how many more lines and which columns.
            14 => {
                let delta = signed(varint(&mut bytes)?);
                for _ in 0..3 {
                    varint(&mut bytes)?;
                }
                (delta, true)
            }
            _ => (0, false),
        };
        line = line.checked_add(delta)?;
        if u64::from(instruction) < end {
            return u32::try_from(line).ok().filter(|_| has_line);
        }
    }
    None
}

/// Six bits a byte, the lowest first; a seventh says that there are more.
fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = bytes.next()?;
        value |= u64::from(byte & 63) << shift;
        shift += 6;
        if byte & 64 == 0 {
            return Some(value);
        }
        if shift > 48 {
            return None;
        }
    }
}

/// The lowest bit is the sign.
fn signed(value: u64) -> i64 {
    let size = (value >> 1).cast_signed();
    if value & 1 == 1 { -size } else { size }
}
