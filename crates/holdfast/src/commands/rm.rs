//! `holdfast rm`

use std::process::ExitCode;

use anyhow::{Result, bail};
use holdfast_cri_api::v1;

use super::{each, look_up, named, stop};
use crate::args::Rm;
use crate::client::{Client, told};
use crate::find::{Thing, Things};

pub async fn run(mut client: Client, options: Rm) -> Result<ExitCode> {
    let things = Things::list(&mut client).await?;
    let force = options.force;
    let wanted = match options.all {
        true => {
            let pods = things.into_pods().into_iter();
            named(pods.filter(|pod| force || !pod.alive()).collect())
        }
        false => look_up(&things, options.ids),
    };
    Ok(each(wanted, move |thing| {
        let mut client = client.clone();
        async move { remove(&mut client, &thing, force).await }
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
