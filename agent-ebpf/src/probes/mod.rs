//! Every probe: one file each, one word here.

use crate::probe::Probe;

macro_rules! probes {
    ($($name:ident),+ $(,)?) => {
        $(pub mod $name;)+

        /// Every probe, in the order in which they are attached.
        pub const ALL: &[Probe] = &[$($name::PROBE,)+];
    };
}

probes!(
    process, wait, cpu, syscall, memory, stall, oom, disk, conn, pool, listen, fd, unix, opener, alloc
);
