//! Results of plugins: from any version's form to ours, and to the form that the next plugin wants.

use std::net::IpAddr;

use rscni_types::legacy;
use rscni_types::types::{CNIResult, CNIResultWithVersion};
use rscni_types::version::SpecVersion;
use serde_json::Value;

use crate::types::{Dns, Interface, NetResult};

/// Reads what a plugin printed for ADD and gives it the form of `version`, for the next plugin and for the record.
pub(crate) fn read(output: &[u8], version: SpecVersion) -> Result<(CNIResult, Value), String> {
    if output.trim_ascii().is_empty() {
        return Err("nothing was printed".into());
    }
    let value: Value = serde_json::from_slice(output).map_err(|e| format!("not JSON: {e}"))?;
    let declared = match value.as_object().map(|o| o.get("cniVersion")) {
        None => return Err("not a JSON object".into()),
        // Sloppy plugins leave it out; it can only be the version they were asked in.
        Some(None) => version,
        Some(Some(text)) => serde_json::from_value(text.clone()).map_err(|e| format!("cniVersion: {e}"))?,
    };
    if !declared.is_supported() {
        return Err(format!("cniVersion {declared} is older than 0.3.0"));
    }
    let result: CNIResult = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    if declared == version {
        let mut value = value;
        if let Some(object) = value.as_object_mut() {
            object.insert("cniVersion".into(), serde_json::json!(version));
        }
        return Ok((result, value));
    }
    let converted = if version.is_legacy() {
        serde_json::to_value(legacy::CNIResult::new(version, result.clone()))
    } else {
        serde_json::to_value(CNIResultWithVersion::new(version, result.clone()))
    };
    Ok((result, converted.map_err(|e| e.to_string())?))
}

/// The pod's part of it: addresses of interfaces inside the namespace, those of `ifname` first.
pub(crate) fn digest(result: &CNIResult, ifname: &str, network: &str, raw: Value) -> NetResult {
    let interface_of = |index: Option<u32>| index.and_then(|n| result.interfaces.get(n as usize));
    let rank = |ip: &rscni_types::types::IpConfig| match interface_of(ip.interface) {
        Some(interface) if interface.name == ifname => Some(0),
        Some(interface) if interface.sandbox.as_deref().unwrap_or_default().is_empty() => None,
        Some(_) => Some(2),
        // Older plugins do not say which interface; it is the pod's.
        None => Some(1),
    };
    let mut ranked: Vec<(u8, IpAddr)> = result
        .ips
        .iter()
        .filter_map(|ip| Some((rank(ip)?, ip.address.addr())))
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut ips: Vec<IpAddr> = Vec::new();
    for (_, ip) in ranked {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    let dns = result.dns.clone().unwrap_or_default();
    NetResult {
        ips,
        interfaces: result
            .interfaces
            .iter()
            .map(|i| Interface {
                name: i.name.clone(),
                mac: i.mac.clone(),
                sandbox: i.sandbox.clone().filter(|s| !s.is_empty()),
            })
            .collect(),
        dns: Dns {
            servers: dns.nameservers,
            searches: dns.search.unwrap_or_default(),
            options: dns.options.unwrap_or_default(),
        },
        network: network.into(),
        raw: Some(raw),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const V04: SpecVersion = SpecVersion::new(0, 4, 0);
    const V10: SpecVersion = SpecVersion::new(1, 0, 0);

    #[test]
    fn every_version_is_read_and_converted() {
        let old = br#"{"cniVersion":"0.3.1","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/x","mac":"aa:"}],
            "ips":[{"version":"4","interface":1,"address":"10.1.2.3/24","gateway":"10.1.2.1"},
                   {"version":"6","interface":1,"address":"fd00::3/64"},
                   {"version":"4","interface":0,"address":"10.1.2.1/24"}],"dns":{"nameservers":["10.0.0.10"]}}"#;
        let (result, value) = read(old, V10).unwrap();
        assert_eq!(value["cniVersion"], json!("1.0.0"));
        assert!(value["ips"][0].get("version").is_none());
        let ours = digest(&result, "eth0", "n", value);
        assert_eq!(
            ours.ips,
            ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]
        );
        assert_eq!(ours.dns.servers, ["10.0.0.10"]);
        let new = br#"{"cniVersion":"1.0.0","ips":[{"address":"10.1.2.3/24"}],"keep":1}"#;
        assert_eq!(read(new, V04).unwrap().1["ips"][0]["version"], json!("4"));
        assert_eq!(read(new, V10).unwrap().1["keep"], json!(1));
    }

    #[test]
    fn garbage_is_named() {
        for (output, expect) in [
            ("", "nothing"),
            (" \n", "nothing"),
            ("hello", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"cniVersion":"0.2.0","ip4":{}}"#, "0.2.0"),
            (r#"{"cniVersion":1}"#, "cniVersion"),
            (r#"{"cniVersion":"1.0.0","ips":[{"address":"nonsense"}]}"#, ""),
        ] {
            let error = read(output.as_bytes(), V10).unwrap_err();
            assert!(error.contains(expect), "{output}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_output_panics(output in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&output, V10);
        }
    }
}
