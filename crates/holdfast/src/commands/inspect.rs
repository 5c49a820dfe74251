//! `holdfast inspect`: always JSON, in the shape that `crictl inspect`, `inspectp` and `inspecti` print.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use holdfast_cri_api::v1;
use serde_json::{Map, Value};

use crate::args::Inspect;
use crate::client::{Client, told};
use crate::find::{self, Thing};
use crate::output;

pub async fn run(mut client: Client, options: Inspect) -> Result<()> {
    for id in &options.ids {
        let value = look(&mut client, id).await?;
        let Some(path) = &options.field else {
            output::print(&value)?;
            continue;
        };
        match field(&value, path).with_context(|| format!("{id} has no field {path}"))? {
            Value::String(text) => output::line(text)?,
            other => output::line(serde_json::to_string(other)?)?,
        }
    }
    Ok(())
}

async fn look(client: &mut Client, id: &str) -> Result<Value> {
    let not_found = match find::thing(client, id).await {
        Ok(Thing::Pod(pod)) => {
            let request = client.request(v1::PodSandboxStatusRequest {
                pod_sandbox_id: pod.id,
                verbose: true,
            });
            let reply = client
                .runtime
                .pod_sandbox_status(request)
                .await
                .map_err(told)?
                .into_inner();
            return shape(
                output::message("PodSandboxStatus", &reply.status.unwrap_or_default())?,
                &reply.info,
            );
        }
        Ok(Thing::Container(container)) => {
            let request = client.request(v1::ContainerStatusRequest {
                container_id: container.id,
                verbose: true,
            });
            let reply = client
                .runtime
                .container_status(request)
                .await
                .map_err(told)?
                .into_inner();
            return shape(
                output::message("ContainerStatus", &reply.status.unwrap_or_default())?,
                &reply.info,
            );
        }
        Err(error) => error,
    };
    let request = client.request(v1::ImageStatusRequest {
        image: Some(v1::ImageSpec {
            image: id.to_owned(),
            ..Default::default()
        }),
        verbose: true,
    });
    match client.image.image_status(request).await {
        Ok(reply) => {
            let reply = reply.into_inner();
            match reply.image {
                Some(image) => shape(output::message("Image", &image)?, &reply.info),
                None => Err(not_found),
            }
        }
        Err(_) => Err(not_found),
    }
}

fn shape(status: Value, info: &BTreeMap<String, String>) -> Result<Value> {
    let mut all = output::info(info);
    all.insert("status".to_owned(), status);
    Ok(Value::Object(all))
}

/// `a.b.0.c`
fn field<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, step| match value {
        Value::Object(map) => map_get(map, step),
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        _ => None,
    })
}

fn map_get<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_field() {
        let value = serde_json::json!({"status": {"network": {"ip": "10.0.0.2"}, "mounts": [{"x": 1}]}});
        assert_eq!(field(&value, "status.network.ip").unwrap(), "10.0.0.2");
        assert_eq!(field(&value, "status.mounts.0.x").unwrap(), 1);
        assert_eq!(field(&value, "status.nothing"), None);
    }
}
