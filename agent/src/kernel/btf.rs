//! A small reader of the running kernel's type information (BTF, Documentation/bpf/btf.rst): just enough to find the
//! offset of a member by its path.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};

const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC: u32 = 12;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_TYPE_TAG: u32 = 18;

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the start of the outermost structure.
    pub offset: u32,
    /// Bits into that byte, for bit fields.
    pub bit: u32,
}

/// Type information of a kernel.
#[derive(Debug)]
pub struct Btf<'a> {
    strings: &'a [u8],
    /// Byte offset of each type's record in `types`; index 0 is void.
    index: Vec<usize>,
    types: &'a [u8],
    structs: HashMap<&'a str, u32>,
    typedefs: HashMap<&'a str, u32>,
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).context("BTF ends too early")?;
    Ok(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
}

struct Member<'a> {
    name: &'a str,
    type_id: u32,
    bits: u32,
}

impl<'a> Btf<'a> {
    /// Indexes raw BTF, as `/sys/kernel/btf/vmlinux` has it.
    pub fn parse(raw: &'a [u8]) -> Result<Self> {
        ensure!(raw.len() >= 24, "BTF has no header");
        ensure!(
            raw[0..2] == 0xeb9f_u16.to_ne_bytes(),
            "BTF has a wrong magic number or byte order"
        );
        let header = word(raw, 4)? as usize;
        let (type_off, type_len) = (word(raw, 8)? as usize, word(raw, 12)? as usize);
        let (str_off, str_len) = (word(raw, 16)? as usize, word(raw, 20)? as usize);
        let section = |off: usize, len: usize| {
            let start = header.checked_add(off)?;
            raw.get(start..start.checked_add(len)?)
        };
        let types = section(type_off, type_len).context("BTF's types are cut off")?;
        let strings = section(str_off, str_len).context("BTF's strings are cut off")?;
        let mut btf = Self {
            strings,
            index: vec![0],
            types,
            structs: HashMap::new(),
            typedefs: HashMap::new(),
        };
        let mut at = 0;
        while at < types.len() {
            let id = u32::try_from(btf.index.len())?;
            btf.index.push(at);
            let (name, info) = (word(types, at)?, word(types, at + 4)?);
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT || kind == KIND_UNION {
                btf.structs.entry(btf.string(name)?).or_insert(id);
            } else if kind == KIND_TYPEDEF {
                btf.typedefs.entry(btf.string(name)?).or_insert(id);
            }
            at += 12
                + match kind {
                    1 | 14 | 17 => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * count,
                    6 | 13 => 8 * count,
                    KIND_PTR | 7..=12 | 16 | KIND_TYPE_TAG => 0,
                    other => bail!("BTF has a type of the unknown kind {other}"),
                };
        }
        Ok(btf)
    }

