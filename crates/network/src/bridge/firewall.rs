//! The nftables table `holdfast`: masquerade, host ports, and the guard of the host's loopback.
//!
//! The rules never change while pods come and go. A pod without host ports costs nothing here; one with host ports
//! costs one element of a map for each, in one transaction. The whole table is rebuilt, in one transaction too, when
//! somebody else flushed it.
//!
//! ```text
//! prerouting, raw    not from lo, 127.0.0.0/8 as source or destination: drop         (CVE-2020-8558)
//! prerouting, output destination is an address of the host: look (address, protocol, port) up, then (protocol, port),
//!                    and rewrite the destination to the pod's
//! postrouting        from a pod, not to the bridge: masquerade
//!                    from 127.0.0.0/8 to the bridge: masquerade
//!                    from a pod by a host port to a pod: masquerade (else the answer would take the short way back)
//! ```

use std::net::IpAddr;

use rustix::io::Errno;

use crate::Result;
use crate::config::{BridgeConfig, Subnet};
use crate::netlink::nfnl::{Base, Hook, Is, Map, Meta, REG1, Rule, Transaction, reg};
use crate::netlink::{Family, Socket};
use crate::record::is_wildcard;
use crate::types::{PortMapping, Protocol};

const TABLE: &str = "holdfast";
const IPV4: u8 = 2;
const IPV6: u8 = 10;

// nft's numbers of data types.
const ADDR4: u32 = 7;
const ADDR6: u32 = 8;
const PROTO: u32 = 12;
const SERVICE: u32 = 13;

const MAPS: [Map; 4] = [
    map("ports4", &[PROTO, SERVICE], &[ADDR4, SERVICE], 8, 8),
    map(
        "ports4_address",
        &[ADDR4, PROTO, SERVICE],
        &[ADDR4, SERVICE],
        12,
        8,
    ),
    map("ports6", &[PROTO, SERVICE], &[ADDR6, SERVICE], 8, 20),
    map(
        "ports6_address",
        &[ADDR6, PROTO, SERVICE],
        &[ADDR6, SERVICE],
        24,
        20,
    ),
];

const fn map(
    name: &'static str,
    key_types: &'static [u32],
    value_types: &'static [u32],
    key_len: u32,
    value_len: u32,
) -> Map {
    Map {
        name,
        key_types,
        value_types,
        key_len,
        value_len,
    }
}

/// Key and value of each element, by map.
type Elements = [Vec<(Vec<u8>, Vec<u8>)>; MAPS.len()];

/// One pod's host ports and the addresses they lead to.
#[derive(Debug, Clone)]
pub(crate) struct Ports {
    pub ips: Vec<IpAddr>,
    pub ports: Vec<PortMapping>,
}

#[derive(Debug)]
pub(crate) struct Firewall {
    socket: Socket,
    bridge: String,
    subnets: Vec<Subnet>,
    /// What the kernel's counter of transactions must be if there were none but ours since the table was last seen.
    generation: u32,
    table: Option<u64>,
}

