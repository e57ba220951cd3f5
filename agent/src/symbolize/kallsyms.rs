//! The kernel's own list of symbols (`/proc/kallsyms`), kept in little memory: it has more than a hundred thousand.

use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::DeflateDecoder;
use flate2::{Compress, Compression, FlushCompress, Status};

/// Most of the list that is read, in bytes: that of the kernel of the tests, 122,168 symbols, has 5 MB.
const MAX_LIST: u64 = 256 << 20;
/// In place of where a name is: what begins here is no function.
const NO_FUNCTION: u32 = u32::MAX;
/// Names that are compressed together, some 6 kB: one is found by reading half of them.
const TOGETHER: usize = 256;
/// Room for a block that does not get smaller: deflate adds some bytes to each part that it leaves as it is.
const NO_SMALLER: usize = 128;

/// Functions of the kernel, of its modules and of BPF programs.
#[derive(Debug, Default)]
pub(super) struct Kallsyms {
    /// Where each begins, sorted.
    starts: Vec<u64>,
    /// The number of the name of each.
    names: Vec<u32>,
    /// Names in the order of their numbers, each with an end of line behind it, [`TOGETHER`] to a block.
    packed: Vec<u8>,
    /// Where each block ends.
    blocks: Vec<usize>,
}

impl Kallsyms {
    /// Reads the list.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let mut list = BufReader::new(std::fs::File::open(path)?.take(MAX_LIST));
        let (mut names, mut found, mut line) = (Vec::new(), Vec::new(), Vec::new());
        while list.read_until(b'\n', &mut line)? > 0 {
            found.extend(symbol(&line, &mut names));
            line.clear();
        }
        // Of several names for the same function the kernel itself takes the first one of its list.
        found.sort_by_key(|(start, at)| (*start, *at == NO_FUNCTION));
        found.dedup_by_key(|(start, _)| *start);
        // Of data only that a function has ended is of use.
        found.dedup_by(|next, last| next.1 == NO_FUNCTION && last.1 == NO_FUNCTION);
        let mut all = Self {
            starts: found.iter().map(|(start, _)| *start).collect(),
            ..Self::default()
        };
        let functions: Vec<u32> = found
            .iter()
            .map(|(_, at)| *at)
            .filter(|at| *at != NO_FUNCTION)
            .collect();
        let (mut compress, mut block) = (Compress::new(Compression::fast(), false), Vec::new());
        for some in functions.chunks(TOGETHER) {
            block.clear();
            for at in some {
                block.extend_from_slice(until_line_end(&names, *at));
                block.push(b'\n');
            }
            all.pack(&block, &mut compress)?;
        }
        all.packed.shrink_to_fit();
        let mut numbers = 0..NO_FUNCTION;
        let mut number = |at| if at == NO_FUNCTION { None } else { numbers.next() };
        let named = found.iter().map(|(_, at)| number(*at).unwrap_or(NO_FUNCTION));
        all.names = named.collect();
        Ok(all)
    }

    /// Adds a block of names.
    fn pack(&mut self, names: &[u8], compress: &mut Compress) -> io::Result<()> {
        compress.reset();
        self.packed.reserve(names.len() + names.len() / 1000 + NO_SMALLER);
        let status = compress.compress_vec(names, &mut self.packed, FlushCompress::Finish)?;
        if status != Status::StreamEnd {
            return Err(io::Error::other("compressed names found no room"));
        }
        self.blocks.push(self.packed.len());
        Ok(())
    }

    /// The function at an address: the list has no sizes, so it is the last one that begins before.
    pub(super) fn find(&self, address: u64) -> Option<String> {
        let after = self.starts.partition_point(|start| *start <= address);
        let number = *self.names.get(after.checked_sub(1)?)? as usize;
        let block = number / TOGETHER;
        let end = *self.blocks.get(block)?;
        let start = block
            .checked_sub(1)
            .map_or(Some(0), |last| self.blocks.get(last).copied())?;
        let names = BufReader::new(DeflateDecoder::new(self.packed.get(start..end)?));
        let name = names.split(b'\n').nth(number % TOGETHER)?.ok()?;
        String::from_utf8(name).ok()
    }
}

