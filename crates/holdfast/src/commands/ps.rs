//! `holdfast ps`

use anyhow::Result;
use holdfast_cri_api::v1;

use super::labels;
use crate::args::{ContainerState, Format, Ps};
use crate::client::Client;
use crate::find;
use crate::output::{self, Table};

pub async fn run(mut client: Client, format: Format, options: Ps) -> Result<()> {
    let state = match (options.all, options.state) {
        (true, _) => None,
        (false, None | Some(ContainerState::Running)) => Some(v1::ContainerState::ContainerRunning),
        (false, Some(ContainerState::Created)) => Some(v1::ContainerState::ContainerCreated),
        (false, Some(ContainerState::Exited)) => Some(v1::ContainerState::ContainerExited),
        (false, Some(ContainerState::Unknown)) => Some(v1::ContainerState::ContainerUnknown),
    };
    let pod = match &options.pod {
        Some(text) => find::pod(&mut client, text).await?.id,
        None => String::new(),
    };
    let select = options.select;
    let mut containers = client
        .containers(v1::ContainerFilter {
            state: state.map(|state| v1::ContainerStateValue { state: state.into() }),
            pod_sandbox_id: pod,
            label_selector: labels(select.label),
            ..Default::default()
        })
        .await?;
    if let Some(name) = &select.name {
        containers.retain(|c| {
            c.metadata
                .as_ref()
                .is_some_and(|m| m.name.contains(name.as_str()))
        });
    }
    containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    if select.quiet {
        return output::lines(containers.iter().map(|c| c.id.as_str()));
    }
    match format {
        Format::Json => output::print_list("containers", "Container", &containers),
        Format::Table => Ok(table(&containers, output::now(), select.no_trunc).print()?),
    }
}

fn table(containers: &[v1::Container], now: i64, whole_ids: bool) -> Table {
    let id = |id: &str| {
        if whole_ids {
            id.to_owned()
        } else {
            output::short_id(id).to_owned()
        }
    };
    let mut table = Table::new(&[
        "CONTAINER",
        "IMAGE",
        "CREATED",
        "STATE",
        "NAME",
        "ATTEMPT",
        "POD ID",
    ]);
    for container in containers {
        let metadata = container.metadata.clone().unwrap_or_default();
        let image = container.image.as_ref().map_or("", |image| {
            if image.user_specified_image.is_empty() {
                &image.image
            } else {
                &image.user_specified_image
            }
        });
        table.row([
            id(&container.id),
            if image.starts_with("sha256:") {
                id(image)
            } else {
                image.to_owned()
            },
            output::age(now, container.created_at),
            match container.state() {
                v1::ContainerState::ContainerCreated => "Created",
                v1::ContainerState::ContainerRunning => "Running",
                v1::ContainerState::ContainerExited => "Exited",
                v1::ContainerState::ContainerUnknown => "Unknown",
            }
            .to_owned(),
            metadata.name,
            metadata.attempt.to_string(),
            id(&container.pod_sandbox_id),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_see_it() {
        let container = |id: &str, image: &str, state: v1::ContainerState| v1::Container {
            id: id.repeat(32),
            pod_sandbox_id: "c3".repeat(32),
            metadata: Some(v1::ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            }),
            image: Some(v1::ImageSpec {
                image: image.into(),
                ..Default::default()
            }),
            state: state.into(),
            created_at: 1_000_000_000_000,
            ..Default::default()
        };
        let containers = [
            container(
                "a1",
                "docker.io/library/busybox:latest",
                v1::ContainerState::ContainerRunning,
            ),
            container(
                "b2",
                &format!("sha256:{}", "0f".repeat(32)),
                v1::ContainerState::ContainerExited,
            ),
        ];
        assert_eq!(
            table(&containers, 1_005_000_000_000, false).render(),
            include_str!("../../tests/snapshots/ps.txt")
        );
    }
}