    fn string(&self, at: u32) -> Result<&'a str> {
        let rest = self
            .strings
            .get(at as usize..)
            .context("BTF names a string past its end")?;
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .context("BTF's strings do not end")?;
        Ok(std::str::from_utf8(&rest[..end])?)
    }

    /// Whether the kernel has this typedef; a BTF tracepoint `x` has `btf_trace_x`.
    #[must_use]
    pub fn has_typedef(&self, name: &str) -> bool {
        self.typedefs.contains_key(name)
    }

    /// Id of a structure.
    #[must_use]
    pub fn struct_id(&self, name: &str) -> Option<u32> {
        self.structs.get(name).copied()
    }

    /// Id of a function.
    #[must_use]
    pub fn function_id(&self, name: &str) -> Option<u32> {
        let named = |at: usize| {
            let kind = word(self.types, at + 4).ok()? >> 24 & 0x1f;
            let found = kind == KIND_FUNC && self.string(word(self.types, at).ok()?).ok()? == name;
            Some(found)
        };
        // The first is void.
        let ids = (0..).zip(&self.index).skip(1);
        ids.map(|(id, at)| (id, *at))
            .find_map(|(id, at)| named(at).unwrap_or(false).then_some(id))
    }

    fn record(&self, id: u32) -> Result<(usize, u32, usize, u32)> {
        let at = *self
            .index
            .get(id as usize)
            .filter(|_| id != 0)
            .context("BTF names a type that it lacks")?;
        let info = word(self.types, at + 4)?;
        Ok((
            at,
            info >> 24 & 0x1f,
            (info & 0xffff) as usize,
            word(self.types, at + 8)?,
        ))
    }

    /// Strips typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Result<u32> {
        for _ in 0..32 {
            let (_, kind, _, target) = self.record(id)?;
            if !matches!(
                kind,
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG
            ) {
                return Ok(id);
            }
            id = target;
        }
        bail!("BTF has a typedef that does not end")
    }

    fn members(&self, id: u32) -> Result<Vec<Member<'a>>> {
        let (at, kind, count, _) = self.record(id)?;
        ensure!(kind == KIND_STRUCT || kind == KIND_UNION, "not a structure");
        let bitfields = word(self.types, at + 4)? >> 31 == 1;
        (0..count)
            .map(|i| {
                let at = at + 12 + 12 * i;
                let place = word(self.types, at + 8)?;
                Ok(Member {
                    name: self.string(word(self.types, at)?)?,
                    type_id: word(self.types, at + 4)?,
                    bits: if bitfields { place & 0x00ff_ffff } else { place },
                })
            })
            .collect()
    }

    /// Finds a member, also inside anonymous members; returns its type and bit offset.
    fn member(&self, id: u32, name: &str, depth: u32) -> Result<Option<(u32, u32)>> {
        ensure!(depth < 16, "BTF nests too deep");
        for member in self.members(id)? {
            if member.name == name {
                return Ok(Some((member.type_id, member.bits)));
            }
            if member.name.is_empty() {
                let inner = self.resolve(member.type_id)?;
                if matches!(self.record(inner)?.1, KIND_STRUCT | KIND_UNION)
                    && let Some((type_id, bits)) = self.member(inner, name, depth + 1)?
                {
                    let bits = bits
                        .checked_add(member.bits)
                        .context("BTF has a member too far away")?;
                    return Ok(Some((type_id, bits)));
                }
            }
        }
        Ok(None)
    }

    /// Where the member at the end of a path is; `[]` after a member steps into its array's element type, and `+N` at
    /// the end adds N bytes.
    pub fn place(&self, path: &str) -> Result<Place> {
        let (path, extra) = match path.split_once('+') {
            Some((path, extra)) => (path, extra.parse::<u32>().context("bad offset in a path")?),
            None => (path, 0),
        };
        let mut parts = path.split('.');
        let root = parts.next().unwrap_or_default();
        let mut id = *self
            .structs
            .get(root)
            .with_context(|| format!("the kernel has no struct {root}"))?;
        let mut bits = 0;
        let mut name = root;
        for part in parts {
            let (member, element) = match part.strip_suffix("[]") {
                Some(member) => (member, true),
                None => (part, false),
            };
            let owner = self.resolve(id)?;
            let (type_id, offset) = self
                .member(owner, member, 0)
                .ok()
                .flatten()
                .with_context(|| format!("struct {name} has no member {member} in this kernel"))?;
            bits = offset
                .checked_add(bits)
                .context("BTF has a member too far away")?;
            id = type_id;
            if element {
                let (at, kind, ..) = self.record(self.resolve(id)?)?;
                ensure!(
                    kind == KIND_ARRAY,
                    "member {member} of {name} is no array in this kernel"
                );
                id = word(self.types, at + 12)?;
            }
            name = member;
        }
        Ok(Place {
            offset: extra.saturating_add(bits / 8),
            bit: bits % 8,
        })
    }

    /// Size of a structure in bytes.
    pub fn size(&self, name: &str) -> Result<u32> {
        let id = *self
            .structs
            .get(name)
            .with_context(|| format!("the kernel has no struct {name}"))?;
        Ok(self.record(id)?.3)
    }
}

#[cfg(test)]
mod tests {
    use object::{Object as _, ObjectSection as _};

    use super::*;
    use crate::host::damage::{Bounds, harmless};

    #[test]
    fn a_cut_file_is_an_error() {
        assert!(Btf::parse(b"").is_err());
        let mut raw = vec![0u8; 24];
        raw[..2].copy_from_slice(&0xeb9f_u16.to_ne_bytes());
        raw[4..8].copy_from_slice(&24u32.to_ne_bytes());
        raw[12..16].copy_from_slice(&1000u32.to_ne_bytes());
        assert!(Btf::parse(&raw).is_err());
    }

