//! Which addresses a wrapping token may be sent to: only such as a pod can have.

use ipnet::IpNet;
use std::net::IpAddr;

/// The networks that pods live in.
#[derive(Clone, Debug, Default)]
pub struct PodNetworks(Vec<IpNet>);

impl PodNetworks {
    /// The networks that the operator was told of. With none, every address will do that is not reserved for
    /// something that no pod is: loopback, link-local (where most clouds keep their metadata services, though not all), multicast,
    /// unspecified or broadcast.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether a pod can have the address.
    pub fn contain(&self, address: IpAddr) -> bool {
        if self.0.is_empty() { can_be_a_pod(address) } else { self.0.iter().any(|network| network.contains(&address)) }
    }
}

fn can_be_a_pod(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0)
        }
        // An IPv4 address in IPv6's clothes is judged as what it is.
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => can_be_a_pod(IpAddr::V4(v4)),
            None => !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn without_a_setting_only_addresses_that_no_pod_has_are_refused() {
        let networks = PodNetworks::default();
        for pod in ["10.1.0.7", "192.168.4.4", "100.64.0.1", "203.0.113.9", "fd00::7", "2001:db8::1"] {
            assert!(networks.contain(ip(pod)), "{pod}");
        }
        for other in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(!networks.contain(ip(other)), "{other}");
        }
    }

    #[test]
    fn a_setting_names_all_that_there_are() {
        let networks = PodNetworks::new(vec!["127.0.0.0/8".parse().expect("a network")]);
        assert!(networks.contain(ip("127.3.0.1")));
        assert!(!networks.contain(ip("10.1.0.7")));
    }
}
