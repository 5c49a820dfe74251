//! What the network set up, in the shape that the peers' verbose info has: go-cni's result. Those who read it decode the
//! whole info with Go, which knows keys by name whatever their case: a list under `interfaces` would fail all of it.

use serde_json::{Map, Value, json};

/// Of [`holdfast_model::SandboxRecord::network`].
pub(super) fn view(network: &Value) -> Value {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut interfaces = Map::new();
    let made = list(&network["interfaces"]);
    // The addresses are those of the pod's first interface.
    let first = made.iter().find(|one| one["sandbox"].is_string());
    for interface in &made {
        let name = interface["name"].as_str().unwrap_or_default();
        let own = interface["sandbox"].is_string();
        // The same name may be there twice, on the host and in the pod: the pod's counts.
        if !own && interfaces.contains_key(name) {
            continue;
        }
        let shown = json!({
            "IPConfigs": (first == Some(interface)).then(|| addresses(network)),
            "Mac": interface["mac"],
            "Sandbox": interface["sandbox"].as_str().unwrap_or_default(),
        });
        interfaces.insert(name.to_owned(), shown);
    }
    let dns = &network["dns"];
    json!({
        "Interfaces": interfaces,
        "DNS": [{
            "nameservers": dns["servers"],
            "domain": network["raw"]["dns"]["domain"],
            "search": dns["searches"],
            "options": dns["options"],
        }],
        "Routes": list(&network["raw"]["routes"]),
        "network": network["network"],
        "raw": network["raw"],
    })
}

/// Gateways are the plugins' to say: the built-in network's addresses come without.
fn addresses(network: &Value) -> Vec<Value> {
    let printed = network["raw"]["ips"].as_array();
    let gateway = |ip: &str| {
        let of = |one: &&Value| {
            let address = one["address"].as_str().unwrap_or_default();
            address.split('/').next() == Some(ip)
        };
        printed
            .and_then(|ips| ips.iter().find(of))
            .map(|one| one["gateway"].clone())
    };
    let ips = network["ips"].as_array().into_iter().flatten();
    ips.filter_map(Value::as_str)
        .map(|ip| json!({ "IP": ip, "Gateway": gateway(ip).unwrap_or(Value::Null) }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_plugins() {
        let shown = view(&json!({
            "ips": ["10.88.0.5"],
            "interfaces": [
                { "name": "cni0", "mac": "0a:00:00:00:00:01", "sandbox": null },
                { "name": "eth0", "mac": "0a:00:00:00:00:02", "sandbox": "/run/netns/a" },
            ],
            "network": "net",
            "raw": {
                "ips": [{ "address": "10.88.0.5/16", "gateway": "10.88.0.1", "interface": 1 }],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }));
        assert_eq!(
            shown["Interfaces"]["eth0"],
            json!({
                "IPConfigs": [{ "IP": "10.88.0.5", "Gateway": "10.88.0.1" }],
                "Mac": "0a:00:00:00:00:02",
                "Sandbox": "/run/netns/a",
            })
        );
        assert_eq!(shown["Interfaces"]["cni0"]["Sandbox"], "");
        assert_eq!(shown["Interfaces"]["cni0"]["IPConfigs"], Value::Null);
        assert_eq!(shown["Routes"], json!([{ "dst": "0.0.0.0/0" }]));
        assert!(shown["DNS"].is_array());
    }

    /// No two keys may differ in case alone, nor may ours be one of theirs: Go would read the wrong one.
    #[test]
    fn keys_are_told_apart_without_their_case() {
        let shown = view(&json!({ "network": "bridge" }));
        let mut keys: Vec<String> = shown
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.to_lowercase())
            .collect();
        keys.sort();
        assert_eq!(keys, ["dns", "interfaces", "network", "raw", "routes"]);
    }
}
