//! What a process allocated since it is watched, and how old what it has in use is, from one reading of its profile to the next.
//!
//! The profile has no ages. What was allocated between two readings is as old as the second of them, and what was freed is taken to
//! have been the oldest there was: so nothing is said to be older than it is, and what is said to have outlived a time has.

use std::collections::{HashMap, VecDeque};

use super::{Amount, GoHeap};

/// Groups of one age that are kept of a bucket.
const MOST_GROUPS: usize = 24;

/// One process since it is watched.
#[derive(Debug)]
pub struct Since {
    /// When that began, in nanoseconds of the monotonic clock.
    begun_ns: u64,
    buckets: HashMap<u64, Seen>,
    /// It was read once.
    read: bool,
}

/// What a bucket was like.
#[derive(Debug, Default)]
struct Seen {
    /// The most allocations that it was seen to have. While a collection's counts move, some may be seen twice or not at all.
    allocs: u64,
    frees: u64,
    /// What is in use, oldest first.
    groups: VecDeque<Group>,
}

/// What is in use and of about one age.
#[derive(Debug)]
struct Group {
    /// When the first and the last of it were seen first; it counts as no older than the last.
    first_ns: u64,
    last_ns: u64,
    count: u64,
}

/// What a reading says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// By stack: what was allocated since the last reading.
    pub allocated: Vec<(Vec<u64>, Amount)>,
    /// By stack: what is in use, and for how many nanoseconds it is at least.
    pub in_use: Vec<(Vec<u64>, u64, Amount)>,
}

impl Since {
    /// Watching begins at `begun_ns`.
    #[must_use]
    pub fn new(begun_ns: u64) -> Self {
        Self {
            begun_ns,
            buckets: HashMap::new(),
            read: false,
        }
    }

    /// Takes the profile as it is at `now_ns`.
    pub fn read(&mut self, heap: &GoHeap, now_ns: u64) -> News {
        let mut news = News::default();
        // Of a program that began later, all was allocated since.
        let before = !self.read && heap.began_ns < self.begun_ns;
        let mut met = false;
        for bucket in &heap.buckets {
            let known = self.buckets.contains_key(&bucket.address);
            let seen = self.buckets.entry(bucket.address).or_default();
            // The newest come first: a bucket behind one that is known was left out of a reading that ended early.
            let before = before || met && !known;
            met |= known;
            let allocs = bucket.allocs.saturating_add(bucket.newer);
            let more = allocs.saturating_sub(seen.allocs);
            seen.allocs += more;
            let in_use = bucket.allocs.saturating_sub(bucket.frees);
            seen.age(in_use, bucket.frees, now_ns);
            let one = bucket.one(heap.rate);
            if more > 0 && !before {
                news.allocated.push((bucket.stack.clone(), one.times(more)));
            }
            for group in &seen.groups {
                let age_ns = now_ns.saturating_sub(group.last_ns);
                news.in_use
                    .push((bucket.stack.clone(), age_ns, one.times(group.count)));
            }
        }
        self.read = true;
        news
    }
}

impl Seen {
    fn age(&mut self, in_use: u64, frees: u64, now_ns: u64) {
        let mut freed = frees.saturating_sub(self.frees);
        self.frees = self.frees.max(frees);
        while freed > 0
            && let Some(oldest) = self.groups.front_mut()
        {
            oldest.give(&mut freed);
            if oldest.count == 0 {
                self.groups.pop_front();
            }
        }
        let known: u64 = self.groups.iter().map(|group| group.count).sum();
        if in_use > known {
            self.groups.push_back(Group {
                first_ns: now_ns,
                last_ns: now_ns,
                count: in_use - known,
            });
        }
        // The first collection hides what was allocated since: it is the youngest.
        let mut hidden = known.saturating_sub(in_use);
        while hidden > 0
            && let Some(youngest) = self.groups.back_mut()
        {
            youngest.give(&mut hidden);
            if youngest.count == 0 {
                self.groups.pop_back();
            }
        }
        if self.groups.len() > MOST_GROUPS {
            self.join(now_ns);
        }
    }

    /// Makes one group of those two neighbours that are the most alike in age.
    fn join(&mut self, now_ns: u64) {
        let age = |at_ns: u64| now_ns.saturating_sub(at_ns) as f64 + 1.0;
        let span = |at: usize| age(self.groups[at - 1].first_ns) / age(self.groups[at].last_ns);
        let alike = (1..self.groups.len()).min_by(|a, b| span(*a).total_cmp(&span(*b)));
        if let Some(younger) = alike
            && let Some(older) = self.groups.remove(younger - 1)
            && let Some(joined) = self.groups.get_mut(younger - 1)
        {
            joined.first_ns = older.first_ns;
            joined.count += older.count;
        }
    }
}

