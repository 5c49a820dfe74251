//! Encoding of nfnetlink: attributes, atomic batches, and the nftables objects and expressions that are used here.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Integers in attributes are big-endian; values in registers are
//! as the packet or the kernel has them.

use rustix::io::Errno;

use super::{Attributes, Batch, NLM_F_APPEND, NLM_F_CREATE, Socket};
use crate::Result;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM << 8;
const DELTABLE: u16 = NEWTABLE | 2;
const NEWCHAIN: u16 = NEWTABLE | 3;
const NEWRULE: u16 = NEWTABLE | 6;
const NEWSET: u16 = NEWTABLE | 9;
const NEWSETELEM: u16 = NEWTABLE | 12;
const DELSETELEM: u16 = NEWTABLE | 14;
const GETGEN: u16 = NEWTABLE | 16;
const GETTABLE: u16 = NEWTABLE | 1;

/// `NFPROTO_INET`: one table for IPv4 and IPv6.
const INET: u8 = 1;
const NESTED: u16 = 0x8000;
/// Bytes of elements in one message: an attribute's length has 16 bits.
const ELEMENTS: usize = 48 << 10;

/// First 16-byte register; as 4-byte registers it is [`reg`]`(0)` to `reg(3)`.
pub(crate) const REG1: u32 = 1;

/// The `n`th 4-byte register.
pub(crate) const fn reg(n: u32) -> u32 {
    8 + n
}

/// Appends one attribute.
pub(crate) fn attr(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    nest_as(out, kind, |out| out.extend_from_slice(value));
}

pub(crate) fn attr_u32(out: &mut Vec<u8>, kind: u16, value: u32) {
    attr(out, kind, &value.to_be_bytes());
}

fn attr_str(out: &mut Vec<u8>, kind: u16, value: &str) {
    nest_as(out, kind, |out| {
        out.extend_from_slice(value.as_bytes());
        out.push(0);
    });
}

/// Appends an attribute that holds attributes.
pub(crate) fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    nest_as(out, kind | NESTED, fill);
}

fn nest_as(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let len = out.len() - at;
    out[at..at + 2].copy_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_ne_bytes());
    out[at + 2..at + 4].copy_from_slice(&kind.to_ne_bytes());
    out.resize(at + len.next_multiple_of(4), 0);
}

/// The header behind the netlink header: family, version 0, resource.
pub(crate) fn head(out: &mut Vec<u8>, family: u8, resource: u16) {
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
}

/// One transaction on one `inet` table: all of it happens, or nothing.
#[derive(Debug)]
pub(crate) struct Transaction {
    batch: Batch,
    table: &'static str,
}

/// One map of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Map {
    pub name: &'static str,
    /// nft's numbers of the types that key and value are made of, for `nft list`.
    pub key_types: &'static [u32],
    pub value_types: &'static [u32],
    pub key_len: u32,
    pub value_len: u32,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

impl Transaction {
    pub(crate) fn new(table: &'static str) -> Self {
        let mut batch = Batch::default();
        batch.push(BATCH_BEGIN, 0, "cannot begin an nftables transaction", |out| {
            head(out, 0, SUBSYSTEM);
        });
        Self { batch, table }
    }

    fn message(&mut self, kind: u16, flags: u16, what: String, fill: impl FnOnce(&mut Vec<u8>)) {
        self.batch.push(kind, flags, what, |out| {
            head(out, INET, 0);
            fill(out);
        });
    }

    pub(crate) fn add_table(&mut self) {
        let table = self.table;
        self.message(
            NEWTABLE,
            NLM_F_CREATE,
            format!("cannot create nftables table {table}"),
            |out| {
                attr_str(out, 1, table);
                attr_u32(out, 2, 0);
            },
        );
    }

    pub(crate) fn del_table(&mut self) {
        let table = self.table;
        self.message(
            DELTABLE,
            0,
            format!("cannot delete nftables table {table}"),
            |out| attr_str(out, 1, table),
        );
    }