impl Firewall {
    /// `subnets`: those in which pods have addresses.
    pub(crate) fn open(config: &BridgeConfig, subnets: Vec<Subnet>) -> Result<Self> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
            bridge: config.name.clone(),
            subnets,
            generation: 0,
            table: None,
        })
    }

    /// Pods have addresses in these from now on: the table must be built anew before the next pod.
    pub(crate) fn set_subnets(&mut self, subnets: Vec<Subnet>) {
        self.subnets = subnets;
        self.table = None;
    }

    /// Two short questions to the kernel, or one; the table is built if it is not there, or is not the one built last.
    pub(crate) fn ensure(&mut self, pods: impl FnOnce() -> Vec<Ports>) -> Result<()> {
        let generation = self.socket.nft_generation()?;
        if self.table.is_some() && generation == self.generation {
            return Ok(());
        }
        if self.table.is_none() || self.socket.nft_table(TABLE)? != self.table {
            return self.rebuild(&pods());
        }
        self.generation = generation;
        Ok(())
    }

    /// Replaces the whole table by what it must be.
    pub(crate) fn rebuild(&mut self, pods: &[Ports]) -> Result<()> {
        let mut change = Transaction::new(TABLE);
        change.add_table();
        change.del_table();
        change.add_table();
        for (map, id) in MAPS.iter().zip(1..) {
            change.add_map(map, id);
        }
        add_chains(&mut change);
        self.add_rules(&mut change);
        let mut all = Elements::default();
        for pod in pods {
            for (some, all) in elements(pod).into_iter().zip(&mut all) {
                all.extend(some);
            }
        }
        for (map, elements) in MAPS.iter().zip(&all) {
            change.add_elements(map, elements);
        }
        change.commit(&mut self.socket)?;
        self.table = self.socket.nft_table(TABLE)?;
        Ok(())
    }

    /// Opens a pod's host ports; UDP flows that were going elsewhere find their way to it.
    pub(crate) fn open_ports(&mut self, pod: &Ports) -> Result<()> {
        let mut change = Transaction::new(TABLE);
        for (map, elements) in MAPS.iter().zip(&elements(pod)) {
            change.add_elements(map, elements);
        }
        change.commit(&mut self.socket)?;
        self.generation = self.generation.wrapping_add(1);
        self.flush_udp(pod, false);
        Ok(())
    }

    /// Closes them. `Ok(false)`: the table is not as it should be, and wants a rebuild.
    pub(crate) fn close_ports(&mut self, pod: &Ports) -> Result<bool> {
        let mut change = Transaction::new(TABLE);
        for (map, elements) in MAPS.iter().zip(&elements(pod)) {
            change.del_elements(map, elements);
        }
        let outcome = change.commit(&mut self.socket);
        if matches!(&outcome, Err(e) if e.netlink_errno() == Some(Errno::NOENT.raw_os_error())) {
            return Ok(false);
        }
        outcome?;
        self.generation = self.generation.wrapping_add(1);
        self.flush_udp(pod, true);
        Ok(true)
    }

    /// Flows that stay would be a nuisance, not a failure: a kernel without ctnetlink still serves.
    pub(crate) fn flush_udp(&mut self, pod: &Ports, only_pod: bool) {
        let ports: Vec<u16> = pod
            .ports
            .iter()
            .filter(|p| p.protocol == Protocol::Udp)
            .map(|p| p.host_port)
            .collect();
        if ports.is_empty() {
            return;
        }
        if let Err(error) = self.socket.flush_udp(&ports, only_pod.then_some(&pod.ips)) {
            tracing::warn!(
                ?ports,
                error = error.chain(),
                "cannot flush the connection tracking of udp host ports"
            );
        }
    }

    fn add_rules(&self, change: &mut Transaction) {
        let bridge = self.bridge.as_str();
        let v4 = || {
            Rule::default()
                .meta(Meta::NfProto, REG1)
                .compare(REG1, Is::Equal, &[IPV4])
        };
        for offset in [16, 12] {
            let rule = v4()
                .interface(Meta::InName, Is::Not, "lo")
                .payload(Base::Network, offset, 1, REG1);
            change.add_rule("guard", &rule.compare(REG1, Is::Equal, &[127]).drop());
        }
        for hook in ["prerouting", "output"] {
            change.add_rule(hook, &Rule::default().local_destination().jump("hostports"));
        }
        for subnet in &self.subnets {
            let from_pods = || from(subnet);
            change.add_rule(
                "postrouting",
                &from_pods().interface(Meta::OutName, Is::Not, bridge).masquerade(),
            );
            let hairpin = from_pods().interface(Meta::OutName, Is::Equal, bridge);
            change.add_rule("postrouting", &hairpin.was_dnat().masquerade());
        }
        // Once for each family.
        let of = |v4: bool| self.subnets.iter().find(|subnet| subnet.addr().is_ipv4() == v4);
        for subnet in [of(true), of(false)].into_iter().flatten() {
            let [wildcard, by_address] = if subnet.addr().is_ipv4() { [0, 1] } else { [2, 3] };
            for rule in [
                by_address_rule(subnet, by_address),
                wildcard_rule(subnet, wildcard),
            ] {
                change.add_rule("hostports", &rule);
            }
        }
        let loopback = v4()
            .interface(Meta::OutName, Is::Equal, bridge)
            .payload(Base::Network, 12, 1, REG1);
        change.add_rule(
            "postrouting",
            &loopback.compare(REG1, Is::Equal, &[127]).masquerade(),
        );
    }
}

