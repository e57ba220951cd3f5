//! Rules of code that has no call frame information, from its instructions.
//!
//! Compilers leave the information out where they believe that nobody unwinds: Rust's `main` with `panic=abort`, start-up code,
//! musl's assembly. A function is followed from its first byte along all its branches. What it does to the stack pointer is
//! believed only if each way out finds the return address on top of the stack; whatever is not understood has no rules.

use std::collections::BTreeMap;

use agent_ebpf::wire::unwind::Rule;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Register};

use super::super::cpu_time::CpuTime;
use super::effect::{State, after};

/// Instructions of a function at most.
const MAX_INSTRUCTIONS: usize = 4096;
/// Compilers align functions to this.
const ALIGNMENT: u64 = 16;

/// A function whose instructions were understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Understood {
    /// First address.
    pub(super) start: u64,
    /// First address behind its last instruction.
    pub(super) end: u64,
    /// From where on which rule holds.
    pub(super) rows: Vec<(u64, Rule)>,
    /// Where it jumps as if that were a call.
    tails: Vec<u64>,
}

/// What a stretch of code holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Functions, in the order of their addresses.
    pub(super) functions: Vec<Understood>,
    /// Where signal handlers return to.
    pub(super) signal_returns: Vec<u64>,
}

/// The functions in a stretch of code without information, of which some addresses may be known, in order. Between functions there
/// is padding; where one is not understood, the next one is that which something calls. What is not read in time is left out.
pub(super) fn functions(code: &[u8], address: u64, known: &[u64], until: CpuTime) -> Stretch {
    let mut found: Vec<Understood> = Vec::new();
    let mut signal_returns = Vec::new();
    let mut info = InstructionInfoFactory::new();
    let called = called(code, address);
    let behind = |list: &[u64], at: u64| list.get(list.partition_point(|known| *known <= at)).copied();
    let mut at = 0;
    while let Some(start) = next_start(code, address, at) {
        if let Some(len) = signal_return(&code[start..]) {
            signal_returns.push(address + start as u64);
            at = start + len;
            continue;
        }
        if CpuTime::now() > until {
            break;
        }
        match follow(code, address, known, start, &mut info, until) {
            Some(function) => {
                at = usize::try_from(function.end - address).unwrap_or(code.len());
                found.push(function);
            }
            // What comes next may still be of this one.
            None => {
                let this = address + start as u64;
                let next = [behind(&called, this), behind(known, this)];
                let Some(next) = next.into_iter().flatten().min() else {
                    break;
                };
                at = usize::try_from(next - address).unwrap_or(code.len());
            }
        }
    }
    // A part that was moved away begins with a frame; it gives itself away by jumping back into the function that it is of.
    let gives_away = |function: &Understood| {
        function.tails.iter().any(|target| {
            let before = found.partition_point(|function| function.start < *target);
            let of = before.checked_sub(1).and_then(|at| found.get(at));
            of.is_some_and(|of| of.start != function.start && *target < of.end)
        })
    };
    let moved: Vec<bool> = found.iter().map(gives_away).collect();
    let mut moved = moved.into_iter();
    found.retain(|_| !moved.next().unwrap_or(false));
    Stretch {
        functions: found,
        signal_returns,
    }
}

/// The length of the code to which the kernel lets signal handlers return, where that is here: the number of `rt_sigreturn` into
/// the lower or the whole register, then the system call.
fn signal_return(code: &[u8]) -> Option<usize> {
    const WAYS: [&[u8]; 2] = [
        &[0xb8, 15, 0, 0, 0, 0x0f, 0x05],
        &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05],
    ];
    WAYS.iter().find(|way| code.starts_with(way)).map(|way| way.len())
}

/// The first byte at or after `at` that is no padding.
fn next_start(code: &[u8], address: u64, at: usize) -> Option<usize> {
    let mut decoder = Decoder::with_ip(64, code.get(at..)?, address + at as u64, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if !is_padding(&instruction) {
            return usize::try_from(instruction.ip() - address).ok();
        }
    }
    None
}

/// What the calls in a stretch call of it, in order.
fn called(code: &[u8], address: u64) -> Vec<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let behind = address + code.len() as u64;
    let mut called = Vec::new();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if instruction.is_call_near() {
            let target = instruction.near_branch_target();
            called.extend((address..behind).contains(&target).then_some(target));
        }
    }
    called.sort_unstable();
    called
}

fn is_padding(instruction: &Instruction) -> bool {
    matches!(
        instruction.code(),
        Code::Nopw | Code::Nopd | Code::Nopq | Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 | Code::Int3
    ) || (instruction.code() == Code::Add_rm8_r8
        && instruction.memory_base() == Register::RAX
        && instruction.op1_register() == Register::AL)
}

