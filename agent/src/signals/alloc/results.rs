//! Where the result of a function is known before it returns, at instructions that the kernel emulates.
//!
//! A `ret` is single-stepped, which costs a probe 10 µs and more here, against half a microsecond of one that is emulated. On most ways to
//! a return the pointer is in some register when the last jump is passed, so it is learned there: from each return the code is
//! followed backwards, and with it the register that ends up in `rax`, to the next instruction that is emulated. The last
//! such place that a call passes is right; one before may not be, and is overruled by it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::code::{Text, decode, is_emulated, stack_growth};

/// Instructions that are followed backwards at most, for one return.
const MOST_STEPS: usize = 4096;

/// Ways through a function.
#[derive(Debug)]
pub(super) struct Flow {
    entry: u64,
    before: HashMap<u64, Vec<u64>>,
    behind: HashMap<u64, Vec<u64>>,
}

impl Flow {
    pub(super) fn new(entry: u64) -> Self {
        Self {
            entry,
            before: HashMap::new(),
            behind: HashMap::new(),
        }
    }

    /// The instruction at one address may be followed by that at another.
    pub(super) fn add(&mut self, from: u64, to: u64) {
        self.before.entry(to).or_default().push(from);
        self.behind.entry(from).or_default().push(to);
    }

    /// How much is pushed before each instruction; `None` where that is not always the same, or not known.
    fn pushed(&self, text: &impl Text) -> HashMap<u64, Option<i64>> {
        let mut infos = InstructionInfoFactory::new();
        let mut all = HashMap::from([(self.entry, Some(0i64))]);
        let mut open = vec![self.entry];
        while let Some(at) = open.pop() {
            let Some(instruction) = decode(text, at) else {
                continue;
            };
            let calls = matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            let writes =
                infos.info(&instruction).used_registers().iter().any(|used| {
                    is_written(used.access()) && used.register().full_register() == Register::RSP
                });
            let before = all.get(&at).copied().flatten();
            let next = match before {
                Some(before) if writes && !calls => stack_growth(&instruction).map(|more| before + more),
                other => other,
            };
            for to in self.behind.get(&at).into_iter().flatten() {
                let known = all.get(to).copied();
                let merged = match known {
                    Some(other) if other != next => None,
                    _ => next,
                };
                if known != Some(merged) {
                    all.insert(*to, merged);
                    open.push(*to);
                }
            }
        }
        all
    }
}

/// A place where the result is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The register that holds it: the number of its word among the saved registers.
    pub word: u8,
    /// Bytes that are pushed there.
    pub pushed: u16,
}

/// Where the pointers that a function returns are learned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// Places that are emulated.
    pub known: BTreeMap<u64, Known>,
    /// Returns that need a probe of their own.
    pub stepped: BTreeSet<u64>,
}

impl Results {
    /// All places that need a probe.
    pub fn places(&self) -> impl Iterator<Item = u64> {
        self.known.keys().chain(&self.stepped).copied()
    }

    /// All returns need one.
    pub(super) fn stepped(returns: &[u64]) -> Self {
        Self {
            known: BTreeMap::new(),
            stepped: returns.iter().copied().collect(),
        }
    }
}

/// Places that are not the same for all functions: where they share code and differ in how it is reached.
pub(super) fn disputed<'a>(all: impl Iterator<Item = &'a Results>) -> BTreeSet<u64> {
    let mut known = BTreeMap::new();
    let mut disputed = BTreeSet::new();
    for (at, here) in all.flat_map(|results| &results.known) {
        if *known.entry(*at).or_insert(*here) != *here {
            disputed.insert(*at);
        }
    }
    disputed
}

/// Looks for them; `returns` are all returns of the function.
pub(super) fn find(text: &impl Text, flow: &Flow, returns: &[u64]) -> Results {
    let pushed = flow.pushed(text);
    let mut results = Results::default();
    for &at in returns {
        match before(text, flow, at, &pushed) {
            // Where a place has the results of two ways in two registers, one of them must do without it.
            Some(found)
                if found
                    .iter()
                    .all(|(at, known)| results.known.get(at).is_none_or(|other| other == known)) =>
            {
                results.known.extend(found);
            }
            _ => {
                results.stepped.insert(at);
            }
        }
    }
    results
}

