//! How stacks of real processes come to their owners, or why they do not.

use std::sync::Arc;

use super::separate::{Built, config};
use super::{sample, start_program, stop};
use crate::symbolize::{Outcome, Owned, Symbolizer, SymbolizerConfig, UnwindResult};

/// What the next stack is counted as; exactly one result gets one more.
fn counted(
    symbolizer: &mut Symbolizer,
    pid: u32,
    user: &[u64],
    kernel: &[u64],
    unwind: UnwindResult,
) -> Owned {
    let before = symbolizer.stats();
    let (mut sample, service) = sample(pid, user.to_vec());
    sample.kernel = kernel.to_vec();
    sample.unwind = unwind;
    let stack = symbolizer.resolve(&sample, Arc::clone(&service)).stack;
    // The cached answer counts again.
    symbolizer.resolve(&sample, service);
    let after = symbolizer.stats();
    let more = |result: &Owned| after.owned(*result) - before.owned(*result);
    let all: u64 = Owned::ALL.iter().map(more).sum();
    assert_eq!(all, 2);
    let result = *Owned::ALL.iter().find(|result| more(result) == 2).unwrap();
    let unknown = !matches!(result, Owned::Own | Owned::Executable);
    assert_eq!(&*stack.owner.function == "(unknown)", unknown, "{result:?}");
    result
}

#[test]
fn each_stack_is_counted_by_how_its_owner_was_found() {
    let built = Built::new(&[]);
    let root = tempfile::tempdir().unwrap();
    let (mut whole, whole_address) = start_program(&built.whole);
    let (mut stripped, stripped_address) = start_program(&built.program);
    let libc = libc::getppid as *const () as u64;
    let own = std::process::id();
    let nobody = u32::MAX >> 1;
    let unmapped = 16;
    let whole_walk = UnwindResult::Complete;
    let cases = [
        // Before another process of its slot is known.
        (
            nobody,
            vec![libc],
            whole_walk,
            Owned::Nameless(Outcome::ProcessGone),
        ),
        (whole.id(), vec![whole_address], whole_walk, Owned::Own),
        (own, vec![libc], whole_walk, Owned::OnlyLibraries),
        (own, vec![libc], UnwindResult::NoMapping, Owned::Truncated),
        (own, vec![], whole_walk, Owned::KernelOnly),
        // One's own frame says more than that the stack is broken off.
        (
            stripped.id(),
            vec![stripped_address],
            UnwindResult::NoRule,
            Owned::Nameless(Outcome::NoSymbol),
        ),
        (
            own,
            vec![unmapped],
            whole_walk,
            Owned::Nameless(Outcome::NoModule),
        ),
    ];
    let mut symbolizer = Symbolizer::new(config(root.path()));
    for (pid, user, unwind, expected) in cases {
        let result = counted(&mut symbolizer, pid, &user, &[1 << 63], unwind);
        assert_eq!(result, expected, "{user:x?}");
    }
    // A file over the limit.
    let mut symbolizer = Symbolizer::new(SymbolizerConfig {
        max_file_bytes: 1000,
        ..config(root.path())
    });
    let result = counted(&mut symbolizer, whole.id(), &[whole_address], &[], whole_walk);
    assert_eq!(result, Owned::Nameless(Outcome::TooLarge));
    stop(&mut whole);
    stop(&mut stripped);
}
