//! Runs a command with no more rights than a deployment gives it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_no_new_privs,
    set_thread_gid, set_thread_groups, set_thread_res_uid,
};

fn named(name: &str) -> Result<CapabilitySet> {
    let bare = name.strip_prefix("CAP_").unwrap_or(name);
    CapabilitySet::from_name(bare).with_context(|| format!("no capability {name}"))
}

/// Becomes `user` with these capabilities (separated by spaces) and no way to more, then the command.
pub fn exec(user: u32, capabilities: &str, command: &[String]) -> Result<()> {
    let keep = capabilities
        .split_whitespace()
        .map(named)
        .collect::<Result<CapabilitySet>>()?;
    for capability in CapabilitySet::all().difference(keep).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Newer than this kernel.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).context("reduce the bounding set"),
        }
    }
    set_keep_capabilities(true)?;
    set_thread_groups(&[])?;
    set_thread_gid(Gid::from_raw(user))?;
    let uid = Uid::from_raw(user);
    set_thread_res_uid(uid, uid, uid)?;
    clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: keep,
    };
    set_capabilities(None, sets).context("set the capabilities")?;
    for capability in keep.iter() {
        configure_capability_in_ambient_set(capability, true).context("raise an ambient capability")?;
    }
    set_no_new_privs(true)?;
    let [program, arguments @ ..] = command else {
        bail!("no command");
    };
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("start {program}"))
}
