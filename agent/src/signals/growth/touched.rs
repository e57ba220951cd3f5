//! The address that a thread touched, from its registers and the instruction that it was at.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, OpAccess, Register};

use crate::decode::model::{Growth, SlotId, StackSample};
use crate::host::Host;

/// A sample of growth and where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Its place in the tick's list of samples.
    pub index: usize,
    /// Program image.
    pub slot: SlotId,
    /// Process.
    pub pid: u32,
    /// When, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// The address that was touched.
    pub address: u64,
}

/// Places in `struct pt_regs` (linux/arch/x86/include/uapi/asm/ptrace.h).
mod at {
    pub(super) const ORIG_AX: usize = 15;
    pub(super) const IP: usize = 16;
    pub(super) const DI: usize = 14;
    pub(super) const SI: usize = 13;
}

/// The longest instruction.
const INSTRUCTION: usize = 15;

/// Where the thread of a sample touched memory; `None` where that cannot be told.
#[must_use]
pub fn touched(host: &Host, index: usize, sample: &StackSample, growth: &Growth) -> Option<Touched> {
    let call = growth.registers[at::ORIG_AX].cast_signed();
    let address = if call >= 0 {
        buffer(call, &growth.registers)?
    } else {
        let mut code = [0; INSTRUCTION];
        let ip = growth.registers[at::IP];
        let read = host.memory(sample.pid).ok()?.read(ip, &mut code).ok()?;
        operand(ip, &code[..read], &growth.registers)?
    };
    Some(Touched {
        index,
        slot: sample.slot,
        pid: sample.pid,
        at_ns: growth.at_ns,
        address,
    })
}

/// Where the buffer begins that a system call fills. It was touched at one of its pages, which share their fate as a rule.
fn buffer(call: i64, registers: &[u64; 21]) -> Option<u64> {
    if cfg!(not(target_arch = "x86_64")) {
        return None;
    }
    match call {
        // read, pread64, recvfrom
        0 | 17 | 45 => Some(registers[at::SI]),
        // getrandom
        318 => Some(registers[at::DI]),
        _ => None,
    }
}

/// The address that the instruction writes, or else reads.
fn operand(ip: u64, code: &[u8], registers: &[u64; 21]) -> Option<u64> {
    if cfg!(not(target_arch = "x86_64")) {
        return None;
    }
    let instruction = Decoder::with_ip(64, code, ip, DecoderOptions::NONE).decode();
    if instruction.is_invalid() {
        return None;
    }
    let mut factory = InstructionInfoFactory::new();
    let used = factory.info(&instruction).used_memory();
    let writes = |access: OpAccess| {
        matches!(
            access,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    };
    let memory = used
        .iter()
        .find(|memory| writes(memory.access()))
        .or_else(|| used.first())?;
    memory.virtual_address(0, |register, _, _| value(register, registers))
}

fn value(register: Register, registers: &[u64; 21]) -> Option<u64> {
    let place = match register.full_register() {
        Register::R15 => 0,
        Register::R14 => 1,
        Register::R13 => 2,
        Register::R12 => 3,
        Register::RBP => 4,
        Register::RBX => 5,
        Register::R11 => 6,
        Register::R10 => 7,
        Register::R9 => 8,
        Register::R8 => 9,
        Register::RAX => 10,
        Register::RCX => 11,
        Register::RDX => 12,
        Register::RSI => 13,
        Register::RDI => 14,
        Register::RSP => 19,
        // Their segments begin at 0.
        Register::ES | Register::CS | Register::SS | Register::DS => return Some(0),
        _ => return None,
    };
    let value = registers[place];
    Some(match register.size() {
        4 => value & 0xffff_ffff,
        _ => value,
    })
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn what_an_instruction_touches() {
        let mut registers = [0; 21];
        registers[10] = 0x1000; // rax
        registers[11] = 3; // rcx
        registers[14] = 0x7000; // rdi
        registers[13] = 0x5000; // rsi
        registers[19] = 0x9000; // rsp
        for (code, address) in [
            // mov byte ptr [rax+rcx*4+8], 1
            (&[0xc6, 0x44, 0x88, 0x08, 0x01][..], Some(0x1014)),
            // rep stosb: what it writes
            (&[0xf3, 0xaa], Some(0x7000)),
            // rep movsb: what it writes, not what it reads
            (&[0xf3, 0xa4], Some(0x7000)),
            // push rax: below the stack pointer
            (&[0x50], Some(0x8ff8)),
            // mov [rip+0x10], rax: from the end of the instruction
            (&[0x48, 0x89, 0x05, 0x10, 0, 0, 0], Some(0x40_0017)),
            // mov rax, [rsi]
            (&[0x48, 0x8b, 0x06], Some(0x5000)),
            // mov fs:[0], rax: the segment is not known
            (&[0x64, 0x48, 0x89, 0x04, 0x25, 0, 0, 0, 0], None),
            // add rax, rcx
            (&[0x48, 0x01, 0xc8], None),
            (&[], None),
        ] {
            assert_eq!(operand(0x40_0000, code, &registers), address, "{code:x?}");
        }
    }
}
