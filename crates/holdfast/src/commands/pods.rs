//! `holdfast pods`

use anyhow::Result;
use holdfast_cri_api::v1;

use super::labels;
use crate::args::{Format, PodState, Pods};
use crate::client::Client;
use crate::output::{self, Table};

pub async fn run(mut client: Client, format: Format, options: Pods) -> Result<()> {
    let select = options.select;
    let mut pods = client
        .pods(v1::PodSandboxFilter {
            state: options.state.map(|state| v1::PodSandboxStateValue {
                state: match state {
                    PodState::Ready => v1::PodSandboxState::SandboxReady,
                    PodState::Notready => v1::PodSandboxState::SandboxNotready,
                }
                .into(),
            }),
            label_selector: labels(select.label),
            ..Default::default()
        })
        .await?;
    pods.retain(|pod| {
        pod.metadata.as_ref().is_some_and(|m| {
            select.name.as_ref().is_none_or(|name| m.name.contains(name))
                && options.namespace.as_ref().is_none_or(|ns| m.namespace == *ns)
        })
    });
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    if select.quiet {
        return output::lines(pods.iter().map(|pod| pod.id.as_str()));
    }
    match format {
        Format::Json => output::print_list("items", "PodSandbox", &pods),
        Format::Table => Ok(table(&pods, output::now(), select.no_trunc).print()?),
    }
}

fn table(pods: &[v1::PodSandbox], now: i64, whole_ids: bool) -> Table {
    let mut table = Table::new(&[
        "POD ID",
        "CREATED",
        "STATE",
        "NAME",
        "NAMESPACE",
        "ATTEMPT",
        "RUNTIME",
    ]);
    for pod in pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let id = if whole_ids {
            &pod.id
        } else {
            output::short_id(&pod.id)
        };
        table.row([
            id.to_owned(),
            output::age(now, pod.created_at),
            match pod.state() {
                v1::PodSandboxState::SandboxReady => "Ready",
                v1::PodSandboxState::SandboxNotready => "NotReady",
            }
            .to_owned(),
            metadata.name,
            metadata.namespace,
            metadata.attempt.to_string(),
            if pod.runtime_handler.is_empty() {
                "(default)".to_owned()
            } else {
                pod.runtime_handler.clone()
            },
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_see_it() {
        let pod = |id: &str, name: &str, state: v1::PodSandboxState, handler: &str| v1::PodSandbox {
            id: id.repeat(32),
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                namespace: "default".into(),
                uid: "u".into(),
                attempt: 1,
            }),
            state: state.into(),
            created_at: 1_000_000_000_000,
            runtime_handler: handler.into(),
            ..Default::default()
        };
        let pods = [
            pod("a1", "web", v1::PodSandboxState::SandboxReady, ""),
            pod("b2", "database-0", v1::PodSandboxState::SandboxNotready, "crun"),
        ];
        assert_eq!(
            table(&pods, 1_300_000_000_000, false).render(),
            include_str!("../../tests/snapshots/pods.txt")
        );
    }
}
