//! Open connections as the kernel side writes them when it is asked for a sample.

use std::net::SocketAddr;

use agent_ebpf::wire::{CONN_ADOPTED, ConnSample, Direction, LastData};
use anyhow::Result;

use super::keys::address;
use super::model::{Peer, SlotId};
use crate::load::Loaded;

/// An open connection, seen from one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Names the connection, together with `since_ns`.
    pub id: u64,
    /// When it was established, or found, in nanoseconds of the monotonic clock.
    pub since_ns: u64,
    /// Whose.
    pub slot: SlotId,
    /// Inode of its network namespace.
    pub netns: u32,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Who opened it.
    pub direction: Direction,
    /// Older than the agent.
    pub adopted: bool,
    /// The last data went from the client to the server.
    pub busy: bool,
    /// Jiffies since data went either way.
    pub quiet: u32,
    /// Jiffies when it was looked at, the lower half.
    pub jiffies: u32,
}

impl Socket {
    /// The other end without its ephemeral port.
    #[must_use]
    pub fn peer(&self) -> Peer {
        match self.direction {
            Direction::Out => Peer::Server(self.remote.ip(), self.remote.port()),
            Direction::In => Peer::Client(self.remote.ip()),
        }
    }
}

/// Reads samples.
#[derive(Default)]
pub struct Sockets {
    /// Records that made no sense.
    pub malformed: u64,
}

impl Sockets {
    /// Hands out every open connection now, one after the other, and says how many there are.
    pub fn read(&mut self, loaded: &mut Loaded, mut each: impl FnMut(&Socket)) -> Result<usize> {
        let (mut count, malformed) = (0, &mut self.malformed);
        loaded.connections(|samples| {
            for sample in samples {
                match socket(sample) {
                    Some(socket) => {
                        count += 1;
                        each(&socket);
                    }
                    None => *malformed += 1,
                }
            }
        })?;
        Ok(count)
    }
}

fn socket(sample: &ConnSample) -> Option<Socket> {
    let direction = Direction::from_index(sample.direction.into())?;
    let last = LastData::from_index(sample.last.into())?;
    Some(Socket {
        id: sample.socket,
        since_ns: sample.since,
        slot: SlotId(sample.slot),
        netns: sample.netns,
        local: SocketAddr::new(address(sample.family, &sample.local)?, sample.local_port),
        remote: SocketAddr::new(address(sample.family, &sample.remote)?, sample.remote_port),
        direction,
        adopted: u32::from(sample.flags) & CONN_ADOPTED != 0,
        busy: match direction {
            Direction::Out => last == LastData::Sent,
            Direction::In => last == LastData::Received,
        },
        quiet: sample.quiet,
        jiffies: sample.jiffies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(direction: u8, last: LastData) -> ConnSample {
        let mut sample = ConnSample {
            socket: 0xffff_8880_0000_1000,
            since: 5,
            slot: 7,
            netns: 4_026_531_840,
            local: [0; 16],
            remote: [0; 16],
            local_port: 40_000,
            remote_port: 5432,
            family: 4,
            direction,
            flags: 0,
            last: last as u8,
            quiet: 3,
            jiffies: 9,
        };
        sample.local[..4].copy_from_slice(&[127, 0, 0, 1]);
        sample.remote[..4].copy_from_slice(&[127, 0, 0, 2]);
        sample
    }

    #[test]
    fn a_client_waits_after_sending_and_a_server_works_after_receiving() {
        let busy = |direction: Direction, last| socket(&record(direction as u8, last)).unwrap().busy;
        assert!(busy(Direction::Out, LastData::Sent));
        assert!(!busy(Direction::Out, LastData::Received));
        assert!(!busy(Direction::In, LastData::Sent));
        assert!(busy(Direction::In, LastData::Received));
        assert!(!busy(Direction::Out, LastData::None));
        let socket = socket(&record(Direction::Out as u8, LastData::Sent)).unwrap();
        assert_eq!(socket.peer(), Peer::Server("127.0.0.2".parse().unwrap(), 5432));
    }

    #[test]
    fn a_record_that_makes_no_sense_is_none() {
        let good = record(0, LastData::None);
        assert!(socket(&good).is_some());
        assert_eq!(socket(&record(9, LastData::None)), None);
        assert_eq!(socket(&ConnSample { last: 9, ..good }), None);
        assert_eq!(socket(&ConnSample { family: 5, ..good }), None);
    }
}
