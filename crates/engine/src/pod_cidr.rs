//! The node's pod ranges as the kubelet writes them: `10.244.1.0/24`, or two families as `10.244.1.0/24,fd00:1::/64`.

use holdfast_model::Invalid;
use holdfast_network::{Kind as NetworkKind, Subnet};

use crate::{Engine, Error};

const FIELD: &str = "runtime_config.network_config.pod_cidr";
/// One of each family.
const MAX_RANGES: usize = 2;

impl Engine {
    /// Has the network give new pods addresses from these ranges, now and after a restart. Empty: nothing changes.
    pub async fn set_pod_cidr(&self, text: &str) -> Result<(), Error> {
        let ranges = parse(text)?;
        if ranges.is_empty() {
            return Ok(());
        }
        let set = self.shared().network.set_pod_ranges(ranges).await;
        set.map_err(|source| match source.kind() {
            NetworkKind::Invalid => Invalid::new(FIELD, source.to_string()).into(),
            _ => Error::PodRanges(Box::new(source)),
        })
    }
}

/// The primary range first.
fn parse(text: &str) -> Result<Vec<Subnet>, Invalid> {
    let bad = |reason: String| Err(Invalid::new(FIELD, reason));
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    if text.len() > 256 || text.split(',').count() > MAX_RANGES {
        return bad("holds more than two ranges".into());
    }
    let mut ranges: Vec<Subnet> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let Ok(range) = part.parse::<Subnet>() else {
            return bad(format!("{part:?} is no address range such as 10.0.0.0/24"));
        };
        if ranges
            .iter()
            .any(|known| known.addr().is_ipv4() == range.addr().is_ipv4())
        {
            return bad(format!("{text:?} holds two ranges of one family"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges() {
        let shown = |text: &str| {
            let ranges = parse(text).unwrap();
            ranges
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(shown(""), "");
        assert_eq!(shown("10.0.0.0/24"), "10.0.0.0/24");
        assert_eq!(shown("10.0.0.7/24, fd00::/64"), "10.0.0.0/24 fd00::/64");
        assert_eq!(shown("fd00::/64,10.0.0.0/24"), "fd00::/64 10.0.0.0/24");
        for (bad, why) in [
            ("10.0.0.0", "no address range"),
            ("10.0.0.0/33", "no address range"),
            ("10.0.0.0/24,", "no address range"),
            ("x/1", "no address range"),
            ("1.1.1.1/8,::/0,::/0", "more than two"),
            ("10.0.0.0/24,10.1.0.0/24", "two ranges of one family"),
        ] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.field, FIELD);
            assert!(error.reason.contains(why), "{bad}: {error}");
        }
    }
}
