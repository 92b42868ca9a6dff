//! Free loopback ports.

use std::net::{Ipv4Addr, TcpListener};

use crate::error::Error;

/// How often a server is started anew when another process took its port first.
pub(crate) const ATTEMPTS: u32 = 5;

/// Ports that are free now. Another process may take one before a server listens on it, which then has to be started
/// anew on another one; they are held together meanwhile, so that they differ.
pub fn free<const N: usize>() -> Result<[u16; N], Error> {
    let what = || Error::io("could not find a free loopback port");
    let mut listeners = Vec::with_capacity(N);
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(what())?;
        *port = listener.local_addr().map_err(what())?.port();
        listeners.push(listener);
    }
    Ok(ports)
}
