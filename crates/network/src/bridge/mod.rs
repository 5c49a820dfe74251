//! The built-in network: a bridge, a veth pair for each pod, addresses from two subnets, host ports by nftables.
//!
//! One thread owns the sockets, the addresses and the rules ([`Bridge`]); others hand it work through [`Handle`]. The
//! kernel serialises this work anyway, and a pod takes well under a millisecond of it.

pub(crate) mod firewall;
mod host;
mod pod;
mod ranges;
mod slots;
mod watch;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::config::{BridgeConfig, Subnet};
use crate::netlink::route::Veth;
use crate::netlink::{Batch, Family, Socket, failed};
use crate::record::{Backend, Book, Phase, PodRecord};
use crate::types::{Dns, Interface, NetResult, POD_INTERFACE, PodNetwork};
use crate::{Error, Result};
use firewall::{Firewall, Ports};
use host::Standing;
use ranges::Ranges;
use slots::Slots;
use watch::Vanishing;

/// Work waiting for the owner: more than all pods of a node at once.
const QUEUE: usize = 1024;
/// Host ends of veth pairs begin like this.
const LINK_PREFIX: &str = "hf";
/// Requests in one batch, bounded by the room for their answers.
const BATCH: usize = 64;

pub(crate) type Job = Box<dyn FnOnce(&mut Bridge) + Send>;

/// What a pod has from the built-in network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BridgeAttachment {
    pub ipv4: Option<Ipv4Addr>,
    pub ipv6: Option<Ipv6Addr>,
    /// Name of the host's end.
    pub link: String,
    /// The address of IPv6 is the primary one.
    #[serde(default)]
    pub v6_first: bool,
}

impl BridgeAttachment {
    /// The primary one first.
    fn ips(&self) -> Vec<IpAddr> {
        let both = [self.ipv4.map(IpAddr::V4), self.ipv6.map(IpAddr::V6)];
        let mut ips: Vec<IpAddr> = both.into_iter().flatten().collect();
        if self.v6_first {
            ips.reverse();
        }
        ips
    }

    /// The slots that its addresses are, in today's subnets.
    fn slots(&self, config: &BridgeConfig) -> BTreeSet<u32> {
        let within = |subnet: Option<Subnet>, ip: Option<IpAddr>| {
            let (subnet, ip) = (subnet?, ip?);
            let distance = match (subnet.addr(), ip) {
                (IpAddr::V4(net), IpAddr::V4(ip)) => u32::from(ip).checked_sub(u32::from(net))?,
                (IpAddr::V6(net), IpAddr::V6(ip)) => {
                    u32::try_from(u128::from(ip).checked_sub(u128::from(net))?).ok()?
                }
                _ => return None,
            };
            distance.checked_sub(FIRST).filter(|slot| *slot < config.slots())
        };
        let v4 = within(config.ipv4, self.ipv4.map(IpAddr::V4));
        let v6 = within(config.ipv6, self.ipv6.map(IpAddr::V6));
        v4.into_iter().chain(v6).collect()
    }
}

/// Slot 0 is this far into the subnet: after the network's address and the gateway.
const FIRST: u32 = 2;

/// Hands work to the owner.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    jobs: mpsc::Sender<Job>,
}

impl Handle {
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Bridge) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |bridge| {
            let _ = answer.send(job(bridge));
        });
        self.jobs.send(job).await.map_err(|_| Error::Stopped)?;
        answered.await.map_err(|_| Error::Stopped)
    }

    /// Brings only `lo` up; beside the owner, since it touches nothing of its.
    pub(crate) async fn loopback(&self, netns: OwnedFd, netlink: Option<OwnedFd>) -> Result<()> {
        tokio::task::spawn_blocking(move || pod::loopback_up(&netns, netlink))
            .await
            .map_err(|_| Error::Stopped)?
    }
}

/// The owner.
pub(crate) struct Bridge {
    /// With the subnets of today.
    config: BridgeConfig,
    ranges: Ranges,
    book: Arc<Book>,
    socket: Socket,
    firewall: Firewall,
    slots: Slots,
    /// Where the queue of free addresses stands.
    rotation: PathBuf,
    standing: Option<Standing>,
    vanishing: Vanishing,
}

