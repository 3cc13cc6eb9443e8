//! The largest packet that passes a tunnel and comes back.

use std::{
    io::{self, ErrorKind, Read as _},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    time::{Duration, Instant},
};

use nave_domain::mesh::{MTU_MAX, MTU_MIN};
use nix::sys::socket::{setsockopt, sockopt::Ipv6DontFrag};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, Namespace, namespace::within};

/// How long an echo may take, and how often a size is tried: one lost packet is no
/// black hole. The first size has to wait for a handshake.
const ECHO_MAX: Duration = Duration::from_secs(1);
const TRIES: u16 = 3;
const TRIES_FIRST: u16 = 8;

const IPV6_HEADER: usize = 40;
const ICMPV6_HEADER: usize = 8;
const ECHO_REQUEST: u8 = 128;
const ECHO_REPLY: u8 = 129;

/// The largest size from `low` to `high` that fits, if any does, when everything
/// smaller than what fits fits too. The largest is tried before the search begins:
/// mostly it fits.
pub fn search(low: u16, high: u16, mut fits: impl FnMut(u16) -> bool) -> Option<u16> {
    if !fits(low) {
        return None;
    }
    if low == high || fits(high) {
        return Some(high);
    }
    let (mut fitting, mut failing) = (low, high);
    while failing - fitting > 1 {
        let middle = fitting + (failing - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            failing = middle;
        }
    }
    Some(fitting)
}

/// The largest unfragmented ICMPv6 echo that `to` returns to `from`; `None` where not
/// even the smallest comes back. The interface's MTU must be [`MTU_MAX`] meanwhile.
///
/// # Errors
/// When no socket for it can be made, which needs root.
pub fn probe(namespace: Option<&Namespace>, from: Ipv6Addr, to: Ipv6Addr) -> Result<Option<u16>, Error> {
    let attempt = || format!("probe the MTU from {from} to {to}");
    let mut socket =
        within(namespace, || open(from))?.map_err(|source| Error::Io { attempt: attempt(), source })?;
    let mut sequence = 0_u16;
    Ok(search(MTU_MIN, MTU_MAX, |size| {
        let tries = if size == MTU_MIN { TRIES_FIRST } else { TRIES };
        (0..tries).any(|_| {
            sequence = sequence.wrapping_add(1);
            echo(&mut socket, to, sequence, usize::from(size)).unwrap_or(false)
        })
    }))
}

fn open(from: Ipv6Addr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    setsockopt(&socket, Ipv6DontFrag, &true)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    Ok(socket)
}

/// Whether an echo of `size` bytes, IPv6 header included, comes back in time.
fn echo(socket: &mut Socket, to: Ipv6Addr, sequence: u16, size: usize) -> io::Result<bool> {
    let identity = u16::try_from(std::process::id() & 0xffff).unwrap_or(0).to_be_bytes();
    let mut message = vec![0x5a; size - IPV6_HEADER];
    message[..4].copy_from_slice(&[ECHO_REQUEST, 0, 0, 0]);
    message[4..6].copy_from_slice(&identity);
    message[6..ICMPV6_HEADER].copy_from_slice(&sequence.to_be_bytes());
    let until = Instant::now() + ECHO_MAX;
    socket.send_to(&message, &SocketAddrV6::new(to, 0, 0, 0).into())?;
    message[0] = ECHO_REPLY;
    let mut received = [0; 2048];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut received) {
            // The checksum, at 2 and 3, is the kernel's.
            Ok(length) if received[..length].get(4..) == Some(&message[4..]) && received[0] == ECHO_REPLY => {
                return Ok(true);
            }
            Ok(_) => {}
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_search_finds_the_largest_size_that_passes(limit in MTU_MIN..=1600) {
            prop_assert_eq!(search(MTU_MIN, MTU_MAX, |size| size <= limit), Some(limit.min(MTU_MAX)));
        }

        #[test]
        fn the_search_takes_few_tries(limit in MTU_MIN..=MTU_MAX) {
            let mut tries = 0;
            search(MTU_MIN, MTU_MAX, |size| { tries += 1; size <= limit });
            prop_assert!(tries <= 10, "{} tries", tries);
        }
    }

    #[test]
    fn where_nothing_passes_nothing_is_found() {
        assert_eq!(search(MTU_MIN, MTU_MAX, |_| false), None);
        assert_eq!(search(MTU_MIN, MTU_MIN, |_| true), Some(MTU_MIN));
    }
}