fn add_chains(change: &mut Transaction) {
    const PREROUTING: u32 = 0;
    const OUTPUT: u32 = 3;
    const POSTROUTING: u32 = 4;
    let hook = |kind, number, priority| {
        Some(Hook {
            kind,
            number,
            priority,
        })
    };
    change.add_chain("guard", hook("filter", PREROUTING, -300));
    change.add_chain("hostports", None);
    change.add_chain("prerouting", hook("nat", PREROUTING, -100));
    change.add_chain("output", hook("nat", OUTPUT, -100));
    change.add_chain("postrouting", hook("nat", POSTROUTING, 100));
}

fn family(subnet: &Subnet) -> u8 {
    if subnet.addr().is_ipv4() { IPV4 } else { IPV6 }
}

fn of_family(subnet: &Subnet) -> Rule {
    Rule::default()
        .meta(Meta::NfProto, REG1)
        .compare(REG1, Is::Equal, &[family(subnet)])
}

/// Matches packets from a subnet.
fn from(subnet: &Subnet) -> Rule {
    let (offset, address, bits) = match subnet.addr() {
        IpAddr::V4(ip) => (12, ip.octets().to_vec(), 32),
        IpAddr::V6(ip) => (8, ip.octets().to_vec(), 128),
    };
    let mut mask = vec![0u8; bits / 8];
    for bit in 0..usize::from(subnet.prefix()) {
        mask[bit / 8] |= 0x80 >> (bit % 8);
    }
    let len = u32::try_from(mask.len()).unwrap_or(16);
    let rule = of_family(subnet).payload(Base::Network, offset, len, REG1);
    rule.mask(REG1, &mask).compare(REG1, Is::Equal, &address)
}

fn by_address_rule(subnet: &Subnet, map: usize) -> Rule {
    let (offset, len) = if subnet.addr().is_ipv4() {
        (16, 4)
    } else {
        (24, 16)
    };
    let rule = of_family(subnet).payload(Base::Network, offset, len, reg(0));
    lookup(rule, subnet, map, len / 4)
}

fn wildcard_rule(subnet: &Subnet, map: usize) -> Rule {
    lookup(of_family(subnet), subnet, map, 0)
}

/// Completes a key whose first `at` registers are loaded, looks it up, and goes where the value says.
fn lookup(rule: Rule, subnet: &Subnet, map: usize, at: u32) -> Rule {
    let port = if subnet.addr().is_ipv4() { reg(1) } else { reg(4) };
    rule.meta(Meta::L4Proto, reg(at))
        .payload(Base::Transport, 2, 2, reg(at + 1))
        .lookup(&MAPS[map], u32::try_from(map + 1).unwrap_or(0), reg(0), REG1)
        .dnat(family(subnet), REG1, port)
}

/// What a pod's host ports are in the four maps. A mapping without an address is one element for each family the pod
/// has; every part of a key or value is padded to four bytes.
fn elements(pod: &Ports) -> Elements {
    let mut all = Elements::default();
    for mapping in &pod.ports {
        for ip in &pod.ips {
            let mut key = Vec::with_capacity(24);
            let wildcard = match mapping.host_ip {
                None => true,
                Some(host) if host.is_ipv4() != ip.is_ipv4() => continue,
                Some(host) if is_wildcard(host) => true,
                Some(host) => {
                    key.extend(octets(host));
                    false
                }
            };
            key.extend([mapping.protocol.number(), 0, 0, 0]);
            key.extend(padded(mapping.host_port));
            let mut value = octets(*ip);
            value.extend(padded(mapping.container_port));
            all[usize::from(ip.is_ipv6()) * 2 + usize::from(!wildcard)].push((key, value));
        }
    }
    all
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