impl Bridge {
    /// Opens the sockets in the caller's namespace and starts the owner's thread.
    pub(crate) fn spawn(mut config: BridgeConfig, dir: &Path, book: Arc<Book>) -> Result<Handle> {
        let vanishing = Vanishing::default();
        for record in book.all() {
            if let Backend::Bridge(attachment) = &record.backend
                && record.phase == Phase::Draining
            {
                vanishing.expect(&attachment.link, &record.sandbox_id);
            }
        }
        let ranges = Ranges::open(&dir.join("ranges"), &mut config, &addresses(&book))?;
        let rotation = dir.join("rotation");
        let mut bridge = Self {
            socket: Socket::open(Family::Route)?,
            firewall: Firewall::open(&config, all_subnets(&config, &ranges))?,
            slots: Slots::new(config.slots(), used_slots(&book, &config), rotation.clone()),
            rotation,
            standing: None,
            vanishing: vanishing.clone(),
            config,
            ranges,
            book,
        };
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        watch::start(vanishing, jobs.downgrade());
        std::thread::Builder::new()
            .name("network".into())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut bridge);
                }
            })
            .map_err(|e| failed("cannot start the network's thread", e))?;
        Ok(Handle { jobs })
    }

    /// The node's pod ranges, as the kubelet handed them down; empty: it has not.
    pub(crate) fn given(&self) -> Vec<Subnet> {
        self.ranges.given().to_vec()
    }

    /// Pods get addresses from these subnets from now on; those that there are keep theirs. `Ok(false)`: they do already.
    pub(crate) fn give(&mut self, given: &[Subnet]) -> Result<bool> {
        let known = addresses(&self.book);
        if !self.ranges.give(given, &mut self.config, &known)? {
            return Ok(false);
        }
        let used = used_slots(&self.book, &self.config);
        self.slots = Slots::new(self.config.slots(), used, self.rotation.clone());
        self.firewall.set_subnets(all_subnets(&self.config, &self.ranges));
        if self.standing.take().is_some()
            && let Err(error) = self.prepare()
        {
            // Settled as it is: the next pod makes it so, or tells why not.
            warn!(
                error = error.chain(),
                "the bridge cannot be given the node's new pod ranges yet"
            );
        }
        Ok(true)
    }

    /// Reserve, record, act; on failure everything is taken back.
    pub(crate) fn attach(&mut self, mut pod: PodNetwork) -> Result<NetResult> {
        self.prepare()?;
        let slot = self.slots.take().ok_or_else(|| Error::NoAddress {
            id: pod.sandbox_id.clone(),
            subnets: ranges::subnets(&self.config)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" and "),
            used: self.slots.used(),
        })?;
        let attachment = self.plan(&pod.sandbox_id, slot);
        let mac = pod_mac(&attachment);
        let result = describe(&attachment, mac, &self.config.name);
        let mut record = PodRecord::new(&pod, Backend::Bridge(attachment.clone()));
        record.result = Some(result.clone());
        if let Err(error) = self.book.reserve(&record) {
            self.slots.untake(slot);
            return Err(error);
        }
        let netlink = pod.netlink.take();
        let connected = self.connect(&pod, netlink, &attachment, mac, &record);
        if let Err(error) = connected {
            self.unwind(&record);
            return Err(error);
        }
        self.book.promote(&pod.sandbox_id);
        Ok(result)
    }

    fn connect(
        &mut self,
        pod: &PodNetwork,
        netlink: Option<OwnedFd>,
        attachment: &BridgeAttachment,
        mac: [u8; 6],
        record: &PodRecord,
    ) -> Result<()> {
        let mut inside = pod::enter(pod.netns.as_fd(), netlink, attachment.ipv6.is_some())?;
        self.add_pair(pod, &attachment.link, mac)?;
        let addresses: Vec<pod::Address> = attachment
            .ips()
            .into_iter()
            .filter_map(|ip| {
                let subnet = if ip.is_ipv4() {
                    self.config.ipv4
                } else {
                    self.config.ipv6
                }?;
                Some(pod::Address {
                    ip,
                    prefix: subnet.prefix(),
                    gateway: subnet.gateway(),
                })
            })
            .collect();
        pod::configure(&mut inside, &addresses)?;
        if record.ports.is_empty() {
            return Ok(());
        }
        let ports = Ports {
            ips: attachment.ips(),
            ports: record.ports.clone(),
        };
        if self.firewall.open_ports(&ports).is_err() {
            // Whatever is wrong with the table, this puts it right or says what it is.
            self.firewall.rebuild(&ports_of(&self.book))?;
            self.firewall.flush_udp(&ports, false);
        }
        Ok(())
    }

    /// The pair; if that fails, once more after the bridge or a left-over of the name has been seen to.
    fn add_pair(&mut self, pod: &PodNetwork, name: &str, mac: [u8; 6]) -> Result<()> {
        let mut last_try = false;
        loop {
            let Standing { index, mtu } = self.bridge()?;
            let mut batch = Batch::default();
            let netns = pod.netns.as_fd();
            batch.add_veth(&Veth {
                name,
                bridge: index,
                mtu,
                peer: POD_INTERFACE,
                peer_mac: mac,
                netns,
            });
            let Err(error) = self.socket.execute(batch) else {
                return Ok(());
            };
            if last_try {
                return Err(error);
            }
            last_try = true;
            let bridge = self.socket.link(&self.config.name)?.map(|l| l.index);
            if bridge != Some(index) {
                warn!(bridge = %self.config.name, "bridge was deleted by somebody; making it again");
                self.standing = None;
            } else if error.netlink_errno() == Some(Errno::EXIST.raw_os_error()) {
                let mut batch = Batch::default();
                batch.del_link(name);
                self.socket.execute(batch)?;
            } else {
                return Err(error);
            }
        }
    }

    /// Closes the host ports and leaves the interface to the death of its namespace.
    pub(crate) fn detach(&mut self, id: &str) -> Result<()> {
        let Some(record) = self.book.get(id) else {
            return Ok(());
        };
        let Backend::Bridge(attachment) = &record.backend else {
            return Ok(());
        };
        // The ports stay on record until the rules are gone: a failure here is repeated.
        if record.phase != Phase::Draining {
            self.close(&record, attachment)?;
            self.book.update(PodRecord {
                phase: Phase::Draining,
                ..(*record).clone()
            })?;
        }
        self.vanishing.expect(&attachment.link, id);
        self.release(id, false)
    }

    fn close(&mut self, record: &PodRecord, attachment: &BridgeAttachment) -> Result<()> {
        if record.ports.is_empty() {
            return Ok(());
        }
        let ports = Ports {
            ips: attachment.ips(),
            ports: record.ports.clone(),
        };
        if !self.firewall.close_ports(&ports)? {
            let rest = self
                .book
                .all()
                .into_iter()
                .filter(|r| r.sandbox_id != record.sandbox_id);
            self.firewall
                .rebuild(&rest.filter_map(|r| ports_of_one(&r)).collect::<Vec<_>>())?;
            self.firewall.flush_udp(&ports, true);
        }
        Ok(())
    }

    /// Frees the addresses of a draining pod if its interface is gone; `force` deletes the interface.
    pub(crate) fn release(&mut self, id: &str, force: bool) -> Result<()> {
        let record = self.book.get(id).filter(|r| r.phase == Phase::Draining);
        let Some(Backend::Bridge(attachment)) = record.map(|r| r.backend.clone()) else {
            return Ok(());
        };
        if force {
            warn!(sandbox = id, link = %attachment.link, "deleting the interface of a stopped pod");
            let mut batch = Batch::default();
            batch.del_link(&attachment.link);
            self.socket.execute(batch)?;
        } else if self.socket.link(&attachment.link)?.is_some() {
            return Ok(());
        }
        self.vanishing.forget(&attachment.link);
        self.book.remove(id)?;
        for slot in attachment.slots(&self.config) {
            self.slots.put(slot);
        }
        Ok(())
    }

    /// Takes back what a failed attempt did, carrying on past errors; what remains is on record as draining.
    fn unwind(&mut self, record: &PodRecord) {
        let id = record.sandbox_id.clone();
        if let Backend::Bridge(attachment) = &record.backend {
            let steps = [
                self.close(record, attachment),
                self.book.update(PodRecord {
                    phase: Phase::Draining,
                    ..record.clone()
                }),
                self.release(&id, true),
            ];
            self.vanishing.expect(&attachment.link, &id);
            for error in steps.into_iter().filter_map(Result::err) {
                warn!(sandbox = %id, error = error.chain(), "unwinding a failed network setup");
            }
            if self.book.get(&id).is_none() {
                self.vanishing.forget(&attachment.link);
            }
        }
    }

    /// Bridge and rules as the records want them; interfaces of ours that no record names are deleted and returned.
    pub(crate) fn rebuild(&mut self) -> Result<Vec<String>> {
        self.standing = None;
        let Standing { index, .. } = self.bridge()?;
        self.firewall.rebuild(&ports_of(&self.book))?;
        let mut known = BTreeSet::new();
        for record in self.book.all() {
            if let Backend::Bridge(attachment) = &record.backend {
                known.insert(attachment.link.clone());
                self.book.promote(&record.sandbox_id);
            }
        }
        let links = self.socket.links()?.into_iter();
        let ours = links.filter(|l| l.veth && l.controller == index && l.name.starts_with(LINK_PREFIX));
        let stray: Vec<String> = ours
            .map(|l| l.name)
            .filter(|name| !known.contains(name))
            .collect();
        for some in stray.chunks(BATCH) {
            let mut batch = Batch::default();
            for name in some {
                warn!(link = %name, "deleting an interface that belongs to no record");
                batch.del_link(name);
            }
            self.socket.execute(batch)?;
        }
        Ok(stray)
    }

    fn prepare(&mut self) -> Result<()> {
        self.bridge()?;
        let book = Arc::clone(&self.book);
        self.firewall.ensure(|| ports_of(&book))
    }

    fn bridge(&mut self) -> Result<Standing> {
        if let Some(standing) = self.standing {
            return Ok(standing);
        }
        let standing = host::raise(&mut self.socket, &self.config, self.ranges.earlier())?;
        self.standing = Some(standing);
        Ok(standing)
    }

    fn plan(&self, sandbox_id: &str, slot: u32) -> BridgeAttachment {
        let at = |subnet: Option<Subnet>| subnet.map(|s| s.nth(slot + FIRST));
        BridgeAttachment {
            ipv4: at(self.config.ipv4).and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None }),
            ipv6: at(self.config.ipv6).and_then(|ip| if let IpAddr::V6(ip) = ip { Some(ip) } else { None }),
            link: format!("{LINK_PREFIX}{}", sandbox_id.get(..13).unwrap_or(sandbox_id)),
            v6_first: self.ranges.v6_first(),
        }
    }
}

