//! Where probes go in a function of an allocator, found by decoding its code.
//!
//! An instruction that the kernel must single-step costs a probe ten times as much as one that it emulates (10 µs against 0.75
//! here, COST.md 2.3), and most functions begin with one that it must. So the probe goes to the first that it emulates, as long
//! as every way through the function leads there and the arguments are still in their registers. Emulated are `push` of a
//! register, `nop`, and relative jumps and calls (arch/x86/kernel/uprobes.c, Linux 6.6 to 6.18).

use std::collections::{BTreeSet, HashSet};

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpKind, Register,
};

use super::AllocCall;
use super::results::{self, Flow, Results, copied, is_written, word};

/// Instructions of a function that are followed at most.
const MOST_INSTRUCTIONS: usize = 8192;
/// Return instructions at most.
const MOST_RETURNS: usize = 64;
/// Longest x86 instruction.
const LONGEST: usize = 15;

/// Code by its address in the file.
pub(super) trait Text {
    /// At most `len` bytes of code at an address; fewer or none at an end of the code.
    fn bytes(&self, address: u64, len: usize) -> &[u8];

    /// The function of this file to which a pointer at this address is set when it is loaded (a slot of the global offset table).
    fn pointer(&self, _address: u64) -> Option<u64> {
        None
    }
}

/// Where to probe a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    /// Address of the probe for its arguments.
    pub entry: u64,
    /// Bytes that are pushed there.
    pub pushed: u16,
    /// Registers that hold the arguments there: the numbers of their words among the saved registers.
    pub arguments: [u8; 3],
    /// The kernel emulates the instruction there.
    pub emulated: bool,
    /// Addresses of all its return instructions, also in functions that it ends with a jump to.
    pub returns: Vec<u64>,
    /// Places before them at which the result is known and which the kernel emulates, and the returns that have none before them.
    pub results: Results,
    /// Addresses of jumps by which it ends in code that is not here: for `calloc`, in `memset`, which returns what it clears.
    pub exits: Vec<u64>,
    /// Entries of other watched functions that it ends with a jump to.
    pub forwards: BTreeSet<u64>,
    /// It jumps to places that only its run tells, so there may be more returns.
    pub jumps_anywhere: bool,
}

impl Sites {
    /// Learns results at returns only, where it would at one of these places.
    pub(super) fn leave_to_returns(&mut self, places: &BTreeSet<u64>) {
        if self.results.known.keys().any(|at| places.contains(at)) {
            self.results = Results::stepped(&self.returns);
        }
    }
}

pub(super) fn decode(text: &impl Text, address: u64) -> Option<Instruction> {
    let bytes = text.bytes(address, LONGEST);
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then_some(instruction)
}

/// Whether the kernel emulates the instruction.
pub(super) fn is_emulated(text: &impl Text, instruction: &Instruction) -> bool {
    let length = instruction.len();
    let bytes = text.bytes(instruction.ip(), length);
    matches!(
        (length, bytes),
        (1, [0x90 | 0x50..=0x57, ..])
            | (2, [0x41, 0x50..=0x57, ..] | [0xeb | 0x70..=0x7f, ..])
            | (5, [0xe8 | 0xe9, ..])
            | (6, [0x0f, 0x80..=0x8f, ..])
    )
}

/// Registers of the first arguments.
const ARGUMENTS: [Register; 3] = [Register::RDI, Register::RSI, Register::RDX];

fn arguments(call: AllocCall) -> &'static [Register] {
    match call {
        AllocCall::Malloc | AllocCall::Free => &ARGUMENTS[..1],
        AllocCall::Calloc | AllocCall::Realloc | AllocCall::Aligned => &ARGUMENTS[..2],
        AllocCall::Reallocarray | AllocCall::PosixMemalign => &ARGUMENTS,
    }
}

/// Looks at the function at `entry`, which is `size` bytes long as far as the symbol says; `watched` are the entries of all
/// functions that get a probe. The error says what is not understood.
pub(super) fn sites(
    text: &impl Text,
    entry: u64,
    size: u64,
    call: AllocCall,
    watched: &BTreeSet<u64>,
) -> Result<Sites, &'static str> {
    let mut sites = Sites {
        entry,
        arguments: ARGUMENTS.map(|register| word(register).unwrap_or_default()),
        ..Sites::default()
    };
    let mut flow = Flow::new(entry);
    let targets = walk(text, entry, size, watched, &mut sites, &mut flow)?;
    sites.results = match call {
        AllocCall::Free => Results::default(),
        // It does not return the pointer; and where there may be more returns, what is learned before them may not be it.
        AllocCall::PosixMemalign => Results::stepped(&sites.returns),
        _ if sites.jumps_anywhere => Results::stepped(&sites.returns),
        _ => results::find(text, &flow, &sites.returns),
    };
    if let Some((at, pushed, homes)) = emulated_place(text, entry, call) {
        // A loop back to it would count a call many times.
        if !targets.iter().any(|target| *target > entry && *target <= at) {
            (sites.entry, sites.pushed, sites.emulated) = (at, pushed, true);
            for (argument, home) in sites.arguments.iter_mut().zip(homes) {
                *argument = home;
            }
        }
    }
    Ok(sites)
}

