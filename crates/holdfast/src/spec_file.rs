//! Pod and container configurations from files in the format that crictl's users have: JSON or YAML, with the names
//! of the CRI's fields. A field that the CRI does not know is an error that names it.

use std::path::Path;

use anyhow::{Context as _, Result};
use holdfast_cri_api::v1;
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage};
use serde_json::Value;

use crate::output;

/// More than any configuration needs; a mistyped path to something big ends here.
const MAX_FILE: u64 = 4 << 20;

pub fn pod(path: &Path) -> Result<v1::PodSandboxConfig> {
    read(path, "PodSandboxConfig")
}

pub fn container(path: &Path) -> Result<v1::ContainerConfig> {
    read(path, "ContainerConfig")
}

fn read<M: Message + Default>(path: &Path, name: &str) -> Result<M> {
    let shown = path.display();
    let meta = std::fs::metadata(path).with_context(|| format!("cannot read {shown}"))?;
    anyhow::ensure!(meta.len() <= MAX_FILE, "{shown} is larger than {MAX_FILE} bytes");
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    parse(&text, name).with_context(|| format!("{shown} is no {name}"))
}

fn parse<M: Message + Default>(text: &str, name: &str) -> Result<M> {
    // JSON is YAML too, but its own parser says better what is wrong with it.
    let mut value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text)?
    } else {
        serde_yaml_ng::from_str(text)?
    };
    if let Some(envs) = value.get_mut("envs").and_then(Value::as_array_mut) {
        envs.iter_mut().for_each(plain_value);
    }
    let descriptor = output::pool()?
        .get_message_by_name(&format!("runtime.v1.{name}"))
        .with_context(|| format!("the API has no message {name}"))?;
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let dynamic = DynamicMessage::deserialize_with_options(descriptor, value, &options)?;
    Ok(M::decode(dynamic.encode_to_vec().as_slice())?)
}

/// People write the value of an environment variable as it is; the JSON form of bytes is base64.
fn plain_value(env: &mut Value) {
    use base64::Engine as _;
    if let Some(value) = env.get_mut("value") {
        let plain = match &*value {
            Value::String(text) => text.clone(),
            // YAML reads `value: 8080` as a number.
            Value::Number(number) => number.to_string(),
            Value::Bool(truth) => truth.to_string(),
            _ => return,
        };
        *value = Value::String(base64::engine::general_purpose::STANDARD.encode(plain));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn json_as_crictl_has_it() {
        let pod: v1::PodSandboxConfig = parse(
            r#"{
                "metadata": {"name": "nginx", "namespace": "default", "attempt": 1, "uid": "hdishd83djaid"},
                "log_directory": "/tmp", "hostname": "h",
                "port_mappings": [{"protocol": 1, "container_port": 53, "host_port": 53}],
                "linux": {"security_context": {"namespace_options": {"network": 2}, "run_as_user": {"value": 5}},
                          "sysctls": {"net.ipv4.ip_forward": "1"}}
            }"#,
            "PodSandboxConfig",
        )
        .unwrap();
        assert_eq!(pod.metadata.unwrap().attempt, 1);
        assert_eq!(pod.port_mappings[0].protocol(), v1::Protocol::Udp);
        let context = pod.linux.unwrap().security_context.unwrap();
        assert_eq!(context.run_as_user.unwrap().value, 5);
        assert_eq!(
            context.namespace_options.unwrap().network(),
            v1::NamespaceMode::Node
        );
    }

    #[test]
    fn yaml_with_names_for_enums_and_plain_environment() {
        let container: v1::ContainerConfig = parse(
            "metadata:\n  name: c\nimage:\n  image: busybox\ncommand: [top]\nenvs:\n- key: A\n  value: b c\n- key: P\n  \
             value: 8080\nmounts:\n- container_path: /c\n  host_path: /h\n  propagation: PROPAGATION_BIDIRECTIONAL\n",
            "ContainerConfig",
        )
        .unwrap();
        assert_eq!(container.envs[0].value, b"b c");
        assert_eq!(container.envs[1].value, b"8080");
        assert_eq!(
            container.mounts[0].propagation(),
            v1::MountPropagation::PropagationBidirectional
        );
    }

    #[test]
    fn a_slip_is_named() {
        let error = parse::<v1::ContainerConfig>("metadata: {nmae: x}", "ContainerConfig").unwrap_err();
        assert!(format!("{error:#}").contains("nmae"), "{error:#}");
        assert!(parse::<v1::ContainerConfig>("{", "ContainerConfig").is_err());
        assert!(parse::<v1::ContainerConfig>("- a list", "ContainerConfig").is_err());
    }
}
