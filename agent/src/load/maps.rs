//! Plain values in and out of maps.

/// A wire type as aya wants it. The types of `agent_ebpf::wire` are `repr(C)` integers without implicit padding.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Plain<T: Copy + 'static>(pub T);

// SAFETY: only wire types, which hold integers and arrays of integers, are read from and written to maps.
unsafe impl<T: Copy + 'static> aya::Pod for Plain<T> {}