impl Group {
    fn give(&mut self, wanted: &mut u64) {
        let given = self.count.min(*wanted);
        self.count -= given;
        *wanted -= given;
    }
}

impl Amount {
    fn times(self, count: u64) -> Self {
        Self {
            objects: self.objects * count as f64,
            bytes: self.bytes * count as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bucket;
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn heap(began_ns: u64, counts: &[(u64, u64, u64)]) -> GoHeap {
        let buckets = counts
            .iter()
            .zip(1..)
            .map(|((allocs, frees, newer), address)| Bucket {
                address,
                size: 100,
                stack: vec![address],
                allocs: *allocs,
                frees: *frees,
                alloc_bytes: allocs * 100,
                free_bytes: frees * 100,
                newer: *newer,
            });
        GoHeap {
            rate: 1,
            began_ns,
            buckets: buckets.collect(),
            complete: true,
            ..GoHeap::default()
        }
    }

    fn objects(news: &News) -> Vec<(u64, f64)> {
        let of = |(stack, amount): &(Vec<u64>, Amount)| (stack[0], amount.objects);
        news.allocated.iter().map(of).collect()
    }

    fn ages(news: &News) -> Vec<(u64, f64)> {
        let of = |(_, age_ns, amount): &(Vec<u64>, u64, Amount)| (age_ns / SECOND, amount.objects);
        news.in_use.iter().map(of).collect()
    }

    #[test]
    fn the_difference_to_the_first_reading_counts() {
        let mut since = Since::new(10);
        let first = since.read(&heap(5, &[(10, 4, 2)]), 11);
        assert_eq!(objects(&first), []);
        assert_eq!(
            first.in_use[0].2,
            Amount {
                objects: 6.0,
                bytes: 600.0
            }
        );
        // Two of them were published, one was sampled since, and there is a new stack.
        let mut two = heap(5, &[(12, 4, 1), (3, 0, 0)]);
        two.buckets.reverse();
        let second = since.read(&two, 12);
        assert_eq!(objects(&second), [(2, 3.0), (1, 1.0)]);
        assert_eq!(second.allocated[0].1.bytes, 300.0);
        // Counts that moved while they were read.
        assert_eq!(objects(&since.read(&heap(5, &[(10, 4, 1), (3, 0, 0)]), 13)), []);
        assert_eq!(
            objects(&since.read(&heap(5, &[(14, 4, 1), (3, 0, 0)]), 14)),
            [(1, 2.0)]
        );
    }

    #[test]
    fn what_was_left_out_is_not_new() {
        let part = |buckets: std::ops::Range<usize>| {
            let mut heap = heap(1, &[(5, 0, 0), (7, 0, 0), (9, 0, 0)]);
            heap.buckets = heap.buckets[buckets].to_vec();
            heap
        };
        let mut since = Since::new(10);
        assert_eq!(objects(&since.read(&part(1..2), 11)), []);
        // The first is new, the last is older than what was read.
        assert_eq!(objects(&since.read(&part(0..3), 12)), [(1, 5.0)]);
    }

    #[test]
    fn of_a_later_program_all_counts() {
        let mut since = Since::new(10);
        assert_eq!(objects(&since.read(&heap(11, &[(10, 4, 0)]), 12)), [(1, 10.0)]);
    }

    #[test]
    fn nothing_is_said_to_be_older_than_it_is() {
        let mut since = Since::new(0);
        let mut read = |at, allocs, frees| ages(&since.read(&heap(1, &[(allocs, frees, 0)]), at * SECOND));
        assert_eq!(read(1, 10, 0), [(0, 10.0)]);
        assert_eq!(read(3, 14, 0), [(2, 10.0), (0, 4.0)]);
        // Six go, the oldest; five come.
        assert_eq!(read(4, 19, 6), [(3, 4.0), (1, 4.0), (0, 5.0)]);
        assert_eq!(read(6, 19, 15), [(2, 4.0)]);
        // The first collection hides what is not published yet.
        assert_eq!(read(7, 18, 15), [(3, 3.0)]);
    }

    #[test]
    fn few_groups_are_kept_and_none_is_lost() {
        let mut since = Since::new(0);
        let mut last = Vec::new();
        for at in 1..=1000 {
            last = ages(&since.read(&heap(1, &[(at, 0, 0)]), at * SECOND));
        }
        assert!(last.len() <= MOST_GROUPS, "{}", last.len());
        assert_eq!(last.iter().map(|(_, count)| count).sum::<f64>(), 1000.0);
        // Of what is half as old as all is, or older, three quarters are known to be.
        let old: f64 = last
            .iter()
            .filter(|(age, _)| *age >= 500)
            .map(|(_, count)| count)
            .sum();
        assert!((375.0..=500.0).contains(&old), "{old}");
    }
}
