//! RuntimeService.UpdateRuntimeConfig: kubelet hands down the node's pod addresses.
//!
//! The built-in network takes its subnets from the configuration file and CNI plugins bring theirs, so a range is read
//! and noted, not applied. It is no error: kubelet would repeat it for ever.

use holdfast_cri_api::v1;
use holdfast_model::Invalid;
use tonic::Status;

use crate::{Services, error};

/// One of each family.
const MAX_RANGES: usize = 2;

pub fn call(
    _: &Services,
    request: v1::UpdateRuntimeConfigRequest,
) -> Result<v1::UpdateRuntimeConfigResponse, Status> {
    let cidr = request
        .runtime_config
        .and_then(|c| c.network_config)
        .map(|n| n.pod_cidr)
        .unwrap_or_default();
    check(&cidr).map_err(error::invalid)?;
    if !cidr.is_empty() {
        tracing::info!(
            pod_cidr = cidr,
            "kubelet's pod addresses are not applied: the network's own are used"
        );
    }
    Ok(v1::UpdateRuntimeConfigResponse {})
}

fn check(cidr: &str) -> Result<(), Invalid> {
    let bad = |reason: &str| Err(Invalid::new("runtime_config.network_config.pod_cidr", reason));
    if cidr.is_empty() {
        return Ok(());
    }
    if cidr.split(',').count() > MAX_RANGES {
        return bad("holds more than two ranges");
    }
    for range in cidr.split(',') {
        let good = range.trim().split_once('/').is_some_and(|(address, prefix)| {
            let most = match address.parse() {
                Ok(std::net::IpAddr::V4(_)) => 32,
                Ok(std::net::IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            prefix.parse::<u8>().is_ok_and(|prefix| prefix <= most)
        });
        if !good {
            return bad(&format!("{range:?} is no address range such as 10.0.0.0/24"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for good in ["", "10.0.0.0/24", "10.0.0.0/24,fd00::/64"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/1", "1.1.1.1/8,::/0,::/0"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