/// The next places before a return, one on each way there; `None` where a way has none.
fn before(
    text: &impl Text,
    flow: &Flow,
    end: u64,
    pushed: &HashMap<u64, Option<i64>>,
) -> Option<BTreeMap<u64, Known>> {
    let mut infos = InstructionInfoFactory::new();
    let mut found: BTreeMap<u64, Known> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut open = vec![(end, Register::RAX)];
    while let Some((at, register)) = open.pop() {
        if !seen.insert((at, register)) {
            continue;
        }
        if seen.len() > MOST_STEPS || at == flow.entry {
            return None;
        }
        for &from in flow.before.get(&at)? {
            let instruction = decode(text, from)?;
            let calls = matches!(
                instruction.flow_control(),
                FlowControl::Call | FlowControl::IndirectCall
            );
            if calls && !is_preserved(register) {
                return None;
            }
            if is_emulated(text, &instruction) {
                let known = Known {
                    word: word(register)?,
                    pushed: u16::try_from((*pushed.get(&from)?)?).ok()?,
                };
                if found.insert(from, known).is_some_and(|other| other != known) {
                    return None;
                }
                continue;
            }
            let writes = infos
                .info(&instruction)
                .used_registers()
                .iter()
                .any(|used| is_written(used.access()) && used.register().full_register() == register);
            if !writes {
                open.push((from, register));
            } else if let Some(source) = copied(&instruction) {
                open.push((from, source));
            } else if !is_null(&instruction) {
                return None;
            }
        }
    }
    Some(found)
}

pub(super) fn is_written(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
    )
}

/// Whether functions leave it as they found it.
fn is_preserved(register: Register) -> bool {
    matches!(
        register,
        Register::RBX | Register::RBP | Register::R12 | Register::R13 | Register::R14 | Register::R15
    )
}

/// The register that an instruction copies.
pub(super) fn copied(instruction: &Instruction) -> Option<Register> {
    let moves = matches!(instruction.code(), Code::Mov_r64_rm64 | Code::Mov_rm64_r64);
    (moves && instruction.op0_kind() == OpKind::Register && instruction.op1_kind() == OpKind::Register)
        .then(|| instruction.op1_register())
}

/// Whether it makes a null pointer, which nobody wants to know.
fn is_null(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Xor_r32_rm32 | Code::Xor_rm32_r32)
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
}

/// Number of a register's word among those that the kernel saves.
pub(super) fn word(register: Register) -> Option<u8> {
    const WORDS: [Register; 15] = [
        Register::R15,
        Register::R14,
        Register::R13,
        Register::R12,
        Register::RBP,
        Register::RBX,
        Register::R11,
        Register::R10,
        Register::R9,
        Register::R8,
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RSI,
        Register::RDI,
    ];
    let at = WORDS.iter().position(|known| *known == register)?;
    u8::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::AllocCall;
    use super::super::code::{Sites, sites};
    use super::*;

    const BASE: u64 = 0x1000;

    fn look(code: &[u8]) -> Sites {
        sites(
            &code,
            BASE,
            code.len() as u64,
            AllocCall::Malloc,
            &BTreeSet::new(),
        )
        .unwrap()
    }

    #[test]
    fn the_last_jump_knows_the_result() {
        // push %rbx; mov (%rdi),%rcx; test %rcx,%rcx; je +5; mov %rcx,%rax; pop %rbx; ret; xor %eax,%eax; pop %rbx; ret
        let found = look(&[
            0x53, 0x48, 0x8b, 0x0f, 0x48, 0x85, 0xc9, 0x74, 0x05, 0x48, 0x89, 0xc8, 0x5b, 0xc3, 0x31, 0xc0,
            0x5b, 0xc3,
        ]);
        assert_eq!(found.returns.len(), 2);
        assert_eq!(
            found.results.known,
            BTreeMap::from([(BASE + 7, Known { word: 11, pushed: 8 })])
        );
        assert_eq!(found.results.stepped, BTreeSet::new());
    }

    #[test]
    fn what_is_made_behind_the_last_jump_is_not_known_there() {
        // test %rdi,%rdi; je +3; mov (%rdi),%rax; ret (the jump leads there, too)
        let found = look(&[0x48, 0x85, 0xff, 0x74, 0x03, 0x48, 0x8b, 0x07, 0xc3]);
        assert_eq!(found.results.known, BTreeMap::new());
        assert_eq!(found.results.stepped, BTreeSet::from([BASE + 8]));
    }

    #[test]
    fn calls_keep_some_registers() {
        // mov %rdi,%rbx; call +0; mov %rbx,%rax; ret
        let kept = look(&[0x48, 0x89, 0xfb, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xd8, 0xc3]);
        assert_eq!(
            kept.results.known,
            BTreeMap::from([(BASE + 3, Known { word: 5, pushed: 0 })])
        );
        // mov %rdi,%rcx; call +0; mov %rcx,%rax; ret
        let lost = look(&[0x48, 0x89, 0xf9, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xc8, 0xc3]);
        assert_eq!(lost.results.stepped.len(), 1);
    }

    #[test]
    fn one_place_does_not_have_two_results() {
        // test %rdi,%rdi; je +4; mov %rsi,%rax; ret; mov %rdx,%rax; ret
        let found = look(&[
            0x48, 0x85, 0xff, 0x74, 0x04, 0x48, 0x89, 0xf0, 0xc3, 0x48, 0x89, 0xd0, 0xc3,
        ]);
        assert_eq!(found.results.known.len(), 1);
        assert_eq!(found.results.stepped, BTreeSet::from([BASE + 12]));
    }
}
