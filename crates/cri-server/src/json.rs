//! CRI messages as JSON with the field names of the API, as verbose answers carry them (`config`).

use std::sync::OnceLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

/// `name` without its package. Null where it cannot be written, which no message of ours causes.
///
/// Built on first use: few servers are ever asked verbosely.
pub fn message<M: Message>(name: &str, message: &M) -> Value {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| DescriptorPool::decode(holdfast_cri_api::DESCRIPTORS).ok());
    let write = || {
        let descriptor = pool
            .as_ref()?
            .get_message_by_name(&format!("runtime.v1.{name}"))?;
        let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).ok()?;
        // As Go's encoding/json writes these types, which is what readers of `config` expect.
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .use_enum_numbers(true)
            .stringify_64_bit_integers(false);
        dynamic
            .serialize_with_options(serde_json::value::Serializer, &options)
            .ok()
    };
    write().unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_cri_api::v1;

    #[test]
    fn as_go_writes_it() {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "n".into(),
                attempt: 2,
                ..Default::default()
            }),
            port_mappings: vec![v1::PortMapping {
                protocol: 1,
                container_port: 53,
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(
            message("PodSandboxConfig", &config),
            serde_json::json!({
                "metadata": {"name": "n", "attempt": 2},
                "port_mappings": [{"protocol": 1, "container_port": 53}],
            })
        );
    }
}
