//! Sockets: whom they talk to, and whose they are.

use super::{
    state::thread,
    task::{Kernel, offset},
};
use crate::{
    offsets::MISSING,
    wire::{ConnKey, Direction, LastData, ListenKey, SLOT_KERNEL, SLOT_NONE, UnixEnd},
};

/// Bit of `sk_flags`: the peer has ended what it sends (`enum sock_flags`, include/net/sock.h).
const SOCK_DONE: u32 = 1;

/// `TCP_*` states, include/net/tcp_states.h.
pub(crate) const ESTABLISHED: i32 = 1;
pub(crate) const SYN_SENT: i32 = 2;
pub(crate) const SYN_RECV: i32 = 3;
pub(crate) const FIN_WAIT1: i32 = 4;
pub(crate) const FIN_WAIT2: i32 = 5;
pub(crate) const CLOSE: i32 = 7;
pub(crate) const CLOSE_WAIT: i32 = 8;
pub(crate) const LAST_ACK: i32 = 9;
pub(crate) const LISTEN: i32 = 10;
pub(crate) const CLOSING: i32 = 11;

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
const SOCK_STREAM: u16 = 1;
const SOCK_SEQPACKET: u16 = 5;

/// A socket whose fields are read through the helper.
#[derive(Clone, Copy)]
pub(crate) struct Sock(pub(crate) Kernel);