    /// `struct s { int a; union { char b; struct { int c; }; }; int d:3; }` by hand.
    fn example() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0c\0d\0";
        let mut types = Vec::new();
        let mut put = |words: &[u32]| {
            words
                .iter()
                .for_each(|w| types.extend_from_slice(&w.to_ne_bytes()));
        };
        put(&[0, 1 << 24, 4, 32]); // 1: int
        put(&[0, (KIND_STRUCT << 24) | 1, 4, 7, 1, 0]); // 2: anonymous struct { c }
        put(&[0, (KIND_UNION << 24) | 2, 4, 5, 1, 0, 0, 2, 0]); // 3: anonymous union { b; 2 }
        put(&[
            1,
            (1 << 31) | (KIND_STRUCT << 24) | 3,
            12,
            3,
            1,
            0,
            0,
            3,
            32,
            9,
            1,
            (3 << 24) | 67,
        ]); // 4: s
        put(&[0, 13 << 24, 0]); // 5: void ()
        put(&[3, KIND_FUNC << 24, 5]); // 6: a function a
        let mut raw = Vec::new();
        raw.extend_from_slice(&0xeb9f_u16.to_ne_bytes());
        raw.extend_from_slice(&[1, 0]);
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            raw.extend_from_slice(&word.to_ne_bytes());
        }
        raw.extend_from_slice(&types);
        raw.extend_from_slice(strings);
        raw
    }

    #[test]
    fn members_are_found_through_anonymous_ones_and_bit_fields() {
        let raw = example();
        let btf = Btf::parse(&raw).unwrap();
        assert_eq!(btf.place("s.a").unwrap(), Place { offset: 0, bit: 0 });
        assert_eq!(btf.place("s.b").unwrap(), Place { offset: 4, bit: 0 });
        assert_eq!(btf.place("s.c").unwrap(), Place { offset: 4, bit: 0 });
        assert_eq!(btf.place("s.d").unwrap(), Place { offset: 8, bit: 3 });
        assert_eq!(btf.place("s.c+8").unwrap().offset, 12);
        assert_eq!(btf.size("s").unwrap(), 12);
        assert_eq!((btf.struct_id("s"), btf.function_id("a")), (Some(4), Some(6)));
        assert_eq!((btf.struct_id("a"), btf.function_id("s")), (None, None));
        let error = btf.place("s.missing").unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn damaged_information_harms_nobody() {
        let raw = example();
        // Eight bytes for each of the types, of which the smallest has twelve; names are not copied, errors are made.
        let bounds = Bounds {
            bytes: 8 * raw.len() + (16 << 10),
            allocations: 200,
        };
        let ends = harmless(20_000, &raw, &[0..24, 24..raw.len()], bounds, |damaged| {
            let Ok(btf) = Btf::parse(damaged) else {
                return false;
            };
            for path in ["s.a", "s.b", "s.c", "s.d", "s.a[]", "s.c+8"] {
                let _any = btf.place(path);
            }
            let _any = (btf.size("s"), btf.has_typedef("s"), btf.function_id("a"));
            true
        });
        ends.both_often();
    }

    /// That of our own programs, which a compiler wrote.
    #[test]
    fn damaged_information_of_a_compiler_harms_nobody() {
        let file = std::fs::read(env!("TIEBACK_BPF_OBJECT")).unwrap();
        let object = object::File::parse(&*file).unwrap();
        let raw = object.section_by_name(".BTF").unwrap().data().unwrap();
        let good = Btf::parse(raw).unwrap();
        let named = *good
            .structs
            .keys()
            .max_by_key(|name| good.members(good.structs[**name]).unwrap().len())
            .unwrap();
        let members = good.members(good.structs[named]).unwrap();
        let paths: Vec<String> = members
            .iter()
            .map(|member| format!("{named}.{}", member.name))
            .collect();
        assert!(paths.iter().all(|path| good.place(path).is_ok()));
        let bounds = Bounds {
            bytes: 8 * raw.len() + (16 << 10),
            allocations: 10_000,
        };
        let ends = harmless(300, raw, &[0..24, 24..raw.len()], bounds, |damaged| {
            let btf = Btf::parse(damaged);
            let found = btf
                .iter()
                .flat_map(|btf| paths.iter().filter(|path| btf.place(path).is_ok()));
            found.count() > 0
        });
        ends.both_often();
    }
}
