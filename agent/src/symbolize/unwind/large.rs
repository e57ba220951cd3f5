//! Files whose tables take long to make. They are made one at a time beside everything else, so that nothing waits for them
//! and no more than one of them needs memory; the small ones first, but none is overtaken for ever.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::time::Duration;

use super::files::FileKey;
use super::{Built, Refused, Rules, build};

/// Files that wait at most: each is held open. Of more, the tables are made when they are met again.
const MAX: usize = 64;
/// By so much for each place must a file cost less than one that came before it to overtake that: one that costs 8 MiB, the most of
/// a host with LLVM and browsers, is overtaken by no more than 32 others.
const STEP: u64 = 256 << 10;

/// A table that is to be made, on any thread.
#[derive(Debug)]
pub struct Job {
    key: FileKey,
    file: File,
    rules: Rules,
    most: Duration,
}

impl Job {
    /// Makes it.
    #[must_use]
    pub fn make(mut self) -> Made {
        let built = build(&self.file, &mut self.rules, self.most);
        Made {
            key: self.key,
            rules: self.rules,
            built,
        }
    }
}

/// A table that was made, with rules of its own.
#[derive(Debug)]
pub struct Made {
    pub(super) key: FileKey,
    pub(super) rules: Rules,
    pub(super) built: Result<Built, Refused>,
}

/// Those that wait, by what they cost and when they came.
#[derive(Debug)]
pub(super) struct Large {
    /// How many may wait.
    pub(super) most: usize,
    waiting: BTreeMap<(u64, u64), (FileKey, File)>,
    known: HashSet<FileKey>,
    came: u64,
    busy: bool,
}

impl Default for Large {
    fn default() -> Self {
        Self {
            most: MAX,
            waiting: BTreeMap::new(),
            known: HashSet::new(),
            came: 0,
            busy: false,
        }
    }
}

impl Large {
    /// Whether this file's table will come.
    pub(super) fn has(&self, key: &FileKey) -> bool {
        self.known.contains(key)
    }

    /// Whether none will come.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// One more; `false` when too many wait.
    pub(super) fn push(&mut self, key: FileKey, file: File, cost: u64) -> bool {
        if self.waiting.len() >= self.most {
            return false;
        }
        self.known.insert(key.clone());
        let turn = self.came.saturating_mul(STEP).saturating_add(cost);
        self.waiting.insert((turn, self.came), (key, file));
        self.came += 1;
        true
    }

    /// The next one, unless one is being made.
    pub(super) fn next(&mut self, rules: &Rules, most: Duration) -> Option<Job> {
        if self.busy {
            return None;
        }
        let (_, (key, file)) = self.waiting.pop_first()?;
        self.busy = true;
        Some(Job {
            key,
            file,
            rules: rules.clone(),
            most,
        })
    }

    /// The one that was being made is there, or never will be.
    pub(super) fn done(&mut self, key: &FileKey) {
        self.busy = false;
        self.known.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File::open("/proc/self/exe").unwrap()
    }

    fn key(name: &str) -> FileKey {
        FileKey::Build(name.to_owned())
    }

    /// The order in which they are made.
    fn order(large: &mut Large) -> Vec<FileKey> {
        let next = || {
            let job = large.next(&Rules::default(), Duration::ZERO)?;
            assert!(
                large.next(&Rules::default(), Duration::ZERO).is_none(),
                "one at a time"
            );
            large.done(&job.key);
            Some(job.key)
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn small_ones_come_first_and_none_waits_for_ever() {
        let mut large = Large::default();
        let push =
            |large: &mut Large, name: &str, steps| assert!(large.push(key(name), file(), steps * STEP));
        for (name, steps) in [("browser", 30), ("compiler", 12), ("shell", 2), ("editor", 4)] {
            push(&mut large, name, steps);
        }
        assert!(large.has(&key("browser")) && !large.has(&key("other")));
        assert_eq!(
            order(&mut large),
            ["shell", "editor", "compiler", "browser"].map(key)
        );
        assert!(large.is_empty());
        // A stream of files of two steps: 27 of them cost less by more than a step for each place between them and the first.
        push(&mut large, "browser", 30);
        let mut turns = Vec::new();
        for number in 0..40 {
            push(&mut large, &format!("{number}"), 2);
            let job = large.next(&Rules::default(), Duration::ZERO).unwrap();
            large.done(&job.key);
            turns.push(job.key);
        }
        let at = turns.iter().position(|turn| *turn == key("browser"));
        assert_eq!(at, Some(27), "{turns:?}");
    }

    #[test]
    fn no_more_files_are_held_open_than_the_limit() {
        let mut large = Large::default();
        let pushed = (0..100).filter(|number| large.push(key(&number.to_string()), file(), 1));
        assert_eq!(pushed.count(), MAX);
        assert!(!large.has(&key("64")));
        assert_eq!(order(&mut large).len(), MAX);
    }
}
