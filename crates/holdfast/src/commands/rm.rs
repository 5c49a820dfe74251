//! `holdfast rm`

use std::process::ExitCode;

use anyhow::{Result, bail};
use holdfast_cri_api::v1;

use super::{each, stop};
use crate::args::Rm;
use crate::client::{Client, told};
use crate::find::{self, Thing};

pub async fn run(mut client: Client, options: Rm) -> Result<ExitCode> {
    let ids = if options.all {
        let pods = client.pods(v1::PodSandboxFilter::default()).await?;
        pods.into_iter()
            .filter(|pod| options.force || pod.state() != v1::PodSandboxState::SandboxReady)
            .map(|pod| pod.id)
            .collect()
    } else {
        options.ids
    };
    let force = options.force;
    Ok(each(ids, |id| {
        let mut client = client.clone();
        async move {
            let thing = find::thing(&mut client, &id).await?;
            remove(&mut client, &thing, force).await?;
            Ok(id)
        }
    })
    .await)
}

async fn remove(client: &mut Client, thing: &Thing, force: bool) -> Result<()> {
    // The CRI removes what runs without a word; a person gets asked for -f.
    let runs = match thing {
        Thing::Pod(pod) => pod.state() == v1::PodSandboxState::SandboxReady,
        Thing::Container(container) => container.state() == v1::ContainerState::ContainerRunning,
    };
    if runs && !force {
        bail!(
            "{} {} runs: stop it first, or use -f",
            thing.kind(),
            crate::output::short_id(thing.id())
        );
    }
    if runs {
        stop::stop(client, thing, 0).await?;
    }
    match thing {
        Thing::Pod(pod) => {
            let request = client.request(v1::RemovePodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            });
            client.runtime.remove_pod_sandbox(request).await.map_err(told)?;
        }
        Thing::Container(container) => {
            let request = client.request(v1::RemoveContainerRequest {
                container_id: container.id.clone(),
            });
            client.runtime.remove_container(request).await.map_err(told)?;
        }
    }
    Ok(())
}
