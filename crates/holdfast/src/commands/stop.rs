//! `holdfast stop`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use holdfast_cri_api::v1;

use super::{each, look_up, named};
use crate::args::Stop;
use crate::client::{Client, told};
use crate::find::{Thing, Things};

pub async fn run(mut client: Client, options: Stop) -> Result<ExitCode> {
    let things = Things::list(&mut client).await?;
    let wanted = match options.all {
        true => named(things.into_pods()),
        false => look_up(&things, options.ids),
    };
    let grace = options.time.max(0);
    Ok(each(wanted, move |thing| {
        let mut client = client.clone();
        async move { stop(&mut client, &thing, grace).await }
    })
    .await)
}

pub async fn stop(client: &mut Client, thing: &Thing, grace: i64) -> Result<()> {
    match thing {
        Thing::Pod(pod) => {
            let request = client.request(v1::StopPodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            });
            client.runtime.stop_pod_sandbox(request).await.map_err(told)?;
        }
        Thing::Container(container) => {
            let message = v1::StopContainerRequest {
                container_id: container.id.clone(),
                timeout: grace,
            };
            let request = client.request_with(message, Duration::from_secs(grace.unsigned_abs()));
            client.runtime.stop_container(request).await.map_err(told)?;
        }
    }
    Ok(())
}
