//! The rules that all tables share.

use std::collections::HashMap;

use agent_ebpf::wire::unwind::{CFA_NONE, CFA_UNSUPPORTED, MAX_RULES, Rule};

/// No rule is known.
pub(super) const NONE: Rule = Rule {
    cfa: CFA_NONE,
    fp: 0,
    ra: 0,
    flags: 0,
    cfa_offset: 0,
    fp_offset: 0,
    ra_offset: 0,
};

/// A rule that cannot be expressed.
pub(super) const UNSUPPORTED: Rule = Rule {
    cfa: CFA_UNSUPPORTED,
    ..NONE
};

/// Its number.
pub(super) const UNSUPPORTED_NUMBER: u16 = 1;

/// Distinct rules, numbered in the order in which they were met; none is ever taken back, because a row may be on its way to
/// the kernel.
#[derive(Clone, Debug)]
pub struct Rules {
    known: HashMap<Rule, u16>,
    list: Vec<Rule>,
    refused: u64,
}

impl Default for Rules {
    fn default() -> Self {
        let mut rules = Self {
            known: HashMap::new(),
            list: Vec::new(),
            refused: 0,
        };
        rules.number(NONE);
        rules.number(UNSUPPORTED);
        rules
    }
}

impl Rules {
    /// Number of a rule; that of [`UNSUPPORTED`] when there is no room for one more.
    pub(super) fn number(&mut self, rule: Rule) -> u16 {
        if let Some(number) = self.known.get(&rule) {
            return *number;
        }
        let Some(number) = u16::try_from(self.list.len())
            .ok()
            .filter(|number| u32::from(*number) < MAX_RULES)
        else {
            self.refused += 1;
            return UNSUPPORTED_NUMBER;
        };
        self.known.insert(rule, number);
        self.list.push(rule);
        number
    }

    /// All rules by number.
    #[must_use]
    pub fn all(&self) -> &[Rule] {
        &self.list
    }

    /// Rules that found no room.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_ebpf::wire::unwind::CFA_SP;

    #[test]
    fn equal_rules_share_a_number_and_a_full_table_refuses() {
        let mut rules = Rules::default();
        let sp = |cfa_offset| Rule {
            cfa: CFA_SP,
            cfa_offset,
            ..NONE
        };
        assert_eq!((rules.number(NONE), rules.number(UNSUPPORTED)), (0, 1));
        assert_eq!(
            (rules.number(sp(8)), rules.number(sp(16)), rules.number(sp(8))),
            (2, 3, 2)
        );
        for offset in 0..MAX_RULES as i32 {
            rules.number(sp(offset * 8));
        }
        assert_eq!(rules.all().len(), MAX_RULES as usize);
        assert_eq!(rules.number(sp(-8)), 1);
        assert_eq!(rules.refused(), 3);
        assert_eq!(rules.all()[3], sp(16));
    }
}
