//! Plain values in and out of maps.

use aya::maps::{Map, MapData};

/// The file behind a map of the types that the object has.
pub(super) fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::ArrayOfMaps(data)
        | Map::Queue(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// A wire type as aya wants it. The types of `agent_ebpf::wire` are `repr(C)` integers without implicit padding.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Plain<T: Copy + 'static>(pub T);

// SAFETY: only wire types, which hold integers and arrays of integers, are read from and written to maps.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}
