//! Sockets: whom they talk to, and whose they are.

use super::task::{Kernel, offset};
use crate::wire::{ConnKey, Direction, ListenKey};

/// `TCP_*` states, include/net/tcp_states.h.
pub(crate) const ESTABLISHED: i32 = 1;
pub(crate) const SYN_SENT: i32 = 2;
pub(crate) const SYN_RECV: i32 = 3;
pub(crate) const FIN_WAIT1: i32 = 4;
pub(crate) const CLOSE: i32 = 7;
pub(crate) const CLOSE_WAIT: i32 = 8;
pub(crate) const LAST_ACK: i32 = 9;
pub(crate) const LISTEN: i32 = 10;
pub(crate) const CLOSING: i32 = 11;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;

/// A socket whose fields are read through the helper.
#[derive(Clone, Copy)]
pub(crate) struct Sock(pub(crate) Kernel);

impl Sock {
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        matches!(self.0.read::<u16>(offset!(sk_family)), Some(AF_INET | AF_INET6))
            && self.0.read::<u16>(offset!(sk_protocol)) == Some(IPPROTO_TCP)
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
        let (family, addr) = self.address(offset!(sk_daddr), offset!(sk_daddr6));
        let port = match direction {
            Direction::Out => u16::from_be(self.0.read(offset!(sk_dport)).unwrap_or(0)),
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
        let (_, addr) = self.address(offset!(sk_saddr), offset!(sk_saddr6));
        let netns = self
            .0
            .deref(offset!(sk_net))
            .and_then(|net| net.read(offset!(net_inum)))
            .unwrap_or(0);
        ListenKey {
            netns,
            port: self.0.read(offset!(sk_num)).unwrap_or(0),
            pad: 0,
            addr,
        }
    }

    /// Payload bytes sent (acknowledged) and received.
    #[inline(always)]
    pub(crate) fn bytes(self) -> (u64, u64) {
        (
            self.0.read(offset!(tcp_bytes_acked)).unwrap_or(0),
            self.0.read(offset!(tcp_bytes_received)).unwrap_or(0),
        )
    }
}
