//! How often files are read.

use std::time::{Duration, Instant};

use super::*;

unsafe extern "C" {
    fn _Unwind_Backtrace();
    fn _Unwind_GetCFA();
    fn _Unwind_GetIP();
}

/// Functions of two libraries in turn: the C library and the compiler's.
fn in_turn() -> Vec<u64> {
    let libc = [
        libc::getpid as unsafe extern "C" fn() -> i32 as usize,
        libc::getppid as unsafe extern "C" fn() -> i32 as usize,
        libc::getuid as unsafe extern "C" fn() -> u32 as usize,
    ];
    let gcc = [_Unwind_Backtrace, _Unwind_GetCFA, _Unwind_GetIP].map(|function| {
        let function: unsafe extern "C" fn() = function;
        function as usize
    });
    libc.into_iter()
        .zip(gcc)
        .flat_map(|(a, b)| [a as u64, b as u64])
        .collect()
}

fn resolve_all(symbolizer: &mut Symbolizer, addresses: &[u64]) -> Vec<Option<String>> {
    let samples = addresses
        .iter()
        .map(|address| sample(std::process::id(), vec![*address]));
    let resolved = symbolizer.resolve_batch(samples.collect(), || None);
    let name = |sample: &SymbolizedSample| sample.stack.frames[0].function.as_deref().map(str::to_owned);
    resolved.iter().map(name).collect()
}

#[test]
fn a_batch_reads_each_file_once() {
    // There is room for one of them at a time.
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        max_images_bytes: 1,
        ..SymbolizerConfig::default()
    });
    let names = resolve_all(&mut symbolizer, &in_turn());
    assert!(names.iter().all(Option::is_some), "{names:?}");
    assert_eq!(symbolizer.stats().files_read, 2);
}

#[test]
fn what_there_was_no_time_for_has_a_name_later() {
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        read_burst: Duration::from_nanos(1),
        read_share: 0.05,
        ..SymbolizerConfig::default()
    });
    let addresses = in_turn();
    let [first, second] = [addresses[0], addresses[1]];
    let names = resolve_all(&mut symbolizer, &[first]);
    assert!(names[0].is_some(), "nothing was spent yet");
    // The file that was read is still there; another one has to wait.
    let names = resolve_all(&mut symbolizer, &[addresses[2], second, addresses[3]]);
    assert!(
        names[0].is_some() && names[1].is_none() && names[2].is_none(),
        "{names:?}"
    );
    assert_eq!(symbolizer.stats().count(Outcome::Postponed), 2);
    let end = Instant::now() + Duration::from_secs(300);
    while symbolizer.stats().files_read < 2 {
        assert!(Instant::now() < end, "it waits for ever");
        resolve_all(&mut symbolizer, &[first]);
    }
    // It may have become time for it between the two addresses.
    resolve_all(&mut symbolizer, &[first]);
    // Both were looked up then, although nobody asked for them again.
    let known = symbolizer.stats().addresses;
    let names = resolve_all(&mut symbolizer, &[second, addresses[3]]);
    assert!(names.iter().all(Option::is_some), "{names:?}");
    assert_eq!(
        (symbolizer.stats().addresses, symbolizer.stats().files_read),
        (known, 2)
    );
}
