//! What the running kernel has: type information, and the offsets that the kernel side needs.

pub mod btf;
pub mod capabilities;

use std::collections::BTreeMap;

use agent_ebpf::offsets::{Field, Offsets};

use btf::Btf;

/// Everything about the kernel's structures that the object is told before it is loaded.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Offsets; a missing one is [`agent_ebpf::offsets::MISSING`].
    pub offsets: Offsets,
    /// Why a field is missing, by its path.
    pub missing: BTreeMap<String, (Field, String)>,
    /// Mask of `in_iowait` in its byte.
    pub iowait_mask: u32,
    /// Mask of `in_memstall` in its byte.
    pub memstall_mask: u32,
    /// Bytes between two resident counters.
    pub rss_stride: u32,
    /// How the kernel side tells the verifier what an address is; `None` where it must ask a helper instead.
    pub cast: Option<Cast>,
    /// Whether maps may take memory for an element when it is added, wherever that happens: the allocator that BPF has for it
    /// (since Linux 6.1).
    pub allocates: bool,
}

/// Types of the kernel, by their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    /// The function `bpf_rdonly_cast` (since Linux 6.2).
    pub function: u32,
    /// `struct pt_regs`.
    pub registers: u32,
}

/// Finds every field in the kernel's BTF. A field named in `bogus` is looked up under a name that no kernel has: tests
/// use it to see that one missing field disables one probe.
#[must_use]
pub fn layout(btf: &Btf<'_>, bogus: Option<Field>) -> Layout {
    let mut layout = Layout {
        offsets: Offsets::UNSET,
        missing: BTreeMap::new(),
        iowait_mask: 1,
        memstall_mask: 1,
        rss_stride: 8,
        cast: btf
            .function_id("bpf_rdonly_cast")
            .zip(btf.struct_id("pt_regs"))
            .map(|(function, registers)| Cast { function, registers }),
        allocates: btf.struct_id("bpf_mem_alloc").is_some(),
    };
    for field in Field::ALL {
        let mut why = String::new();
        let bogus_path;
        let paths = if bogus == Some(*field) {
            bogus_path = format!("{}_bogus", field.paths()[0]);
            vec![bogus_path.as_str()]
        } else {
            field.paths().to_vec()
        };
        let mut found = None;
        for path in &paths {
            match btf.place(path) {
                Ok(place) if i16::try_from(place.offset).is_err() => {
                    why = format!("{path}: {} bytes are too far for one instruction", place.offset);
                }
                Ok(place) => {
                    found = Some((place, *path));
                    break;
                }
                Err(error) => why = format!("{path}: {error}"),
            }
        }
        match found {
            Some((place, path)) => {
                layout.offsets.set(*field, place.offset);
                match *field {
                    Field::TaskIowait => layout.iowait_mask = 1 << place.bit,
                    Field::TaskMemstall => layout.memstall_mask = 1 << place.bit,
                    _ => {}
                }
                if *field == Field::MmRss && path.contains("[]") {
                    layout.rss_stride = btf.size("percpu_counter").unwrap_or(8);
                }
            }
            None => {
                layout.missing.insert(paths[0].to_owned(), (*field, why));
            }
        }
    }
    layout
}
