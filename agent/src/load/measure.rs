//! The programs that are run on demand, to measure what a stack costs.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::{Btf, programs::RawTracePoint};

use super::{Environment, UnwindMaps, open};

/// In the order of [`Measured::programs`].
const PROGRAMS: [&str; 3] = ["measure_nothing", "measure_helper", "measure_walk"];

/// The programs, attached to nothing, and the maps of their tables.
pub struct Measured {
    /// A program that does nothing, the walk of `bpf_get_stack`, and the walk by tables. They return the number of frames and
    /// go on to a child process.
    pub programs: [OwnedFd; 3],
    /// Tables of the walk.
    pub maps: UnwindMaps,
}

impl Measured {
    /// Loads them and nothing else.
    pub fn load(env: &Environment) -> Result<Self> {
        let btf = Btf::from_sys_fs().context("read the kernel's type information")?;
        let mut ebpf = open(env, &btf)?;
        let mut programs = Vec::new();
        for name in PROGRAMS {
            let program: &mut RawTracePoint = ebpf
                .program_mut(name)
                .with_context(|| format!("the object has no program {name}"))?
                .try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
            let fd = program.fd()?.as_fd().try_clone_to_owned()?;
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
            programs.push(fd);
        }
        let maps = UnwindMaps::take(|name| {
            let map = ebpf.take_map(name);
            map.with_context(|| format!("the object has no map {name}"))
        })?;
        let programs = programs.try_into().ok().context("three programs")?;
        Ok(Self { programs, maps })
    }
}
