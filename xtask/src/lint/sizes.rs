//! How long a file may be (STYLE.md): one that is longer does two things.

use super::{Finding, source::Source};

const SOFT: usize = 400;
const HARD: usize = 600;

/// Warns above the soft cap, finds above the hard one.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        if lines > HARD {
            findings.push(source.finding(lines, format!("{lines} lines; the cap is {HARD}")));
        } else if lines > SOFT {
            println!(
                "{}: warning: {lines} lines; above {SOFT} a file is better split by meaning",
                source.file
            );
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{HARD, check};
    use crate::lint::source::Source;

    #[test]
    fn the_hard_cap_is_allowed_and_one_more_is_not() {
        let at = Source::new("a.rs", &"x\n".repeat(HARD));
        let above = Source::new("b.rs", &"x\n".repeat(HARD + 1));
        let found: Vec<_> = check(&[at, above]).into_iter().map(|f| f.file).collect();
        assert_eq!(found, ["b.rs"]);
    }
}
