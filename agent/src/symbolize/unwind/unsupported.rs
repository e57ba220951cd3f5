//! What rows say that the kernel side does not know, by reason.

/// Why a rule cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The frame is found by another register than the stack and the frame pointer.
    FrameRegister,
    /// By an expression that is none of the usual ones.
    FrameExpression,
    /// The return address is not where calls leave it, nor where the usual expressions say.
    ReturnAddress,
    /// Only the caller's frame pointer is where nobody looks: what needs it further out is not walked.
    FramePointer,
    /// Go's table has a depth of the stack that there cannot be.
    Depth,
    /// There are as many different rules as there is room for.
    RulesFull,
}

/// How many rows, by [`Unsupported`].
pub type UnsupportedRows = [u64; Unsupported::ALL.len()];

impl Unsupported {
    /// All of them, in their order.
    pub const ALL: [Self; 6] = [
        Self::FrameRegister,
        Self::FrameExpression,
        Self::ReturnAddress,
        Self::FramePointer,
        Self::Depth,
        Self::RulesFull,
    ];

    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FrameRegister => "frame_register",
            Self::FrameExpression => "frame_expression",
            Self::ReturnAddress => "return_address",
            Self::FramePointer => "frame_pointer",
            Self::Depth => "depth",
            Self::RulesFull => "rules_full",
        }
    }

    /// Counts so many rows.
    pub(super) const fn count(self, rows: &mut UnsupportedRows, more: u64) {
        rows[self as usize] += more;
    }
}

/// Adds counts to others.
pub(super) fn add(sum: &mut UnsupportedRows, more: &UnsupportedRows) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}
