//! Which subnets pods get addresses from: the configured ones, until the kubelet hands down the node's.
//!
//! Kept in a record (`<root>/network/ranges`), so that a restart changes nothing. Subnets that were in use before are
//! remembered as long as a pod has an address in one: the bridge keeps their gateways, and the rules their addresses.

use std::net::IpAddr;
use std::path::Path;

use holdfast_store::{Record, Records};
use serde::{Deserialize, Serialize};
use tracing::{error, info};

use crate::config::{BridgeConfig, Subnet};
use crate::{Error, Result};

const KEY: &str = "node";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Handed down by the kubelet, the primary one first; empty: never.
    given: Vec<Subnet>,
    /// Those of now, whoever set them.
    current: Vec<Subnet>,
    earlier: Vec<Subnet>,
}

impl Record for Kept {}

#[derive(Debug)]
pub(crate) struct Ranges {
    files: Records<Kept>,
    kept: Kept,
}

impl Ranges {
    /// Reads the record, and puts the subnets of today into `config`. `addresses`: of all pods on record.
    pub(crate) fn open(dir: &Path, config: &mut BridgeConfig, addresses: &[IpAddr]) -> Result<Self> {
        let failed = |source: holdfast_store::Error| Error::Record {
            id: dir.display().to_string(),
            source: Box::new(source),
        };
        let opened = Records::<Kept>::open(dir).map_err(failed)?;
        for bad in &opened.quarantined {
            error!(
                reason = %bad.reason, moved_to = %bad.moved_to.display(),
                "the record of the node's pod ranges is damaged: the configured ones are used until the kubelet hands them down again"
            );
        }
        let known = opened.records.into_iter().find(|(key, _)| key == KEY);
        let mut ranges = Self {
            files: opened.store,
            kept: known.map(|(_, kept)| kept).unwrap_or_default(),
        };
        if !ranges.kept.given.is_empty() {
            info!(ranges = %shown(&ranges.kept.given), "pod ranges as the kubelet handed them down");
            put_into(config, &ranges.kept.given);
        }
        let given = ranges.kept.given.clone();
        ranges.set(given, subnets(config), addresses)?;
        Ok(ranges)
    }

    /// From now on: these. `Ok(false)`: they are already.
    pub(crate) fn give(
        &mut self,
        given: &[Subnet],
        config: &mut BridgeConfig,
        addresses: &[IpAddr],
    ) -> Result<bool> {
        if self.kept.given == given {
            return Ok(false);
        }
        let mut wanted = config.clone();
        put_into(&mut wanted, given);
        wanted.validate()?;
        for subnet in given {
            if addresses.contains(&subnet.gateway()) && !self.kept.current.contains(subnet) {
                return Err(Error::InvalidConfig {
                    what: format!(
                        "{} is to be the gateway of {subnet}, but a pod has it",
                        subnet.gateway()
                    ),
                });
            }
        }
        self.set(given.to_vec(), subnets(&wanted), addresses)?;
        *config = wanted;
        Ok(true)
    }

    /// Writes the record, if it is another than before, and then believes it.
    fn set(&mut self, given: Vec<Subnet>, current: Vec<Subnet>, addresses: &[IpAddr]) -> Result<()> {
        let mut earlier = self.kept.earlier.clone();
        earlier.extend(self.kept.current.iter().copied());
        earlier.sort_by_key(ToString::to_string);
        earlier.dedup();
        let in_use = |subnet: &Subnet| addresses.iter().any(|address| subnet.contains(*address));
        earlier.retain(|subnet| !current.contains(subnet) && in_use(subnet));
        let kept = Kept {
            given,
            current,
            earlier,
        };
        if kept != self.kept {
            self.files.put(KEY, &kept).map_err(|source| Error::Record {
                id: "the node's pod ranges".into(),
                source: Box::new(source),
            })?;
            self.kept = kept;
        }
        Ok(())
    }

    pub(crate) fn given(&self) -> &[Subnet] {
        &self.kept.given
    }

    pub(crate) fn earlier(&self) -> &[Subnet] {
        &self.kept.earlier
    }

    /// Whether a pod's first address is the one of IPv6.
    pub(crate) fn v6_first(&self) -> bool {
        self.kept
            .given
            .first()
            .is_some_and(|first| first.addr().is_ipv6())
    }
}

fn put_into(config: &mut BridgeConfig, given: &[Subnet]) {
    let of = |v4: bool| given.iter().copied().find(|subnet| subnet.addr().is_ipv4() == v4);
    (config.ipv4, config.ipv6) = (of(true), of(false));
}

pub(crate) fn subnets(config: &BridgeConfig) -> Vec<Subnet> {
    config.ipv4.into_iter().chain(config.ipv6).collect()
}

fn shown(subnets: &[Subnet]) -> String {
    let all: Vec<String> = subnets.iter().map(ToString::to_string).collect();
    all.join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(text: &str) -> Vec<Subnet> {
        text.split_whitespace().map(|one| one.parse().unwrap()).collect()
    }

    #[test]
    fn what_the_kubelet_says_is_kept_and_what_pods_live_in_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let configured = BridgeConfig::default();
        let pod: IpAddr = "10.87.0.9".parse().unwrap();
        let mut config = configured.clone();
        let mut ranges = Ranges::open(dir.path(), &mut config, &[pod]).unwrap();
        assert_eq!((&config, ranges.v6_first()), (&configured, false));
        let given = list("fd01::/64 10.5.0.0/24");
        assert!(ranges.give(&given, &mut config, &[pod]).unwrap());
        assert!(!ranges.give(&given, &mut config, &[pod]).unwrap());
        assert_eq!(config.ipv4, Some(list("10.5.0.0/24")[0]));
        assert_eq!(ranges.earlier(), list("10.87.0.0/16"));
        assert!(ranges.v6_first());

        let mut config = configured.clone();
        let ranges = Ranges::open(dir.path(), &mut config, &[pod]).unwrap();
        assert_eq!(subnets(&config), list("10.5.0.0/24 fd01::/64"));
        assert_eq!(
            (ranges.earlier(), ranges.given()),
            (&list("10.87.0.0/16")[..], &given[..])
        );
        // The pod has gone.
        let mut config = configured.clone();
        let mut ranges = Ranges::open(dir.path(), &mut config, &[]).unwrap();
        assert!(ranges.earlier().is_empty());
        // One family only.
        assert!(ranges.give(&list("10.6.0.0/24"), &mut config, &[]).unwrap());
        assert_eq!((config.ipv6, ranges.v6_first()), (None, false));
    }

    #[test]
    fn what_cannot_be_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = BridgeConfig::default();
        let mut ranges = Ranges::open(dir.path(), &mut config, &[]).unwrap();
        let pod: IpAddr = "10.5.0.1".parse().unwrap();
        for (bad, why) in [
            ("10.0.0.0/31", "between /8 and /29"),
            ("10.5.0.0/24", "a pod has it"),
        ] {
            let error = ranges
                .give(&list(bad), &mut config, &[pod])
                .unwrap_err()
                .to_string();
            assert!(error.contains(why), "{error}");
            assert_eq!(config, BridgeConfig::default());
            assert!(ranges.given().is_empty());
        }
    }
}
