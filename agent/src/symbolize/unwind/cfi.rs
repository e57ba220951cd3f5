//! Call frame information → rules: `.eh_frame` and `.debug_frame` (DWARF 5, section 6.4; LSB 5.0, chapter 10), x86-64.

use agent_ebpf::wire::unwind::{
    CFA_AT_FP, CFA_AT_SP, CFA_END, CFA_FP, CFA_PLT, CFA_SP, FP_AT_CFA, FP_AT_FP, FP_AT_SP, FP_LOST, FP_SAME,
    RA_AT_CFA, RA_AT_SP, RA_IN_RDI, Rule,
};
use gimli::{
    CfaRule, Encoding, EndianSlice, LittleEndian, Operation, Register, RegisterRule, UnwindExpression,
    UnwindSection, UnwindTableRow,
};

use super::rules::{NONE, UNSUPPORTED};
use super::unsupported::Unsupported;

type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Numbers of the registers (System V ABI for AMD64, figure 3.36).
const RDI: Register = Register(5);
const RBP: Register = Register(6);
const RSP: Register = Register(7);
const RIP: Register = Register(16);

/// What the linker writes for the stubs of a procedure linkage table: `rsp + 8 + ((rip & 15) >= 11) * 8`.
const PLT: [u8; 11] = [0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22];

/// The rule of a row, an unsupported one where it cannot be said, and what it does not say.
pub(super) fn rule<'a, S>(
    section: &S,
    encoding: Encoding,
    row: &UnwindTableRow<usize>,
) -> (Rule, Option<Unsupported>)
where
    S: UnwindSection<Bytes<'a>>,
{
    let mut rule = NONE;
    // The start of a thread or program says that nobody called it.
    if row.register(RIP) == Some(RegisterRule::Undefined) {
        rule.cfa = CFA_END;
        return (rule, None);
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } if *register == RSP => small(CFA_SP, *offset),
        CfaRule::RegisterAndOffset { register, offset } if *register == RBP => small(CFA_FP, *offset),
        CfaRule::RegisterAndOffset { .. } => None,
        CfaRule::Expression(expression) => match stored(section, encoding, expression) {
            Some(Place {
                register: RSP,
                offset,
                deref: true,
            }) => small(CFA_AT_SP, offset),
            Some(Place {
                register: RBP,
                offset,
                deref: true,
            }) => small(CFA_AT_FP, offset),
            Some(Place {
                register: RSP,
                offset,
                deref: false,
            }) => small(CFA_SP, offset),
            Some(Place {
                register: RBP,
                offset,
                deref: false,
            }) => small(CFA_FP, offset),
            _ if is_plt(section, expression) => Some((CFA_PLT, 0)),
            _ => None,
        },
    };
    let Some((cfa, cfa_offset)) = cfa else {
        let why = match row.cfa() {
            CfaRule::RegisterAndOffset { .. } => Unsupported::FrameRegister,
            CfaRule::Expression(_) => Unsupported::FrameExpression,
        };
        return (UNSUPPORTED, Some(why));
    };
    (rule.cfa, rule.cfa_offset) = (cfa, cfa_offset);
    let ra = match row.register(RIP) {
        Some(RegisterRule::Register(RDI)) => Some((RA_IN_RDI, 0)),
        Some(RegisterRule::Offset(offset)) => small(RA_AT_CFA, offset),
        Some(RegisterRule::Expression(expression)) => match stored(section, encoding, &expression) {
            Some(Place {
                register: RSP,
                offset,
                deref: false,
            }) => small(RA_AT_SP, offset),
            _ => None,
        },
        _ => None,
    };
    let Some((ra, ra_offset)) = ra else {
        return (UNSUPPORTED, Some(Unsupported::ReturnAddress));
    };
    (rule.ra, rule.ra_offset) = (ra, ra_offset);
    let fp = match row.register(RBP) {
        None | Some(RegisterRule::SameValue) => Some((FP_SAME, 0)),
        Some(RegisterRule::Offset(offset)) => small(FP_AT_CFA, offset),
        Some(RegisterRule::Expression(expression)) => match stored(section, encoding, &expression) {
            Some(Place {
                register: RSP,
                offset,
                deref: false,
            }) => small(FP_AT_SP, offset),
            Some(Place {
                register: RBP,
                offset,
                deref: false,
            }) => small(FP_AT_FP, offset),
            _ => None,
        },
        _ => None,
    };
    // A caller that keeps no frame pointer never misses it.
    (rule.fp, rule.fp_offset) = fp.unwrap_or((FP_LOST, 0));
    (rule, fp.is_none().then_some(Unsupported::FramePointer))
}

fn small(kind: u8, offset: i64) -> Option<(u8, i32)> {
    Some((kind, i32::try_from(offset).ok()?))
}

/// A register plus an offset, or what is stored there.
struct Place {
    register: Register,
    offset: i64,
    deref: bool,
}

fn stored<'a, S>(section: &S, encoding: Encoding, expression: &UnwindExpression<usize>) -> Option<Place>
where
    S: UnwindSection<Bytes<'a>>,
{
    let mut operations = expression.get(section).ok()?.operations(encoding);
    let Operation::RegisterOffset { register, offset, .. } = operations.next().ok()?? else {
        return None;
    };
    let deref = match operations.next().ok()? {
        None => false,
        Some(Operation::Deref {
            size: 8,
            space: false,
            ..
        }) => {
            if operations.next().ok()?.is_some() {
                return None;
            }
            true
        }
        Some(_) => return None,
    };
    Some(Place {
        register,
        offset,
        deref,
    })
}

fn is_plt<'a, S>(section: &S, expression: &UnwindExpression<usize>) -> bool
where
    S: UnwindSection<Bytes<'a>>,
{
    expression
        .get(section)
        .is_ok_and(|expression| expression.0.slice() == PLT)
}