impl Sock {
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        matches!(self.0.read::<u16>(offset!(sk_family)), Some(AF_INET | AF_INET6))
            && self.0.read::<u16>(offset!(sk_protocol)) == Some(IPPROTO_TCP)
    }

    /// A connection over a Unix socket that has a name: not a pair, and nothing without a connection. `inode` is the number of the
    /// socket's inode.
    #[inline(always)]
    pub(crate) fn unix(self, slot: u32, inode: u32) -> Option<UnixEnd> {
        if offset!(unix_peer) == MISSING
            || self.0.read::<u16>(offset!(sk_family)) != Some(AF_UNIX)
            || !matches!(
                self.0.read::<u16>(offset!(sk_type)),
                Some(SOCK_STREAM | SOCK_SEQPACKET)
            )
            || self.state() != ESTABLISHED
        {
            return None;
        }
        let peer = self.0.deref(offset!(unix_peer))?;
        let (near, far) = (self.0.deref(offset!(unix_addr)), peer.deref(offset!(unix_addr)));
        let direction = match (near, far) {
            (None, None) => return None,
            (Some(_), None) => Direction::In,
            (None, Some(_)) => Direction::Out,
            // The connecting side has a name, too, but one of its own.
            (Some(near), Some(far)) => {
                let refs = |name: Kernel| name.read::<u32>(offset!(unix_addr_refs)).unwrap_or(0);
                if refs(near) > refs(far) {
                    Direction::In
                } else {
                    Direction::Out
                }
            }
        };
        Some(UnixEnd {
            pid: 0,
            slot,
            socket: self.0.0 as u64,
            peer: peer.0 as u64,
            direction: direction as u32,
            client: match direction {
                Direction::In => self.connected_by(),
                Direction::Out => SLOT_NONE,
            },
            inode,
            pad: 0,
        })
    }

    /// Slot of the process that connected to an accepted Unix socket.
    #[inline(always)]
    fn connected_by(self) -> u32 {
        let number = self
            .0
            .deref(offset!(sk_peer_pid))
            .and_then(|pid| pid.read(offset!(pid_number)));
        number.and_then(thread).map_or(SLOT_NONE, |thread| {
            // SAFETY: a map value.
            match unsafe { (*thread).slot } {
                SLOT_KERNEL => SLOT_NONE,
                slot => slot,
            }
        })
    }

    #[inline(always)]
    pub(crate) fn state(self) -> i32 {
        i32::from(self.0.read::<u8>(offset!(sk_state)).unwrap_or(0))
    }

    #[inline(always)]
    pub(crate) fn error(self) -> i32 {
        self.0.read::<i32>(offset!(sk_err)).unwrap_or(0)
    }

    /// Family (4 or 6) and an address; IPv4 addresses mapped into IPv6 count as IPv4.
    #[inline(always)]
    fn address(self, v4: u32, v6: u32) -> (u8, [u8; 16]) {
        let mut addr = [0u8; 16];
        if self.0.read::<u16>(offset!(sk_family)) == Some(AF_INET6) {
            let words: [u32; 4] = self.0.read(v6).unwrap_or([0; 4]);
            if words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be() {
                addr[..4].copy_from_slice(&words[3].to_ne_bytes());
                return (4, addr);
            }
            addr[..4].copy_from_slice(&words[0].to_ne_bytes());
            addr[4..8].copy_from_slice(&words[1].to_ne_bytes());
            addr[8..12].copy_from_slice(&words[2].to_ne_bytes());
            addr[12..].copy_from_slice(&words[3].to_ne_bytes());
            return (6, addr);
        }
        let word: u32 = self.0.read(v4).unwrap_or(0);
        addr[..4].copy_from_slice(&word.to_ne_bytes());
        (4, addr)
    }

    /// The key that this connection is counted under.
    #[inline(always)]
    pub(crate) fn key(self, slot: u32, direction: Direction) -> ConnKey {
        let (family, addr) = self.remote();
        let port = match direction {
            Direction::Out => self.remote_port(),
            Direction::In => 0,
        };
        ConnKey {
            slot,
            port,
            direction: direction as u8,
            family,
            addr,
        }
    }

    /// The key of the listener on this socket's local address.
    #[inline(always)]
    pub(crate) fn listen_key(self) -> ListenKey {
        let (_, addr) = self.local();
        ListenKey {
            netns: self.netns(),
            port: self.local_port(),
            pad: 0,
            addr,
        }
    }

    /// Inode of its network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        self.0
            .deref(offset!(sk_net))
            .and_then(|net| net.read(offset!(net_inum)))
            .unwrap_or(0)
    }

    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        self.0.read(offset!(sk_num)).unwrap_or(0)
    }

    #[inline(always)]
    pub(crate) fn remote_port(self) -> u16 {
        u16::from_be(self.0.read(offset!(sk_dport)).unwrap_or(0))
    }

    /// Local address.
    #[inline(always)]
    pub(crate) fn local(self) -> (u8, [u8; 16]) {
        self.address(offset!(sk_saddr), offset!(sk_saddr6))
    }

    /// Remote address.
    #[inline(always)]
    pub(crate) fn remote(self) -> (u8, [u8; 16]) {
        self.address(offset!(sk_daddr), offset!(sk_daddr6))
    }

    /// Segments with data: sent and received.
    #[inline(always)]
    pub(crate) fn data_segments(self) -> (u32, u32) {
        (
            self.word(offset!(tcp_data_segs_out)),
            self.word(offset!(tcp_data_segs_in)),
        )
    }

    /// Jiffies at which data was sent and received last.
    #[inline(always)]
    pub(crate) fn last_times(self) -> (u32, u32) {
        (
            self.word(offset!(tcp_lsndtime)),
            self.word(offset!(icsk_lrcvtime)),
        )
    }

    #[inline(always)]
    fn word(self, offset: u32) -> u32 {
        self.0.read(offset).unwrap_or(0)
    }

    /// Which way the last data went. A jiffy is far longer than an exchange on one host, so where both times are the same
    /// the sequence numbers tell: what was received after the last segment that was sent has not been acknowledged, and
    /// what was sent after the last that was received has not been acknowledged by the peer. Where everything is
    /// acknowledged, the last segment to be sent was either the data, and then its acknowledgement came later, or the
    /// acknowledgement of what was received.
    #[inline(always)]
    pub(crate) fn last_data(self, sent: u32, received: u32) -> LastData {
        if sent == 0 && received == 0 {
            return LastData::None;
        }
        if received == 0 {
            return LastData::Sent;
        }
        if sent == 0 || self.word(offset!(tcp_rcv_nxt)) != self.word(offset!(tcp_rcv_wup)) {
            return LastData::Received;
        }
        if self.word(offset!(tcp_snd_nxt)) != self.word(offset!(tcp_snd_una)) {
            return LastData::Sent;
        }
        let (at_sent, at_received) = self.last_times();
        if at_sent != at_received {
            return if at_sent.wrapping_sub(at_received) as i32 > 0 {
                LastData::Sent
            } else {
                LastData::Received
            };
        }
        let transmitted: u64 = self.0.read(offset!(tcp_wstamp_ns)).unwrap_or(0);
        let acknowledged: u64 = self.0.read(offset!(tcp_delivered_mstamp)).unwrap_or(0);
        if transmitted / 1000 >= acknowledged {
            LastData::Received
        } else {
            LastData::Sent
        }
    }

    /// Connections that wait to be accepted, and how many may.
    #[inline(always)]
    pub(crate) fn accept_queue(self) -> (u32, u32) {
        (
            self.word(offset!(sk_ack_backlog)),
            self.word(offset!(sk_max_ack_backlog)),
        )
    }

    /// What a listening socket dropped of what came to it.
    #[inline(always)]
    pub(crate) fn drops(self) -> u32 {
        self.word(offset!(sk_drops))
    }

    /// Payload bytes sent (acknowledged) and received, of a socket in this state. The kernel counts sequence numbers
    /// (RFC 4898, `tcpEStatsAppHCThruOctetsAcked` and `...Received`), and the two ends of what is sent have one each.
    #[inline(always)]
    pub(crate) fn bytes(self, direction: u8, state: i32) -> (u64, u64) {
        let acked: u64 = self.0.read(offset!(tcp_bytes_acked)).unwrap_or(0);
        let received: u64 = self.0.read(offset!(tcp_bytes_received)).unwrap_or(0);
        let flags: u64 = self.0.read(offset!(sk_flags)).unwrap_or(0);
        // The one that accepts has a socket only after its beginning was acknowledged.
        let begin = u64::from(direction == Direction::Out as u8);
        let ends = matches!(state, FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK);
        let all_acked = self.word(offset!(tcp_snd_una)) == self.word(offset!(tcp_write_seq));
        (
            acked.saturating_sub(begin + u64::from(ends && all_acked)),
            received.saturating_sub(flags >> SOCK_DONE & 1),
        )
    }

    /// Segments sent again, those of opening and closing included.
    #[inline(always)]
    pub(crate) fn retransmits(self) -> u32 {
        self.word(offset!(tcp_total_retrans))
    }
}