    pub(crate) fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let table = self.table;
        self.message(
            NEWCHAIN,
            NLM_F_CREATE,
            format!("cannot create nftables chain {name}"),
            |out| {
                attr_str(out, 1, table);
                attr_str(out, 3, name);
                if let Some(hook) = hook {
                    nest(out, 4, |out| {
                        attr_u32(out, 1, hook.number);
                        attr_u32(out, 2, hook.priority as u32);
                    });
                    attr_u32(out, 5, ACCEPT as u32);
                    attr_str(out, 7, hook.kind);
                }
            },
        );
    }

    pub(crate) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let table = self.table;
        self.message(
            NEWRULE,
            NLM_F_CREATE | NLM_F_APPEND,
            format!("cannot add a rule to nftables chain {chain}"),
            |out| {
                attr_str(out, 1, table);
                attr_str(out, 2, chain);
                nest(out, 4, |out| out.extend_from_slice(&rule.0));
            },
        );
    }

    pub(crate) fn add_map(&mut self, map: &Map, id: u32) {
        const IS_MAP: u32 = 8;
        let concat = |types: &[u32]| types.iter().fold(0, |all, t| all << 6 | t);
        let table = self.table;
        self.message(
            NEWSET,
            NLM_F_CREATE,
            format!("cannot create nftables map {}", map.name),
            |out| {
                attr_str(out, 1, table);
                attr_str(out, 2, map.name);
                attr_u32(out, 3, IS_MAP);
                attr_u32(out, 4, concat(map.key_types));
                attr_u32(out, 5, map.key_len);
                attr_u32(out, 6, concat(map.value_types));
                attr_u32(out, 7, map.value_len);
                attr_u32(out, 10, id);
            },
        );
    }

    /// Adds elements (key and value) to a map.
    pub(crate) fn add_elements(&mut self, map: &Map, elements: &[(Vec<u8>, Vec<u8>)]) {
        self.elements(NEWSETELEM, map, elements, "cannot add host ports to");
    }

    /// Removes elements; a missing one fails the whole transaction with `ENOENT`.
    pub(crate) fn del_elements(&mut self, map: &Map, elements: &[(Vec<u8>, Vec<u8>)]) {
        self.elements(DELSETELEM, map, elements, "cannot remove host ports from");
    }

    fn elements(&mut self, kind: u16, map: &Map, elements: &[(Vec<u8>, Vec<u8>)], what: &str) {
        let table = self.table;
        let each = map.key_len as usize + map.value_len as usize + 32;
        for some in elements.chunks(ELEMENTS / each) {
            let flags = if kind == NEWSETELEM { NLM_F_CREATE } else { 0 };
            self.message(kind, flags, format!("{what} nftables map {}", map.name), |out| {
                attr_str(out, 1, table);
                attr_str(out, 2, map.name);
                nest(out, 3, |out| {
                    for (key, value) in some {
                        nest(out, 1, |out| {
                            nest(out, 1, |out| attr(out, 1, key));
                            if kind == NEWSETELEM {
                                nest(out, 2, |out| attr(out, 1, value));
                            }
                        });
                    }
                });
            });
        }
    }

    /// Nothing but the beginning.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch.len() == 1
    }

    /// Sends it; `Ok` means that the kernel has committed all of it.
    pub(crate) fn commit(mut self, socket: &mut Socket) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        // One acknowledgement, of the last request: thousands would not fit the socket. Failures are always answered.
        self.batch.ask_ack();
        self.batch
            .push(BATCH_END, 0, "cannot commit an nftables transaction", |out| {
                head(out, 0, SUBSYSTEM);
            });
        socket.execute(self.batch)
    }
}

const ACCEPT: i32 = 1;
const DROP: i32 = 0;
const JUMP: i32 = -3;

/// What a comparison asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Is {
    Equal = 0,
    Not = 1,
}

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Base {
    Network = 1,
    Transport = 2,
}

/// Keys of `meta`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Meta {
    InName = 6,
    OutName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// A rule as its list of expressions.
#[derive(Debug, Default)]
pub(crate) struct Rule(Vec<u8>);

impl Rule {
    fn expression(mut self, name: &str, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        nest(&mut self.0, 1, |out| {
            attr_str(out, 1, name);
            nest(out, 2, fill);
        });
        self
    }

    pub(crate) fn meta(self, key: Meta, register: u32) -> Self {
        self.expression("meta", |out| {
            attr_u32(out, 2, key as u32);
            attr_u32(out, 1, register);
        })
    }

    pub(crate) fn payload(self, base: Base, offset: u32, len: u32, register: u32) -> Self {
        self.expression("payload", |out| {
            attr_u32(out, 1, register);
            attr_u32(out, 2, base as u32);
            attr_u32(out, 3, offset);
            attr_u32(out, 4, len);
        })
    }