/// Follows every way through the function; returns where jumps lead to.
fn walk(
    text: &impl Text,
    entry: u64,
    size: u64,
    watched: &BTreeSet<u64>,
    sites: &mut Sites,
    flow: &mut Flow,
) -> Result<HashSet<u64>, &'static str> {
    let end = if size == 0 {
        u64::MAX
    } else {
        entry.saturating_add(size)
    };
    let (mut seen, mut targets) = (HashSet::new(), HashSet::new());
    let mut open = vec![entry];
    while let Some(mut at) = open.pop() {
        let mut called = false;
        while seen.insert(at) {
            if seen.len() > MOST_INSTRUCTIONS {
                return Err("its code is too long");
            }
            let Some(instruction) = decode(text, at) else {
                if text.bytes(at, 1).is_empty() {
                    sites.jumps_anywhere = true;
                    break;
                }
                // Behind a call that does not return there may be anything.
                if called {
                    break;
                }
                return Err("its code cannot be decoded");
            };
            called = instruction.flow_control() == FlowControl::Call;
            let next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Return => {
                    sites.returns.push(at);
                    if sites.returns.len() > MOST_RETURNS {
                        return Err("it has too many returns");
                    }
                    break;
                }
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    let target = through_stub(text, instruction.near_branch_target());
                    let conditional = instruction.flow_control() == FlowControl::ConditionalBranch;
                    if target != entry && watched.contains(&target) {
                        sites.forwards.insert(target);
                    } else if !conditional && leads_out(text, target) {
                        sites.exits.push(at);
                    } else {
                        targets.insert(target);
                        open.push(target);
                        flow.add(at, target);
                    }
                    if !conditional {
                        break;
                    }
                }
                FlowControl::IndirectBranch => {
                    sites.jumps_anywhere = true;
                    break;
                }
                FlowControl::Exception | FlowControl::Interrupt => break,
                _ => {}
            }
            // Behind the call of a function that never returns begins the next function.
            if next == end || watched.contains(&next) {
                break;
            }
            flow.add(at, next);
            at = next;
        }
    }
    sites.returns.sort_unstable();
    sites.returns.dedup();
    Ok(targets)
}

/// Where a jump to a stub of the procedure linkage table leads to, if that is in this file.
fn through_stub(text: &impl Text, target: u64) -> u64 {
    let jump = decode(text, target).and_then(|first| match first.code() {
        Code::Endbr64 => decode(text, first.next_ip()),
        _ => Some(first),
    });
    jump.filter(|jump| jump.flow_control() == FlowControl::IndirectBranch && jump.is_ip_rel_memory_operand())
        .and_then(|jump| text.pointer(jump.ip_rel_memory_address()))
        .unwrap_or(target)
}

/// Whether code at an address is not here, or is a stub of the procedure linkage table, which jumps to where it is.
fn leads_out(text: &impl Text, address: u64) -> bool {
    let Some(mut first) = decode(text, address) else {
        return true;
    };
    if first.code() == Code::Endbr64 {
        let Some(second) = decode(text, first.next_ip()) else {
            return true;
        };
        first = second;
    }
    first.flow_control() == FlowControl::IndirectBranch
}

/// The first place on every way from the entry that the kernel emulates while all arguments are in registers, what is pushed there,
/// and the words of those registers.
fn emulated_place(text: &impl Text, entry: u64, call: AllocCall) -> Option<(u64, u16, Vec<u8>)> {
    let mut infos = InstructionInfoFactory::new();
    let (mut at, mut pushed) = (entry, 0i64);
    // All registers that hold each of them: most are copied before their own is used for something else.
    let mut homes: Vec<Vec<Register>> = arguments(call).iter().map(|register| vec![*register]).collect();
    for _ in 0..32 {
        let instruction = decode(text, at)?;
        if is_emulated(text, &instruction) {
            let words: Option<Vec<u8>> = homes.iter().map(|of| word(*of.first()?)).collect();
            return Some((at, u16::try_from(pushed).ok()?, words?));
        }
        if instruction.flow_control() != FlowControl::Next {
            return None;
        }
        let copies = copied(&instruction).map(|from| (from, instruction.op0_register()));
        let holds: Vec<bool> = homes
            .iter()
            .map(|of| copies.is_some_and(|(from, _)| of.contains(&from)))
            .collect();
        for used in infos.info(&instruction).used_registers() {
            let register = used.register().full_register();
            if !is_written(used.access()) {
                continue;
            }
            if register == Register::RSP {
                pushed += stack_growth(&instruction)?;
            }
            homes
                .iter_mut()
                .for_each(|of| of.retain(|home| *home != register));
        }
        for (of, holds) in homes.iter_mut().zip(holds) {
            of.extend(copies.filter(|_| holds).map(|(_, to)| to));
        }
        if homes.iter().any(Vec::is_empty) {
            return None;
        }
        at = instruction.next_ip();
    }
    None
}

