//! What a test gives to a reader of foreign files beside good ones: files made to do harm, the same in each run.

use std::ops::Range;

/// Numbers that look random (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap()
    }

    fn place(&mut self, len: usize, weak: &[Range<usize>]) -> usize {
        match weak.get(self.below(2 * weak.len())) {
            Some(range) => (range.start + self.below(range.len())).min(len.saturating_sub(1)),
            None => self.below(len),
        }
    }

    /// A damaged copy: cut off, overwritten with numbers at the limits, parts of it in the place of others. Half of what is done
    /// is done to the ranges that decide most, where some are given.
    pub(crate) fn damage(&mut self, good: &[u8], weak: &[Range<usize>]) -> Vec<u8> {
        const LIMITS: [u64; 8] = [
            0,
            1,
            u64::MAX,
            i64::MAX as u64,
            1 << 63,
            0x7fff_ffff,
            0x8000_0000,
            0xff,
        ];
        let mut bad = good.to_vec();
        for _ in 0..1 << self.below(7) {
            let at = self.place(bad.len(), weak);
            let room = bad.len() - at;
            match self.below(8) {
                0 => {
                    let len = self.below(room.min(256));
                    let from = self.below(bad.len() - len);
                    bad.copy_within(from..from + len, at);
                }
                1..4 => {
                    let size = (1 << self.below(4)).min(room);
                    let number = LIMITS[self.below(LIMITS.len())].to_le_bytes();
                    bad[at..at + size].copy_from_slice(&number[..size]);
                }
                _ if room > 0 => bad[at] = u8::try_from(self.below(256)).unwrap(),
                _ => {}
            }
        }
        if self.below(8) == 0 {
            bad.truncate(self.below(good.len()));
        }
        bad
    }
}

/// How often to damage something; `TIEBACK_DAMAGE=100` asks for a hundred times as many rounds as usual, other ones.
pub(crate) fn rounds(usual: u64) -> impl Iterator<Item = Random> {
    let times = std::env::var("TIEBACK_DAMAGE").ok();
    let times: u64 = times.map_or(1, |times| times.parse().expect("TIEBACK_DAMAGE is a number"));
    (1..=usual * times).map(|round| Random(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}
