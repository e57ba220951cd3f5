//! Gives slots back: those that closed, one by one; all of them when everything was detached.

use std::collections::BTreeMap;

use agent_ebpf::wire::{
    Conn, ConnKey, ConnStats, DiskKey, DiskRequest, DiskStats, Hist, ListenKey, ListenSock, Listener,
    MAX_SLOTS, OpenerFd, OpenerKey, SLOT_FIRST, Slot, SyscallKey, Thread, UnixAccepted, UnixPair, WaitHists,
};
use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData, Queue};

use super::{Harvest, array, unix};
use crate::decode::model::SlotId;
use crate::load::{Loaded, Plain};

impl Harvest {
    /// Empties closed slots and offers their places again, under the next generation of their ids.
    pub(super) fn give_back(&mut self, loaded: &mut Loaded) -> Result<()> {
        if self.closed.is_empty() {
            return Ok(());
        }
        let closed = std::mem::take(&mut self.closed);
        loaded.forget::<SyscallKey, u64>("SYSCALL_COUNTS", |key| closed.contains(&key.slot))?;
        loaded.forget::<SyscallKey, Hist>("SYSCALL_HISTS", |key| closed.contains(&key.slot))?;
        loaded.forget::<DiskKey, DiskStats>("DISK_STATS", |key| closed.contains(&key.slot))?;
        loaded.forget::<ConnKey, ConnStats>("CONN_STATS", |key| closed.contains(&key.slot))?;
        loaded.forget::<UnixPair, UnixAccepted>("UNIX_ACCEPTED", |pair| unix::of(&closed, pair))?;
        self.brief.forget(&closed);
        {
            let mut hists = array::<WaitHists>(loaded, "WAIT_HISTS")?;
            for id in &closed {
                hists.set(id & (MAX_SLOTS - 1), Plain(WaitHists::default()), 0)?;
            }
        }
        {
            let mut slots = array::<Slot>(loaded, "SLOTS")?;
            for id in &closed {
                slots.set(id & (MAX_SLOTS - 1), Plain(Slot::EMPTY), 0)?;
            }
        }
        let mut free = free_slots(loaded)?;
        for id in closed {
            self.slots.remove(&id);
            free.push(id.wrapping_add(MAX_SLOTS), 0)?;
        }
        Ok(())
    }

    /// Forgets everything that the kernel side holds and returns the slots that were in use. To be called while
    /// nothing is attached: threads that end or begin meanwhile are not seen, so what is known of them is no longer
    /// true.
    pub fn reset(&mut self, loaded: &mut Loaded) -> Result<Vec<SlotId>> {
        loaded.forget::<SyscallKey, u64>("SYSCALL_COUNTS", |_| true)?;
        loaded.forget::<SyscallKey, Hist>("SYSCALL_HISTS", |_| true)?;
        loaded.forget::<DiskKey, DiskStats>("DISK_STATS", |_| true)?;
        loaded.forget::<u64, DiskRequest>("DISK_REQUESTS", |_| true)?;
        loaded.forget::<ConnKey, ConnStats>("CONN_STATS", |_| true)?;
        loaded.forget::<u64, Conn>("CONNS", |_| true)?;
        loaded.forget::<ListenKey, Listener>("CONN_LISTENERS", |_| true)?;
        loaded.forget::<u64, ListenSock>("LISTEN_SOCKS", |_| true)?;
        loaded.forget::<OpenerKey, OpenerFd>("OPENER_FDS", |_| true)?;
        loaded.forget::<UnixPair, UnixAccepted>("UNIX_ACCEPTED", |_| true)?;
        loaded.forget::<u32, Thread>("THREADS_HASH", |_| true)?;
        empty(&mut array::<Thread>(loaded, "THREADS")?, Thread::default())?;
        empty(
            &mut array::<WaitHists>(loaded, "WAIT_HISTS")?,
            WaitHists::default(),
        )?;
        let mut ids: BTreeMap<u32, u32> = BTreeMap::new();
        {
            let mut slots = array::<Slot>(loaded, "SLOTS")?;
            for index in SLOT_FIRST..MAX_SLOTS {
                // An index that was never used has no id yet.
                let used = slots.get(&index, 0)?.0.id.max(index);
                ids.insert(index, used.wrapping_add(MAX_SLOTS));
            }
            empty(&mut slots, Slot::EMPTY)?;
        }
        let mut free = free_slots(loaded)?;
        while let Ok(id) = free.pop(0) {
            ids.insert(id & (MAX_SLOTS - 1), id);
        }
        for id in ids.values() {
            free.push(*id, 0)?;
        }
        let open = std::mem::take(self);
        Ok(open
            .slots
            .into_keys()
            .filter(|id| *id >= SLOT_FIRST)
            .map(SlotId)
            .collect())
    }
}

fn free_slots(loaded: &mut Loaded) -> Result<Queue<&mut MapData, u32>> {
    let map = loaded.maps().map_mut("FREE_SLOTS");
    Ok(Queue::try_from(map.context("the object has no map FREE_SLOTS")?)?)
}

fn empty<T: Copy>(map: &mut Array<&mut MapData, Plain<T>>, value: T) -> Result<()> {
    for index in 0..map.len() {
        map.set(index, Plain(value), 0)?;
    }
    Ok(())
}
