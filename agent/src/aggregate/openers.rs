//! The code that opened descriptors which stay open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::symbolize::{FdKind, Owner, Service, SharedStack};

/// Descriptors that are open, of one stack and kind.
#[derive(Clone, Debug)]
pub struct OpenFd {
    /// Whose.
    pub service: Arc<Service>,
    /// What opened them.
    pub stack: SharedStack,
    /// What they refer to.
    pub kind: FdKind,
    /// How many they stand for.
    pub count: u64,
    /// Age of the oldest.
    pub age_ns: u64,
}

/// Code that opened descriptors which stay open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opener {
    /// The owning frame; `None` for all code beyond the bound.
    pub owner: Option<Owner>,
    /// The line of most of them, 0 when unknown.
    pub line: u32,
    /// How many are open.
    pub open: u64,
    /// The same by `FdKind`.
    pub kinds: [u64; FdKind::COUNT],
    /// Age of the oldest.
    pub age_ns: u64,
}

impl Opener {
    fn add(&mut self, fd: &OpenFd) {
        self.open += fd.count;
        self.kinds[fd.kind.index()] += fd.count;
        self.age_ns = self.age_ns.max(fd.age_ns);
    }
}

/// How many were opened at each line.
type Lines = BTreeMap<u32, u64>;

/// At most `top` of each service, those with most open descriptors first, and the rest together.
pub(super) fn by_service(open: Vec<OpenFd>, top: usize) -> HashMap<Arc<Service>, Vec<Opener>> {
    let mut services: HashMap<Arc<Service>, BTreeMap<Owner, (Opener, Lines)>> = HashMap::new();
    for fd in open {
        let owners = services.entry(Arc::clone(&fd.service)).or_default();
        let (opener, lines) = owners.entry(fd.stack.owner.clone()).or_default();
        opener.add(&fd);
        *lines.entry(fd.stack.owner_line()).or_default() += fd.count;
    }
    let each = services.into_iter().map(|(service, owners)| {
        let mut openers: Vec<Opener> = owners
            .into_iter()
            .map(|(owner, (opener, lines))| Opener {
                owner: Some(owner),
                line: lines
                    .into_iter()
                    .max_by_key(|(_, count)| *count)
                    .map_or(0, |(line, _)| line),
                ..opener
            })
            .collect();
        openers.sort_by(|a, b| b.open.cmp(&a.open).then_with(|| a.owner.cmp(&b.owner)));
        let rest = openers.split_off(openers.len().min(top));
        if !rest.is_empty() {
            let mut other = Opener::default();
            for more in rest {
                other.open += more.open;
                for (sum, kind) in other.kinds.iter_mut().zip(more.kinds) {
                    *sum += kind;
                }
                other.age_ns = other.age_ns.max(more.age_ns);
            }
            openers.push(other);
        }
        (service, openers)
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{service, stack};
    use super::*;

    fn fd(function: &str, kind: FdKind, count: u64) -> OpenFd {
        OpenFd {
            service: service("shop"),
            stack: stack(function, false),
            kind,
            count,
            age_ns: count,
        }
    }

    #[test]
    fn code_with_most_open_descriptors_comes_first_and_the_rest_is_one() {
        let open = vec![
            fd("a", FdKind::File, 2),
            fd("b", FdKind::Pipe, 7),
            fd("a", FdKind::Socket, 6),
            fd("c", FdKind::File, 1),
            fd("d", FdKind::File, 3),
        ];
        let found = by_service(open, 2).remove(&service("shop")).unwrap();
        let told: Vec<(Option<&str>, u64, u64)> = found
            .iter()
            .map(|opener| {
                (
                    opener.owner.as_ref().map(|owner| &*owner.function),
                    opener.open,
                    opener.age_ns,
                )
            })
            .collect();
        assert_eq!(told, [(Some("a"), 8, 6), (Some("b"), 7, 7), (None, 4, 3)]);
        assert_eq!(found[0].kinds[FdKind::Socket.index()], 6);
    }
}