/// Follows from the address, so that whoever remembers the address's neighbour entry remembers the right one.
fn pod_mac(attachment: &BridgeAttachment) -> [u8; 6] {
    let (kind, low) = match (attachment.ipv4, attachment.ipv6) {
        (Some(ip), _) => (0x58, ip.octets()),
        (None, Some(ip)) => {
            // All of it counts: the bridge may have pods of two subnets.
            let bits = u128::from(ip);
            let fold = (bits >> 96) ^ (bits >> 64) ^ (bits >> 32) ^ bits;
            (0x59, ((fold & u128::from(u32::MAX)) as u32).to_be_bytes())
        }
        (None, None) => (0x59, [0; 4]),
    };
    [0x0a, kind, low[0], low[1], low[2], low[3]]
}

/// Of all pods on record.
fn addresses(book: &Book) -> Vec<IpAddr> {
    let mut out = Vec::new();
    for record in book.all() {
        if let Backend::Bridge(attachment) = &record.backend {
            out.extend(attachment.ips());
        }
    }
    out
}

fn used_slots(book: &Book, config: &BridgeConfig) -> BTreeSet<u32> {
    let mut used = BTreeSet::new();
    for record in book.all() {
        if let Backend::Bridge(attachment) = &record.backend {
            used.extend(attachment.slots(config));
        }
    }
    used
}

