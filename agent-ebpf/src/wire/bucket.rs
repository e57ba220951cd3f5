//! Buckets of durations.

/// Buckets of a duration histogram: bucket `i` holds durations below `2^(10+i)` ns, the last everything above.
pub const BUCKETS: usize = 28;

/// The bucket of a duration. Durations vary, and a branch that is foreseen wrongly costs more than an atomic addition, so
/// none here depends on them but for one that nobody ever takes.
#[inline(always)]
#[must_use]
pub fn bucket(ns: u64) -> usize {
    /// Position of the highest set bit by the top five bits of a product (a de Bruijn sequence of 32 bits).
    static HIGHEST: [u8; 32] = [
        0, 9, 1, 10, 13, 21, 2, 29, 11, 14, 16, 18, 22, 25, 3, 30, 8, 12, 20, 28, 15, 17, 24, 7, 19, 27, 23,
        6, 26, 5, 4, 31,
    ];
    let units = ns >> 10;
    if units >> (BUCKETS - 1) != 0 {
        return BUCKETS - 1;
    }
    // An odd number: nothing takes no bit, one unit takes the first. It has no more than 28 bits.
    let mut bits = units << 1 | 1;
    bits |= bits >> 1;
    bits |= bits >> 2;
    bits |= bits >> 4;
    bits |= bits >> 8;
    bits |= bits >> 16;
    // The five bits below the 32nd.
    let at = five_bits(bits.wrapping_mul(0x07C4_ACDD) >> 27);
    // SAFETY: an index of five bits.
    five_bits(u64::from(unsafe { *HIGHEST.as_ptr().add(at) }))
}

/// The lowest five bits. The compiler knows that the table holds no number of more bits and takes a mask in Rust away as
/// needless; the verifier does not know it, so on BPF the mask is one that the compiler does not see through.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn five_bits(mut number: u64) -> usize {
    // SAFETY: changes one register.
    unsafe {
        core::arch::asm!("{} &= 31", inout(reg) number, options(pure, nomem, nostack, preserves_flags));
    }
    number as usize
}

#[cfg(not(target_arch = "bpf"))]
fn five_bits(number: u64) -> usize {
    (number & 31) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_in_the_first_bucket_that_is_above_it() {
        let first = |ns: u64| {
            (0..BUCKETS - 1)
                .find(|i| ns < 1 << (10 + i))
                .unwrap_or(BUCKETS - 1)
        };
        for bit in 0..64 {
            for near in [0, 1, 2, 511, 1023, 1024] {
                for ns in [
                    (1u64 << bit).saturating_add(near),
                    (1u64 << bit).saturating_sub(near),
                ] {
                    assert_eq!(bucket(ns), first(ns), "{ns}");
                }
            }
        }
        assert_eq!(
            (bucket(0), bucket(1023), bucket(1024), bucket(u64::MAX)),
            (0, 0, 1, BUCKETS - 1)
        );
    }
}
