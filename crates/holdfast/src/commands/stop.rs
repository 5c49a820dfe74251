//! `holdfast stop`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use holdfast_cri_api::v1;

use super::each;
use crate::args::Stop;
use crate::client::{Client, told};
use crate::find::{self, Thing};

pub async fn run(mut client: Client, options: Stop) -> Result<ExitCode> {
    let ids = if options.all {
        let pods = client.pods(v1::PodSandboxFilter::default()).await?;
        pods.into_iter().map(|pod| pod.id).collect()
    } else {
        options.ids
    };
    let grace = options.time.max(0);
    Ok(each(ids, |id| {
        let mut client = client.clone();
        async move {
            let thing = find::thing(&mut client, &id).await?;
            stop(&mut client, &thing, grace).await?;
            Ok(id)
        }
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