fn follow(
    code: &[u8],
    address: u64,
    known: &[u64],
    start: usize,
    info: &mut InstructionInfoFactory,
    until: CpuTime,
) -> Option<Understood> {
    let first = address + start as u64;
    let mut walk = Walk {
        code,
        address,
        known,
        first,
        seen: BTreeMap::new(),
        end: first,
        proven: false,
        stops: false,
        tails: Vec::new(),
        table: None,
    };
    walk.run(first, State::ENTRY, info)?;
    // Where a jump went through a table, so do others: to what nobody else jumps to, inside and right behind.
    while let (Some(state), Some(at)) = (walk.table, walk.hole()) {
        if CpuTime::now() > until {
            return None;
        }
        let mut further = walk.clone();
        match further.run(at, state, info) {
            Some(()) if further.end > walk.end || at < walk.end => walk = further,
            _ if at < walk.end => return None,
            // The next function.
            _ => break,
        }
    }
    // Without a way out (`abort` at the end, a loop for ever) its place has to do.
    let proven = walk.proven || walk.stops && first.is_multiple_of(ALIGNMENT);
    if !proven {
        return None;
    }
    let mut rows: Vec<(u64, Rule)> = Vec::new();
    for (ip, (state, _)) in walk.seen {
        let rule = state.rule()?;
        if rows.last().is_none_or(|(_, last)| *last != rule) {
            rows.push((ip, rule));
        }
    }
    Some(Understood {
        start: first,
        end: walk.end,
        rows,
        tails: walk.tails,
    })
}

/// What is known of a function.
#[derive(Clone)]
struct Walk<'a> {
    code: &'a [u8],
    /// Of the first byte of `code`.
    address: u64,
    /// Where functions begin, as far as that is known.
    known: &'a [u64],
    first: u64,
    /// Instructions: the frame before each, and where the next one begins.
    seen: BTreeMap<u64, (State, u64)>,
    end: u64,
    /// A way out showed the frame to be right.
    proven: bool,
    /// A call that does not return is the last instruction of a way.
    stops: bool,
    tails: Vec<u64>,
    /// The frame where a jump went through a table.
    table: Option<State>,
}

impl Walk<'_> {
    /// Follows all branches from an address; `None` where something is not understood.
    fn run(&mut self, from: u64, state: State, info: &mut InstructionInfoFactory) -> Option<()> {
        let behind = self.address + self.code.len() as u64;
        let mut todo = vec![(from, state)];
        while let Some((mut ip, mut state)) = todo.pop() {
            let at = usize::try_from(ip.checked_sub(self.address)?).ok()?;
            let mut decoder = Decoder::with_ip(64, self.code.get(at..)?, ip, DecoderOptions::NONE);
            let mut called = false;
            while ip < behind {
                match self.seen.get(&ip) {
                    Some((known, _)) if *known == state => break,
                    // Two ways to one place with different frames: something was not understood.
                    Some(_) => return None,
                    None => {}
                }
                let instruction = decoder.decode();
                // What was called does not return when nothing follows, or another function.
                let nothing = instruction.is_invalid() || is_padding(&instruction);
                if called && (nothing || self.known.binary_search(&ip).is_ok()) {
                    self.stops = true;
                    break;
                }
                if instruction.is_invalid() || self.seen.len() >= MAX_INSTRUCTIONS {
                    return None;
                }
                self.seen.insert(ip, (state, instruction.next_ip()));
                self.end = self.end.max(instruction.next_ip());
                self.proven |= state.outermost;
                let target = instruction.near_branch_target();
                let inside = (self.first..behind).contains(&target);
                let out = state.can_return() || state.outermost;
                match instruction.flow_control() {
                    FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                    FlowControl::ConditionalBranch if inside => todo.push((target, state)),
                    // To a part that was moved away because it hardly ever runs.
                    FlowControl::ConditionalBranch => {}
                    // A jump with the return address on top may be a call, as the last thing that a function does.
                    FlowControl::UnconditionalBranch if inside && !out => {
                        todo.push((target, state));
                        break;
                    }
                    FlowControl::Return | FlowControl::IndirectBranch | FlowControl::UnconditionalBranch
                        if out =>
                    {
                        self.proven = true;
                        if instruction.flow_control() == FlowControl::UnconditionalBranch {
                            self.tails.push(target);
                        }
                        break;
                    }
                    FlowControl::IndirectBranch if self.table.is_none_or(|table| table == state) => {
                        self.table = Some(state);
                        break;
                    }
                    FlowControl::Exception | FlowControl::Interrupt => break,
                    _ => return None,
                }
                called = instruction.is_call_near() || instruction.is_call_near_indirect();
                if !called {
                    state = after(&instruction, state, info)?;
                }
                ip = instruction.next_ip();
            }
            self.stops |= called && ip >= behind;
        }
        Some(())
    }

    /// The first address, padding aside, that no branch led to: inside or right behind.
    fn hole(&self) -> Option<u64> {
        let start = |at: u64| {
            let at = next_start(self.code, self.address, usize::try_from(at - self.address).ok()?)?;
            Some(self.address + at as u64)
        };
        let mut expected = self.first;
        for (&ip, &(_, next)) in &self.seen {
            if ip > expected {
                match start(expected) {
                    Some(at) if at < ip => return Some(at),
                    _ => {}
                }
            }
            expected = expected.max(next);
        }
        start(self.end)
    }
}