/// Of today, and those that pods still live in.
fn all_subnets(config: &BridgeConfig, ranges: &Ranges) -> Vec<Subnet> {
    let mut all = ranges::subnets(config);
    all.extend(ranges.earlier());
    all
}

fn describe(attachment: &BridgeAttachment, mac: [u8; 6], bridge: &str) -> NetResult {
    let [a, b, c, d, e, f] = mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let host = |name: &str| Interface {
        name: name.into(),
        mac: String::new(),
        sandbox: None,
    };
    NetResult {
        ips: attachment.ips(),
        interfaces: vec![
            Interface {
                name: POD_INTERFACE.into(),
                mac,
                sandbox: Some(String::new()),
            },
            host(&attachment.link),
            host(bridge),
        ],
        dns: Dns::default(),
        network: "bridge".into(),
        raw: None,
    }
}

fn ports_of(book: &Book) -> Vec<Ports> {
    book.all()
        .iter()
        .filter_map(|record| ports_of_one(record))
        .collect()
}

fn ports_of_one(record: &PodRecord) -> Option<Ports> {
    match &record.backend {
        Backend::Bridge(attachment) if !record.ports.is_empty() => Some(Ports {
            ips: attachment.ips(),
            ports: record.ports.clone(),
        }),
        _ => None,
    }
}
