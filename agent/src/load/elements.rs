//! Hash maps as a whole. One call for many elements: where thousands of brief programs end in a tick, each has dozens.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};

use super::{Loaded, Plain, maps, sys};

impl Loaded {
    /// Hands out all elements of a hash map. Those that are added or removed meanwhile may be missing.
    pub fn each<K: Copy + 'static, V: Copy + 'static>(
        &self,
        name: &str,
        mut element: impl FnMut(K, V),
    ) -> Result<()> {
        let map = self.elements::<K, V>(name)?.fd().as_fd();
        sys::lookup_batches(map, |keys: &[Plain<K>], values: &[Plain<V>]| {
            for (key, value) in keys.iter().zip(values) {
                element(key.0, value.0);
            }
            Ok(())
        })
        .with_context(|| format!("read {name}"))
    }

    /// Takes elements out of a hash map.
    pub fn forget<K: Copy + 'static, V: Copy + 'static>(
        &self,
        name: &str,
        gone: impl Fn(&K) -> bool,
    ) -> Result<()> {
        let mut keys = Vec::new();
        self.each(name, |key: K, _: V| {
            if gone(&key) {
                keys.push(Plain(key));
            }
        })?;
        let map = self.elements::<K, V>(name)?.fd().as_fd();
        sys::delete_all(map, &keys).with_context(|| format!("take elements out of {name}"))
    }

    /// The map, its keys and values being of these sizes.
    fn elements<K: Copy + 'static, V: Copy + 'static>(&self, name: &str) -> Result<&MapData> {
        let map = self.ebpf.map(name);
        let map = map.with_context(|| format!("the object has no map {name}"))?;
        HashMap::<_, Plain<K>, Plain<V>>::try_from(map)?;
        maps::data(map).with_context(|| format!("{name} is of another kind"))
    }
}
