//! What instructions do to a frame.

use agent_ebpf::wire::unwind::{CFA_END, CFA_FP, CFA_SP, FP_AT_CFA, FP_SAME, RA_AT_CFA, Rule};
use iced_x86::{Code, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::rules::NONE;

/// Just called: the return address is on top.
const ENTRY: i64 = 8;

/// Where the frame is before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// What to add to the stack pointer for the canonical frame address; unknown once the stack was aligned.
    sp: Option<i64>,
    /// The same for the frame pointer, where it is one.
    fp: Option<i64>,
    /// Where the caller's frame pointer is, from the canonical frame address; `None` while it is in its register.
    saved: Option<i64>,
    /// Nobody called.
    pub(super) outermost: bool,
}

impl State {
    pub(super) const ENTRY: Self = Self {
        sp: Some(ENTRY),
        fp: None,
        saved: None,
        outermost: false,
    };
    /// The frame pointer was cleared without having been saved: so the first frame of a thread is marked (System V ABI for
    /// AMD64, 3.4.1).
    pub(super) const OUTERMOST: Self = Self {
        sp: None,
        fp: None,
        saved: None,
        outermost: true,
    };

    /// The return address is on top, and the caller's frame pointer in its register.
    pub(super) fn can_return(self) -> bool {
        self.sp == Some(ENTRY) && self.saved.is_none()
    }

    /// How to get to the caller's frame; `None` where that is not known.
    pub(super) fn rule(self) -> Option<Rule> {
        if self.outermost {
            return Some(Rule { cfa: CFA_END, ..NONE });
        }
        // The frame pointer first: what was called may have taken its arguments from the stack (V8's functions do).
        let (cfa, offset) = match (self.fp, self.sp) {
            (Some(offset), _) => (CFA_FP, offset),
            (None, Some(offset)) => (CFA_SP, offset),
            (None, None) => return None,
        };
        Some(Rule {
            cfa,
            cfa_offset: i32::try_from(offset).ok()?,
            fp: if self.saved.is_some() { FP_AT_CFA } else { FP_SAME },
            fp_offset: i32::try_from(self.saved.unwrap_or(0)).ok()?,
            ra: RA_AT_CFA,
            ra_offset: -8,
            ..NONE
        })
    }
}

/// Where the frame is after an instruction that is neither a call nor a way out.
pub(super) fn after(
    instruction: &Instruction,
    mut state: State,
    info: &mut InstructionInfoFactory,
) -> Option<State> {
    if state.outermost {
        return Some(state);
    }
    let register = |operand: u32| {
        (instruction.op_count() > operand && instruction.op_kind(operand) == OpKind::Register)
            .then(|| instruction.op_register(operand))
    };
    let (target, source) = (register(0), register(1));
    let constant = || {
        (instruction.op_count() == 2)
            .then(|| instruction.try_immediate(1).ok())
            .flatten()
    };
    match instruction.code() {
        Code::Push_r64 => {
            let sp = state.sp? + 8;
            state.sp = Some(sp);
            if target == Some(Register::RBP) && state.saved.is_none() {
                state.saved = Some(-sp);
            }
        }
        Code::Xor_r32_rm32 | Code::Xor_rm32_r32 | Code::Xor_r64_rm64 | Code::Xor_rm64_r64
            if state.saved.is_none()
                && source == target
                && target.is_some_and(|register| register.full_register() == Register::RBP) =>
        {
            return Some(State::OUTERMOST);
        }
        Code::Pop_r64 if target == Some(Register::RBP) => {
            let sp = state.sp?;
            if state.saved != Some(-sp) {
                return None;
            }
            state = State {
                sp: Some(sp - 8),
                ..State::ENTRY
            };
        }
        Code::Leaveq => {
            let fp = state.fp?;
            if state.saved != Some(-fp) {
                return None;
            }
            state = State {
                sp: Some(fp - 8),
                ..State::ENTRY
            };
        }
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64
            if target == Some(Register::RBP) && source == Some(Register::RSP) =>
        {
            // Without its caller's saved, a changed frame pointer would be lost.
            state.saved?;
            state.fp = state.sp;
        }
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64
            if target == Some(Register::RSP) && source == Some(Register::RBP) =>
        {
            state.sp = Some(state.fp?);
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 if target == Some(Register::RSP) => {
            state.sp = Some(state.sp?.checked_add(constant()? as i64)?);
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 if target == Some(Register::RSP) => {
            state.sp = Some(state.sp?.checked_sub(constant()? as i64)?);
        }
        Code::Lea_r64_m if target == Some(Register::RSP) => {
            let displacement = instruction.memory_displacement64() as i64;
            let base = match (instruction.memory_base(), instruction.memory_index()) {
                (Register::RSP, Register::None) => state.sp?,
                (Register::RBP, Register::None) => state.fp?,
                _ => return None,
            };
            state.sp = Some(base.checked_sub(displacement)?);
        }
        _ => {
            let increment = i64::from(instruction.stack_pointer_increment());
            let mut writes = |register: Register| {
                info.info(instruction).used_registers().iter().any(|used| {
                    used.register().full_register() == register
                        && !matches!(
                            used.access(),
                            OpAccess::Read | OpAccess::CondRead | OpAccess::None
                        )
                })
            };
            if increment != 0 {
                state.sp = Some(state.sp? - increment);
            } else if writes(Register::RSP) {
                state.sp = None;
                state.fp?;
            }
            if writes(Register::RBP) {
                state.saved?;
                state.fp = None;
                state.sp?;
            }
        }
    }
    // Below the return address there is nothing of this frame's.
    state
        .sp
        .is_none_or(|sp| sp >= ENTRY && sp % 8 == 0)
        .then_some(state)
}