    pub(crate) fn mask(self, register: u32, mask: &[u8]) -> Self {
        self.expression("bitwise", |out| {
            attr_u32(out, 1, register);
            attr_u32(out, 2, register);
            attr_u32(out, 3, u32::try_from(mask.len()).unwrap_or(0));
            nest(out, 4, |out| attr(out, 1, mask));
            nest(out, 5, |out| attr(out, 1, &vec![0; mask.len()]));
        })
    }

    pub(crate) fn compare(self, register: u32, is: Is, value: &[u8]) -> Self {
        self.expression("cmp", |out| {
            attr_u32(out, 1, register);
            attr_u32(out, 2, is as u32);
            nest(out, 3, |out| attr(out, 1, value));
        })
    }

    /// Matches an interface by its whole name.
    pub(crate) fn interface(self, key: Meta, is: Is, name: &str) -> Self {
        let mut padded = [0u8; 16];
        let len = name.len().min(15);
        padded[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.meta(key, REG1).compare(REG1, is, &padded)
    }

    /// Matches packets whose destination is an address of the host.
    pub(crate) fn local_destination(self) -> Self {
        const DADDR: u32 = 1 << 1;
        const ADDRTYPE: u32 = 3;
        const LOCAL: u32 = 2;
        self.expression("fib", |out| {
            attr_u32(out, 1, REG1);
            attr_u32(out, 2, ADDRTYPE);
            attr_u32(out, 3, DADDR);
        })
        .compare(REG1, Is::Equal, &LOCAL.to_ne_bytes())
    }

    /// Matches connections whose destination was rewritten.
    pub(crate) fn was_dnat(self) -> Self {
        const STATUS: u32 = 2;
        const DNAT: u32 = 1 << 5;
        self.expression("ct", |out| {
            attr_u32(out, 2, STATUS);
            attr_u32(out, 1, REG1);
        })
        .mask(REG1, &DNAT.to_ne_bytes())
        .compare(REG1, Is::Not, &[0; 4])
    }

    pub(crate) fn lookup(self, map: &Map, id: u32, key: u32, value: u32) -> Self {
        self.expression("lookup", |out| {
            attr_str(out, 1, map.name);
            attr_u32(out, 2, key);
            attr_u32(out, 3, value);
            attr_u32(out, 4, id);
        })
    }

    /// Rewrites the destination; `family` is `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub(crate) fn dnat(self, family: u8, address: u32, port: u32) -> Self {
        self.expression("nat", |out| {
            attr_u32(out, 1, 1);
            attr_u32(out, 2, u32::from(family));
            attr_u32(out, 3, address);
            attr_u32(out, 5, port);
        })
    }

    /// Rewrites the source to the outgoing interface's address, with a random port: sequential ones collide when two
    /// CPUs pick one at the same time, and then a packet is lost.
    pub(crate) fn masquerade(self) -> Self {
        const RANDOM_FULLY: u32 = 1 << 4;
        self.expression("masq", |out| attr_u32(out, 1, RANDOM_FULLY))
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(DROP, None)
    }

    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(JUMP, Some(chain))
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |out| {
            attr_u32(out, 1, 0);
            nest(out, 2, |out| {
                nest(out, 2, |out| {
                    attr_u32(out, 1, code as u32);
                    if let Some(chain) = chain {
                        attr_str(out, 2, chain);
                    }
                });
            });
        })
    }
}

impl Socket {
    /// The number that changes with every nftables transaction of anybody.
    pub(crate) fn nft_generation(&mut self) -> Result<u32> {
        let mut batch = Batch::default();
        batch.push(GETGEN, 0, "cannot read the generation of nftables", |out| {
            head(out, 0, 0);
        });
        self.get(batch, |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            Attributes(attributes)
                .find(|(kind, _)| *kind == 1)
                .and_then(|(_, value)| value.try_into().ok().map(u32::from_be_bytes))
                .unwrap_or(0)
        })
    }

    /// The handle of a table, which changes when it is deleted and made again.
    pub(crate) fn nft_table(&mut self, table: &str) -> Result<Option<u64>> {
        let mut batch = Batch::default();
        batch.push(
            GETTABLE,
            0,
            format!("cannot look nftables table {table} up"),
            |out| {
                head(out, INET, 0);
                attr_str(out, 1, table);
            },
        );
        let found = self.get(batch, |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            Attributes(attributes)
                .find(|(kind, _)| *kind == 4)
                .and_then(|(_, value)| value.try_into().ok().map(u64::from_be_bytes))
        });
        match found {
            Err(error) if error.netlink_errno() == Some(Errno::NOENT.raw_os_error()) => Ok(None),
            other => other,
        }
    }
}
