//! Free loopback ports.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use tokio::net::TcpSocket;

use crate::error::Error;

/// As many as are taken while a server starts, and far fewer than a process may have open files.
const HELD: usize = 256;

/// The sockets that hold the ports that were given last.
static SOCKETS: Mutex<VecDeque<TcpSocket>> = Mutex::new(VecDeque::new());

/// Ports for servers to listen on. Nobody else is given them until then, neither to listen nor to connect from: whoever
/// asked whether a server is there would take another one for it. So a socket is bound to each, which does not listen
/// and, by SO_REUSEADDR, lets a server that has that, too, bind to it and listen (socket(7)).
pub fn free<const N: usize>() -> Result<[u16; N], Error> {
    let mut sockets = SOCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = [0; N];
    for port in &mut ports {
        let (socket, number) = hold().map_err(Error::io("could not find a free port"))?;
        *port = number;
        sockets.push_back(socket);
    }
    let surplus = sockets.len().saturating_sub(HELD);
    sockets.drain(..surplus);
    Ok(ports)
}

/// At all addresses, since servers may listen on any.
fn hold() -> std::io::Result<(TcpSocket, u16)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Several times as many as there are ports to choose from.
    const OTHERS: u32 = 200_000;

    #[test]
    fn a_port_is_given_to_nobody_else_before_its_server_listens() {
        let ports = free::<4>().expect("ports");
        for _ in 0..OTHERS {
            let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let port = other.local_addr().expect("an address").port();
            assert!(!ports.contains(&port), "{port} of {ports:?}");
        }
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("its server listens");
        }
    }
}
