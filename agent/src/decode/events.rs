//! Records of the ring buffer.

use agent_ebpf::wire::{
    self, CONN_WORDS, ConnKey, EVENT_CLOSED, EVENT_EXITED, EVENT_OOM, EVENT_OPENED, EVENT_STACK,
    EVENT_WAIT_DONE, FOR_MEMORY, FRAME_INTERRUPTED, FRAME_UPPER, GROWTH_WORDS, SAMPLE_AGAIN, SAMPLE_FLAGS,
    SLOT_FIRST, SlotEvent, StackHeader, alloc_sample,
    python::{PYTHON_ENTRY, PYTHON_RETURNED, PYTHON_WHOLE, PYTHON_WORDS},
};

use super::harvest::{PAGE, unix_ns};
use super::keys;
use super::model::{
    CapturedModule, Cause, Growth, Lifecycle, OomVictim, Peer, PythonFrame, PythonStack, SlotId, StackDetail,
    StackKind, StackSample, UnwindResult,
};
use super::modules::{self, Captured};
use super::waits::Waits;

/// Turns records into lifecycle events and samples.
#[derive(Debug, Default)]
pub struct Events {
    waits: Waits,
    /// Modules of processes that the agent did not know when they were sampled.
    captured: Captured,
    /// Records that made no sense, or samples that could not be kept.
    pub malformed: u64,
}

/// What belongs to a sample of one kind.
#[derive(Debug, PartialEq)]
pub enum More {
    /// Nothing.
    Nothing,
    /// Where memory grew.
    Growth(Box<Growth>),
    /// What names an opening of descriptors.
    Opening(u64),
}

/// What a record says.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A slot or process began or ended.
    Life(Lifecycle),
    /// A complete sample.
    Sample(StackSample, More),
    /// A process's stack was walked with this result; its sample comes when its wait has ended.
    Walked(SlotId, u32, UnwindResult),
    /// A process of this slot is killed for memory.
    Oom(SlotId, OomVictim),
}

pub(super) fn read<T: Copy>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: only `agent_ebpf::wire` records are read, for which every bit pattern is valid; the length was checked.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

/// Weight of a sampled allocation of `size` bytes, where samples are `mean` bytes apart in the mean: it was chosen with
/// probability `1 - e^(-size / mean)` (jemalloc's `PROFILING_INTERNALS.md` has the derivation).
#[must_use]
pub fn alloc_weight(size: u64, mean: u32) -> f64 {
    let size = size.max(1) as f64;
    size / -(-size / f64::from(mean.max(1))).exp_m1()
}

impl Events {
    /// Waits whose length or whole stack is still to come.
    pub const fn waits(&mut self) -> &mut Waits {
        &mut self.waits
    }

    /// The modules that came with samples since the last time this was asked.
    pub fn captured(&mut self) -> &mut Captured {
        &mut self.captured
    }

    /// Decodes one record.
    pub fn decode(&mut self, bytes: &[u8]) -> Option<Event> {
        let kind: u32 = read(bytes)?;
        let event = match kind {
            EVENT_OPENED | EVENT_CLOSED | EVENT_EXITED => read(bytes).map(|event| Event::Life(life(&event))),
            EVENT_OOM => read(bytes).map(|victim: wire::OomVictim| {
                let seen = OomVictim {
                    at_unix_ns: unix_ns(),
                    pid: victim.pid,
                    comm: name(&victim.comm),
                    resident_bytes: victim.pages.map(|pages| pages * PAGE),
                };
                Event::Oom(SlotId(victim.slot), seen)
            }),
            EVENT_WAIT_DONE => {
                let sample = self.waits.done(&read(bytes)?)?;
                return Some(Event::Sample(sample, More::Nothing));
            }
            EVENT_STACK => {
                let Some((header, mut sample, modules)) = stack(bytes) else {
                    self.malformed += 1;
                    return None;
                };
                self.captured.add((sample.slot, sample.pid), modules);
                match sample.kind {
                    StackKind::Wait if header.weight & SAMPLE_AGAIN != 0 => {
                        let sample = self.waits.again(header.weight & !SAMPLE_FLAGS, sample)?;
                        return Some(Event::Sample(sample, More::Nothing));
                    }
                    StackKind::Wait => {
                        let walked = Event::Walked(sample.slot, sample.pid, sample.unwind);
                        self.waits.began(header.weight, sample);
                        return Some(walked);
                    }
                    StackKind::Fd => return Some(Event::Sample(sample, More::Opening(header.weight))),
                    StackKind::Memory => {
                        let growth = growth(&mut sample);
                        let more = growth.map_or(More::Nothing, |growth| More::Growth(Box::new(growth)));
                        return Some(Event::Sample(sample, more));
                    }
                    _ => return Some(Event::Sample(sample, More::Nothing)),
                }
            }
            _ => None,
        };
        if event.is_none() {
            self.malformed += 1;
        }
        event
    }
}

