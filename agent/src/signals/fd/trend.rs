//! Whether a number grows, whatever it does between: descriptors that leak are the floor under those that come and go.

/// Ticks in a block of each scale. Slow leaks, and those under much coming and going, show on the long ones only.
const SCALES: [u32; 4] = [3, 12, 48, 192];
/// Blocks that are compared.
const BLOCKS: usize = 5;

/// How fast it grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Growth {
    /// Nanoseconds from one more to the next.
    pub(super) each_ns: f64,
}

/// The recent past of a number on several scales of time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trend([Scale; SCALES.len()]);

#[derive(Clone, Copy, Debug, Default)]
struct Scale {
    /// Ticks in the running block.
    ticks: u32,
    running: Block,
    /// Finished blocks, the newest last; how many there are at most counts up to [`BLOCKS`].
    blocks: [Block; BLOCKS],
    finished: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    least: u32,
    most: u32,
    end_ns: u64,
}

impl Trend {
    /// Adds what it was at the end of a tick.
    pub(super) fn add(&mut self, value: u32, now_ns: u64) {
        for (scale, length) in self.0.iter_mut().zip(SCALES) {
            scale.add(value, now_ns, length);
        }
    }

    /// The growth on the longest scale that shows any: it is the surest.
    pub(super) fn growth(&self) -> Option<Growth> {
        self.0.iter().rev().find_map(Scale::growth)
    }
}

impl Scale {
    fn add(&mut self, value: u32, now_ns: u64, length: u32) {
        let block = &mut self.running;
        if self.ticks == 0 {
            (block.least, block.most) = (value, value);
        }
        block.least = block.least.min(value);
        block.most = block.most.max(value);
        block.end_ns = now_ns;
        self.ticks += 1;
        if self.ticks == length {
            self.blocks.rotate_left(1);
            self.blocks[BLOCKS - 1] = self.running;
            self.finished = (self.finished + 1).min(BLOCKS as u32);
            self.ticks = 0;
        }
    }

    /// The least of each block is more than that of the block before, and the rise is at least half of the whole range: the
    /// least of five blocks of pure chance rise so once in 120 times, and then by little.
    fn growth(&self) -> Option<Growth> {
        if (self.finished as usize) < BLOCKS
            || self.blocks.windows(2).any(|pair| pair[1].least <= pair[0].least)
        {
            return None;
        }
        let (first, last) = (self.blocks[0], self.blocks[BLOCKS - 1]);
        let rise = last.least - first.least;
        let most = self
            .blocks
            .iter()
            .map(|block| block.most)
            .max()
            .unwrap_or(last.most);
        if rise < (most - first.least).div_ceil(2) {
            return None;
        }
        Some(Growth {
            each_ns: last.end_ns.saturating_sub(first.end_ns) as f64 / f64::from(rise),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: u64 = 10_000_000_000;

    fn after(ticks: u64, value: impl Fn(u64) -> u32) -> Option<Growth> {
        let mut trend = Trend::default();
        for tick in 0..ticks {
            trend.add(value(tick), tick * TICK);
        }
        trend.growth()
    }

    #[test]
    fn a_steady_leak_is_growth_at_its_rate() {
        let growth = after(15, |tick| 20 + 3 * tick as u32).unwrap();
        assert!((growth.each_ns / (TICK as f64 / 3.0) - 1.0).abs() < 1e-9);
        assert_eq!(after(14, |tick| 20 + 3 * tick as u32), None, "too early to say");
    }

    #[test]
    fn what_comes_and_goes_or_stops_to_grow_is_none() {
        let noise =
            |tick: u64| (tick.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(20) ^ tick << 7) as u32 % 50;
        let found = (15..2000)
            .filter(|ticks| after(*ticks, |tick| 20 + noise(tick)).is_some())
            .count();
        assert!(found < 20, "{found} of 2000 ticks");
        assert_eq!(after(100, |tick| 20 + tick.min(5) as u32), None);
        assert_eq!(after(100, |tick| 200 - tick as u32), None);
    }

    #[test]
    fn a_slow_leak_under_much_coming_and_going_shows_in_time() {
        let noise = |tick: u64| (tick.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % 40;
        // One in ten ticks under up to 40 that come and go.
        let growth = after(1200, |tick| 20 + tick as u32 / 10 + noise(tick)).unwrap();
        assert!(
            (growth.each_ns / (10.0 * TICK as f64) - 1.0).abs() < 0.25,
            "{growth:?}"
        );
    }
}
