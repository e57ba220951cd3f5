//! Entries of call frame information, each decoded when its rows are wanted.

use agent_ebpf::wire::unwind::RULE_SIGNAL;
use gimli::{
    BaseAddresses, DebugFrame, EhFrame, EndianSlice, LittleEndian, UnwindContext, UnwindOffset, UnwindSection,
};

use super::super::cpu_time::CpuTime;
use super::cfi::rule;
use super::functions::{Found, Limits, Row, Stopped};
use super::rules::Rules;
use super::unsupported::{self, UnsupportedRows};

pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Bytes of call frame information that are read between two looks at the clock.
const BETWEEN_LOOKS: usize = 256 << 10;
/// What an entry costs beside its bytes, in bytes.
pub(super) const EACH_COSTS: usize = 1 << 10;

/// The sections of a file that hold call frame information, with the addresses that they are relative to.
#[derive(Default)]
pub(super) struct Sections<'a> {
    pub(super) eh: Option<(EhFrame<Bytes<'a>>, BaseAddresses)>,
    pub(super) debug: Option<(DebugFrame<Bytes<'a>>, BaseAddresses)>,
}

impl<'a> Sections<'a> {
    /// `.eh_frame` with its address, and `.debug_frame`.
    pub(super) fn new(eh: Option<(u64, &'a [u8])>, debug: Option<&'a [u8]>, bases: &BaseAddresses) -> Self {
        Self {
            eh: eh.map(|(address, data)| {
                let mut frame = EhFrame::from(EndianSlice::new(data, LittleEndian));
                frame.set_address_size(8);
                (frame, bases.clone().set_eh_frame(address))
            }),
            debug: debug.map(|data| {
                let mut frame = DebugFrame::from(EndianSlice::new(data, LittleEndian));
                frame.set_address_size(8);
                (frame, bases.clone())
            }),
        }
    }
}

/// Looks at the clock now and then.
pub(super) struct Clock {
    until: CpuTime,
    read: usize,
}

impl Clock {
    pub(super) fn new(until: CpuTime) -> Self {
        Self { until, read: 0 }
    }

    /// So many bytes more were read.
    pub(super) fn passed(&mut self, bytes: usize) -> Result<(), Stopped> {
        self.read += bytes;
        if self.read > BETWEEN_LOOKS {
            self.read = 0;
            if CpuTime::now() > self.until {
                return Err(Stopped::TooSlow);
            }
        }
        Ok(())
    }
}

/// Decodes the rows of one function after the other.
pub(super) struct Decoder<'a> {
    context: UnwindContext<usize>,
    rows: Vec<Row>,
    clock: Clock,
    left: usize,
    rules: &'a mut Rules,
    pub(super) found: Found,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(rules: &'a mut Rules, limits: Limits, found: Found) -> Self {
        Self {
            context: UnwindContext::new(),
            rows: Vec::new(),
            clock: Clock::new(limits.until),
            left: limits.rows,
            rules,
            found,
        }
    }

    /// The rows of the entry at an offset of its section; `None` where they cannot be read.
    pub(super) fn rows_of<'b, S>(
        &mut self,
        section: Option<&(S, BaseAddresses)>,
        offset: usize,
    ) -> Result<Option<&[Row]>, Stopped>
    where
        S: UnwindSection<Bytes<'b>>,
        S::Offset: UnwindOffset<usize>,
    {
        self.rows.clear();
        let Some((section, bases)) = section else {
            return Ok(None);
        };
        let Ok(fde) = section.fde_from_offset(bases, S::Offset::from(offset), S::cie_from_offset) else {
            return Ok(self.broken());
        };
        self.clock
            .passed(EACH_COSTS + fde.entry_len() + fde.cie().entry_len())?;
        let flags = if fde.is_signal_trampoline() {
            RULE_SIGNAL
        } else {
            0
        };
        let encoding = fde.cie().encoding();
        let mut unsupported = UnsupportedRows::default();
        let whole = (|| {
            let mut table = fde.rows(section, bases, &mut self.context)?;
            while let Some(row) = table.next_row()? {
                let (mut rule, missing) = rule(section, encoding, row);
                rule.flags |= flags;
                if let Some(why) = missing {
                    why.count(&mut unsupported, 1);
                }
                self.rows
                    .push(Row::new(row.start_address(), self.rules.number(rule)));
                if self.rows.len() > self.left {
                    return Ok(false);
                }
            }
            Ok::<_, gimli::Error>(true)
        })();
        match whole {
            Ok(true) => {
                self.left -= self.rows.len();
                unsupported::add(&mut self.found.unsupported, &unsupported);
                Ok(Some(&self.rows))
            }
            Ok(false) => Err(Stopped::TooMany),
            Err(_) => Ok(self.broken()),
        }
    }

    fn broken<T>(&mut self) -> Option<T> {
        self.found.functions -= 1;
        self.found.broken += 1;
        None
    }
}