/// Up to the first zero byte.
fn name(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

fn life(event: &SlotEvent) -> Lifecycle {
    let slot = SlotId(event.slot);
    match event.kind {
        EVENT_OPENED => Lifecycle::Opened {
            slot,
            pid: event.pid,
            parent: (event.parent >= SLOT_FIRST).then_some(SlotId(event.parent)),
            comm: name(&event.comm),
        },
        EVENT_CLOSED => Lifecycle::Closed { slot },
        _ => Lifecycle::Exited { slot, pid: event.pid },
    }
}

fn stack(bytes: &[u8]) -> Option<(StackHeader, StackSample, Vec<CapturedModule>)> {
    let header: StackHeader = read(bytes)?;
    let frames = bytes.get(size_of::<StackHeader>()..)?;
    let (user, kernel) = (usize::from(header.user_len), usize::from(header.kernel_len));
    let mut addresses = frames.chunks_exact(8).map(|word| {
        let mut raw = [0; 8];
        raw.copy_from_slice(word);
        u64::from_ne_bytes(raw)
    });
    let python = usize::from(header.python_len);
    let behind = frames.get(8 * (user + kernel + python * PYTHON_WORDS)..)?;
    let modules = modules::decode(behind, header.modules.into())?;
    let mut user: Vec<u64> = addresses.by_ref().take(user).collect();
    let interrupted = take_marks(&mut user);
    let mut kernel: Vec<u64> = addresses.by_ref().take(kernel).collect();
    let python = (0..python).map_while(|_| {
        let (code, place) = (addresses.next()?, addresses.next()?);
        Some(PythonFrame {
            code,
            instruction: place as u32,
            entry: place & PYTHON_ENTRY != 0,
        })
    });
    let python = PythonStack {
        minor: (header.python_minor & !(PYTHON_WHOLE | PYTHON_RETURNED)).into(),
        whole: header.python_minor & PYTHON_WHOLE != 0,
        returned: header.python_minor & PYTHON_RETURNED != 0,
        frames: python.collect(),
    };
    let kind = StackKind::from_index(header.stack_kind)?;
    let nr = u16::try_from(header.nr).ok();
    let detail = match kind {
        StackKind::Wait => StackDetail::Wait {
            cause: Cause::from_index(header.cause & !FOR_MEMORY)?,
            call: nr,
            memory: header.cause & FOR_MEMORY != 0,
        },
        StackKind::Syscall => StackDetail::Syscall(nr?),
        StackKind::Conn => {
            let words = std::mem::take(&mut kernel);
            // The number is of the call that connected a Unix socket.
            StackDetail::Opened(match nr {
                Some(_) => Peer::Unix,
                None => keys::peer(&conn_key(&words)?)?.1,
            })
        }
        StackKind::Alloc => StackDetail::Alloc {
            id: alloc_sample(header.tid, header.nr.cast_unsigned()),
            size: header.weight,
        },
        _ => StackDetail::None,
    };
    let sample = StackSample {
        slot: SlotId(header.slot),
        pid: header.pid,
        tid: header.tid,
        kind,
        detail,
        weight: match kind {
            StackKind::Alloc => alloc_weight(header.weight, header.cause),
            _ => header.weight as f64,
        },
        own: 0.0,
        user,
        interrupted,
        unfolded: false,
        kernel,
        python,
        unwind: UnwindResult::from_index(header.unwind)?,
    };
    Some((header, sample, modules))
}

/// The key in a sample of a connection.
fn conn_key(words: &[u64]) -> Option<ConnKey> {
    let words: &[u64; CONN_WORDS] = words.first_chunk()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    read(&bytes)
}

/// Takes the words out of a sample of growth that stand in place of kernel frames.
fn growth(sample: &mut StackSample) -> Option<Growth> {
    let words = std::mem::take(&mut sample.kernel);
    let words: &[u64; GROWTH_WORDS] = words.first_chunk()?;
    let (at_ns, registers) = words.split_first()?;
    Some(Growth {
        at_ns: *at_ns,
        registers: *registers.first_chunk()?,
    })
}

/// Takes the marks off the addresses of interrupted frames; one bit a frame.
fn take_marks(user: &mut [u64]) -> u128 {
    let mut interrupted = 0;
    for (frame, address) in user.iter_mut().enumerate().take(u128::BITS as usize) {
        if *address & FRAME_UPPER == FRAME_INTERRUPTED {
            *address &= !FRAME_INTERRUPTED;
            interrupted |= 1 << frame;
        }
    }
    interrupted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_interrupted_frames_are_no_part_of_their_addresses() {
        const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;
        let mut user = [
            0x40_1000,
            0x7f00_0000_1234 | FRAME_INTERRUPTED,
            0x40_2000,
            VSYSCALL,
        ];
        let interrupted = take_marks(&mut user);
        assert_eq!(user, [0x40_1000, 0x7f00_0000_1234, 0x40_2000, VSYSCALL]);
        assert_eq!(interrupted, 0b10);
    }

    #[test]
    fn a_cut_record_is_counted() {
        let mut events = Events::default();
        assert_eq!(events.decode(&EVENT_STACK.to_ne_bytes()), None);
        assert_eq!(events.decode(&99u32.to_ne_bytes()), None);
        assert_eq!(events.malformed, 2);
        assert_eq!(events.decode(&[]), None);
    }

    #[test]
    fn an_opened_slot_names_its_parent() {
        let mut event = SlotEvent {
            kind: EVENT_OPENED,
            slot: 4099,
            pid: 7,
            parent: 5,
            comm: [0; 16],
        };
        event.comm[..2].copy_from_slice(b"sh");
        // SAFETY: a plain record.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const event).cast::<u8>(), size_of::<SlotEvent>()) };
        let expected = Lifecycle::Opened {
            slot: SlotId(4099),
            pid: 7,
            parent: Some(SlotId(5)),
            comm: "sh".to_owned(),
        };
        assert_eq!(Events::default().decode(bytes), Some(Event::Life(expected)));
    }

    #[test]
    fn a_wait_has_its_cause_and_whether_it_was_for_want_of_memory() {
        let detail = |cause: u32| {
            // SAFETY: a plain record.
            let mut header: StackHeader = unsafe { std::mem::zeroed() };
            (header.stack_kind, header.cause, header.nr) = (StackKind::Wait as u32, cause, -1);
            // SAFETY: as above.
            let bytes = unsafe {
                std::slice::from_raw_parts((&raw const header).cast::<u8>(), size_of::<StackHeader>())
            };
            Some(stack(bytes)?.1.detail)
        };
        for cause in Cause::ALL {
            let plain = StackDetail::wait(*cause, None);
            assert_eq!(detail(*cause as u32), Some(plain));
            let for_memory = StackDetail::Wait {
                cause: *cause,
                call: None,
                memory: true,
            };
            assert_eq!(detail(*cause as u32 | FOR_MEMORY), Some(for_memory));
        }
        assert_eq!(detail(FOR_MEMORY << 1), None);
    }

    #[test]
    fn a_connection_has_a_peer_and_one_that_a_window_saw_stands_for_those_outside() {
        #[repr(C)]
        struct Record {
            header: StackHeader,
            key: ConnKey,
        }
        let sample = |nr: i32, kernel_len: u16| {
            // SAFETY: a plain record.
            let mut record: Record = unsafe { std::mem::zeroed() };
            record.header.stack_kind = StackKind::Conn as u32;
            record.header.nr = nr;
            record.header.weight = 3;
            record.header.kernel_len = kernel_len;
            record.key.family = 4;
            record.key.port = 5432;
            record.key.addr[..4].copy_from_slice(&[10, 0, 0, 7]);
            // SAFETY: as above.
            let bytes =
                unsafe { std::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<Record>()) };
            let (_, mut sample, _) = stack(bytes)?;
            sample.stand_for_all(0.25);
            assert!(sample.kernel.is_empty());
            Some((sample.detail, sample.weight))
        };
        let server = Peer::Server("10.0.0.7".parse().unwrap(), 5432);
        let tcp = sample(-1, 3);
        assert_eq!(tcp, Some((StackDetail::Opened(server), 3.0)));
        assert_eq!(sample(42, 0), Some((StackDetail::Opened(Peer::Unix), 12.0)));
        // Cut.
        assert_eq!(sample(-1, 0), None);
    }
}