/// By how much an instruction that changes the stack pointer grows the stack.
pub(super) fn stack_growth(instruction: &Instruction) -> Option<i64> {
    match instruction.code() {
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if instruction.op0_kind() == OpKind::Register => {
            Some(instruction.immediate(1).cast_signed())
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if instruction.op0_kind() == OpKind::Register => {
            Some(-instruction.immediate(1).cast_signed())
        }
        _ => match instruction.stack_pointer_increment() {
            0 => None,
            increment => Some(i64::from(-increment)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000;

    impl Text for &[u8] {
        fn bytes(&self, address: u64, len: usize) -> &[u8] {
            let from = usize::try_from(address.wrapping_sub(BASE)).unwrap_or(usize::MAX);
            let rest = self.get(from..).unwrap_or_default();
            &rest[..rest.len().min(len)]
        }
    }

    fn look(code: &[u8], call: AllocCall, watched: &[u64]) -> Result<Sites, &'static str> {
        sites(
            &code,
            BASE,
            code.len() as u64,
            call,
            &watched.iter().copied().collect(),
        )
    }

    #[test]
    fn the_probe_of_free_goes_behind_its_test() {
        // test %rdi,%rdi; je +5; push %rbp; pop %rbp; ret; nop; nop; ret
        let code = [0x48, 0x85, 0xff, 0x74, 0x05, 0x55, 0x5d, 0xc3, 0x90, 0x90, 0xc3];
        let found = look(&code, AllocCall::Free, &[]).unwrap();
        assert_eq!((found.entry, found.pushed, found.emulated), (BASE + 3, 0, true));
        assert_eq!(found.returns, [BASE + 7, BASE + 10]);
    }

    #[test]
    fn what_was_pushed_before_it_is_known() {
        // sub $0x18,%rsp; test %rdi,%rdi; je +0; add $0x18,%rsp; ret
        let code = [
            0x48, 0x83, 0xec, 0x18, 0x48, 0x85, 0xff, 0x74, 0x00, 0x48, 0x83, 0xc4, 0x18, 0xc3,
        ];
        let found = look(&code, AllocCall::Malloc, &[]).unwrap();
        assert_eq!((found.entry, found.pushed), (BASE + 7, 0x18));
    }

    #[test]
    fn an_argument_that_is_gone_leaves_the_entry() {
        // mov (%rdi),%rdi; push %rbx; pop %rbx; ret
        let code = [0x48, 0x8b, 0x3f, 0x53, 0x5b, 0xc3];
        let found = look(&code, AllocCall::Malloc, &[]).unwrap();
        assert_eq!((found.entry, found.emulated), (BASE, false));
        // Its copy will do: mov %rdi,%rsi; mov (%rdx),%rdi; push %rbx; pop %rbx; ret
        let code = [0x48, 0x89, 0xfe, 0x48, 0x8b, 0x3a, 0x53, 0x5b, 0xc3];
        let found = look(&code, AllocCall::Malloc, &[]).unwrap();
        assert_eq!(
            (found.entry, found.emulated, found.arguments[0]),
            (BASE + 6, true, 13)
        );
        // As long as the argument that counts is another one, it does not matter.
        // mov %esi,%edx; push %rbx; pop %rbx; ret
        let found = look(&[0x89, 0xf2, 0x53, 0x5b, 0xc3], AllocCall::Malloc, &[]).unwrap();
        assert_eq!((found.entry, found.emulated), (BASE + 2, true));
    }

    #[test]
    fn no_probe_inside_a_loop() {
        // test %rdi,%rdi; push %rax (looped to); jne -3; ret
        let code = [0x48, 0x85, 0xff, 0x50, 0x75, 0xfd, 0xc3];
        let found = look(&code, AllocCall::Malloc, &[]).unwrap();
        assert_eq!((found.entry, found.emulated), (BASE, false));
    }

    #[test]
    fn jumps_to_other_functions_are_followed_or_forward() {
        // test %rdi,%rdi; je +1; ret; jmp +0; ret
        let code = [0x48, 0x85, 0xff, 0x74, 0x01, 0xc3, 0xeb, 0x00, 0xc3];
        let found = look(&code, AllocCall::Realloc, &[]).unwrap();
        assert_eq!(found.returns, [BASE + 5, BASE + 8]);
        let found = look(&code, AllocCall::Realloc, &[BASE + 8]).unwrap();
        assert_eq!(found.returns, [BASE + 5]);
        assert_eq!(found.forwards, BTreeSet::from([BASE + 8]));
        // A stub of the procedure linkage table, and code that is not here.
        let found = look(&[0xeb, 0x00, 0xff, 0x25, 0, 0, 0, 0], AllocCall::Calloc, &[]).unwrap();
        assert_eq!((found.exits, found.jumps_anywhere), (vec![BASE], false));
        let found = look(&[0xe9, 0, 0, 1, 0], AllocCall::Calloc, &[]).unwrap();
        assert_eq!(found.exits, [BASE]);
        // jmp *%rax
        assert!(
            look(&[0xff, 0xe0], AllocCall::Malloc, &[])
                .unwrap()
                .jumps_anywhere
        );
        // An instruction that does not exist in 64-bit code.
        assert!(look(&[0x06], AllocCall::Malloc, &[]).is_err());
    }
}
