//! A map that forgets what was used least recently.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// At most `capacity` entries; each access makes an entry the newest.
#[derive(Debug)]
pub(super) struct Lru<K, V> {
    entries: HashMap<K, (V, u64)>,
    order: BTreeMap<u64, K>,
    clock: u64,
    capacity: usize,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            capacity: capacity.max(1),
        }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&mut V> {
        let (value, used) = self.entries.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.order.remove(used) {
            self.order.insert(self.clock, key);
        }
        *used = self.clock;
        Some(value)
    }

    /// Adds or replaces; returns what had to go for it, the replaced value included.
    pub(super) fn insert(&mut self, key: K, value: V) -> Vec<(K, V)> {
        let mut gone: Vec<_> = self
            .remove(&key)
            .map(|old| (key.clone(), old))
            .into_iter()
            .collect();
        while self.entries.len() >= self.capacity {
            match self.pop_oldest() {
                Some(old) => gone.push(old),
                None => break,
            }
        }
        self.clock += 1;
        self.order.insert(self.clock, key.clone());
        self.entries.insert(key, (value, self.clock));
        gone
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (value, used) = self.entries.remove(key)?;
        self.order.remove(&used);
        Some(value)
    }

    pub(super) fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.order.pop_first()?;
        let (value, _) = self.entries.remove(&key)?;
        Some((key, value))
    }

    /// The entry that would go next.
    pub(super) fn oldest(&self) -> Option<(&K, &V)> {
        let (_, key) = self.order.first_key_value()?;
        self.entries.get(key).map(|(value, _)| (key, value))
    }

    /// Whether it is there, without making it newer.
    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (value, _))| (key, value))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_least_recently_used() {
        let mut lru = Lru::new(2);
        assert!(lru.insert("a", 1).is_empty());
        assert!(lru.insert("b", 2).is_empty());
        assert_eq!(lru.get(&"a"), Some(&mut 1));
        assert_eq!(lru.insert("c", 3), vec![("b", 2)]);
        assert_eq!(lru.get(&"b"), None);
        assert_eq!(lru.oldest(), Some((&"a", &1)));
        assert_eq!(lru.len(), 2);
    }

    #[test]
    fn replacing_keeps_the_rest() {
        let mut lru = Lru::new(2);
        lru.insert("a", 1);
        lru.insert("b", 2);
        assert_eq!(lru.insert("a", 9), vec![("a", 1)]);
        assert_eq!(lru.pop_oldest(), Some(("b", 2)));
        assert_eq!(lru.remove(&"a"), Some(9));
        assert_eq!(lru.len(), 0);
        assert_eq!(lru.pop_oldest(), None);
    }
}
