//! Bytes of a file, read at offsets that may be wrong.

/// A copy of a part of a file.
#[derive(Debug, Default)]
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }

    /// The rest from an offset on.
    pub(super) fn from(&self, at: u64) -> Option<&[u8]> {
        self.0.get(usize::try_from(at).ok()?..)
    }

    fn take<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        self.from(at)?.first_chunk().copied()
    }

    pub(super) fn u8(&self, at: u64) -> Option<u8> {
        self.take(at).map(u8::from_le_bytes)
    }

    pub(super) fn u32(&self, at: u64) -> Option<u32> {
        self.take(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: u64) -> Option<u64> {
        self.take(at).map(u64::from_le_bytes)
    }

    /// Text up to a zero byte, cut where it is too long for a name.
    pub(super) fn text(&self, at: u64) -> Option<String> {
        const LONGEST: usize = 4096;
        let rest = self.from(at)?;
        let rest = &rest[..rest.len().min(LONGEST)];
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    }
}
