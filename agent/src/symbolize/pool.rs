//! Equal values, kept once.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// Fewer are not looked through for what nobody holds.
const FEW: usize = 4096;

/// Shared values. What nobody else holds is let go of when their number has doubled.
#[derive(Debug)]
pub(super) struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    prune_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            prune_at: FEW,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    /// The shared form of a value.
    pub(super) fn share(&mut self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        if let Some(known) = self.known.get(value.borrow()) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.prune_at {
            self.known.retain(|value| Arc::strong_count(value) > 1);
            self.prune_at = FEW.max(self.known.len() * 2);
        }
        let value = value.into();
        self.known.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_let_go_of() {
        let mut pool = Pool::<str>::default();
        let kept = pool.share("kept");
        for i in 0..20_000 {
            pool.share(format!("value {i}"));
        }
        assert!(pool.known.len() <= FEW, "{}", pool.known.len());
        assert!(Arc::ptr_eq(&kept, &pool.share("kept")));
        let held: Vec<_> = (0..3 * FEW).map(|i| pool.share(format!("held {i}"))).collect();
        assert_eq!(
            pool.known
                .iter()
                .filter(|value| Arc::strong_count(value) > 1)
                .count(),
            held.len() + 1
        );
    }
}
