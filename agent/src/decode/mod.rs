//! Map and ring bytes → plain values. What comes out here is what every later stage works on.

pub mod model;
pub mod syscalls;
