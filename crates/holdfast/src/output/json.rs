//! CRI messages as JSON, in the protobuf mapping that crictl prints: `podSandboxId`, `"SANDBOX_READY"`, 64-bit
//! numbers as strings, defaults included.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::{Map, Value};

/// Descriptors of the whole API; built on first use, for the server never needs them.
pub fn pool() -> Result<&'static DescriptorPool> {
    static POOL: OnceLock<Option<DescriptorPool>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(holdfast_cri_api::DESCRIPTORS).ok())
        .as_ref()
        .context("the built-in description of the API cannot be read")
}

/// `name` without its package: `PodSandbox`.
pub fn message<M: Message>(name: &str, message: &M) -> Result<Value> {
    let descriptor = pool()?
        .get_message_by_name(&format!("runtime.v1.{name}"))
        .with_context(|| format!("the API has no message {name}"))?;
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
    let options = SerializeOptions::new().skip_default_fields(false);
    Ok(dynamic.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// The `info` of a verbose answer: what is JSON in it becomes part of ours.
pub fn info(info: &BTreeMap<String, String>) -> Map<String, Value> {
    info.iter()
        .map(|(key, text)| {
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
            (key.clone(), value)
        })
        .collect()
}

/// `{"<key>": [messages]}`, as crictl prints its lists.
pub fn print_list<M: Message>(key: &str, name: &str, items: &[M]) -> Result<()> {
    let items: Result<Vec<Value>> = items.iter().map(|item| message(name, item)).collect();
    print(&Value::Object(Map::from_iter([(
        key.to_owned(),
        Value::Array(items?),
    )])))
}

pub fn print(value: &Value) -> Result<()> {
    super::line(serde_json::to_string_pretty(value)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use holdfast_cri_api::v1;

    #[test]
    fn as_crictl_prints_it() {
        let pod = v1::PodSandbox {
            id: "p".into(),
            state: 1,
            created_at: 5,
            ..Default::default()
        };
        let value = message("PodSandbox", &pod).unwrap();
        assert_eq!(value["state"], "SANDBOX_NOTREADY");
        assert_eq!(value["createdAt"], "5");
        assert_eq!(value["runtimeHandler"], "");
        let info = info(&BTreeMap::from([
            ("info".to_owned(), r#"{"pid":7}"#.to_owned()),
            ("other".to_owned(), "not json".to_owned()),
        ]));
        assert_eq!(info["info"]["pid"], 7);
        assert_eq!(info["other"], "not json");
    }
}