fn until_line_end(names: &[u8], at: u32) -> &[u8] {
    let from = names.get(at as usize..).unwrap_or_default();
    from.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

/// A line: `ffffffff81000000 T name`, with a tab and `[module]` where it is one's; `None` where it is none. The name goes to `names`.
fn symbol(line: &[u8], names: &mut Vec<u8>) -> Option<(u64, u32)> {
    let mut fields = line
        .split(u8::is_ascii_whitespace)
        .filter(|field| !field.is_empty());
    let (start, kind, name) = (fields.next()?, fields.next()?, fields.next()?);
    let start = u64::from_str_radix(std::str::from_utf8(start).ok()?, 16).ok()?;
    let at = u32::try_from(names.len()).ok()?;
    match kind {
        b"T" | b"t" | b"W" | b"w" => {
            names.extend_from_slice(name);
            names.push(b'\n');
            Some((start, at))
        }
        [_] => Some((start, NO_FUNCTION)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &[u8]) -> Kallsyms {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kallsyms");
        std::fs::write(&path, list).unwrap();
        Kallsyms::read(&path).unwrap()
    }

    #[test]
    fn functions_end_where_anything_else_begins() {
        let list = read(
            b"0000000000000000 A fixed_percpu_data\n\
              ffffffff81000100 T do_futex\n\
              ffffffff81000100 T __alias\n\
              ffffffff81000200 d before\n\
              ffffffff81000200 t inside\n\
              ffffffff81000300 D some_data\n\
              ffffffff81000400 d more_data\n\
              ffffffffc0002000 t last\t[second]\n\
              ffffffffc0001000 W weak\t[first]\n\
              ffffffffc0003000 t bpf_prog_6deef7357e7b4530_sd\t[bpf]\n",
        );
        for (address, name) in [
            (0x50, None),
            (0xffff_ffff_8100_00ff, None),
            (0xffff_ffff_8100_0100, Some("do_futex")),
            (0xffff_ffff_8100_01ff, Some("do_futex")),
            (0xffff_ffff_8100_0200, Some("inside")),
            (0xffff_ffff_8100_0300, None),
            (0xffff_ffff_8100_0450, None),
            (0xffff_ffff_c000_1fff, Some("weak")),
            (0xffff_ffff_c000_2fff, Some("last")),
            (u64::MAX, Some("bpf_prog_6deef7357e7b4530_sd")),
        ] {
            assert_eq!(list.find(address).as_deref(), name, "{address:#x}");
        }
        assert_eq!(list.starts.len(), 7);
    }

    #[test]
    fn each_of_many_has_its_name() {
        let count = 10 * TOGETHER as u64 + 7;
        let lines = (0..count).map(|at| {
            let (function, data) = (at * 32, at * 32 + 16);
            format!("{function:016x} T function_{at}\n{data:016x} D data_{at}\n")
        });
        let text = lines.collect::<Vec<_>>().concat();
        let list = read(text.as_bytes());
        for at in 0..count {
            assert_eq!(list.find(at * 32 + 15), Some(format!("function_{at}")));
            assert_eq!(list.find(at * 32 + 16), None);
        }
        assert!(list.packed.len() < text.len() / 8, "{}", list.packed.len());
    }

    #[test]
    fn what_is_no_list_harms_nobody() {
        let all: Vec<u8> = (0..=255).cycle().take(4096).collect();
        assert_eq!(read(&all).find(u64::MAX), None);
        let odd = b"\n x\nffffffff81000100\nffffffff81000100 T\nzz T name\n1 TT name\n1 T \xff\xfe\nffffffff81000200 T good";
        assert_eq!(read(odd).find(0xffff_ffff_8100_0200).as_deref(), Some("good"));
        assert_eq!(read(odd).find(0xffff_ffff_8100_0100), None);
    }
}
