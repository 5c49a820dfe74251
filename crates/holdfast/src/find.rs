//! From what a person types (a name, an id, the beginning of an id) to one pod or container.

use anyhow::{Result, bail};
use holdfast_cri_api::v1;

use crate::client::Client;

/// A pod or a container.
#[derive(Debug, Clone, PartialEq)]
pub enum Thing {
    Pod(v1::PodSandbox),
    Container(v1::Container),
}

impl Thing {
    pub fn id(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.id,
            Self::Container(container) => &container.id,
        }
    }

    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pod(_) => "pod",
            Self::Container(_) => "container",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Pod(pod) => pod.metadata.as_ref().map_or("", |m| &m.name),
            Self::Container(container) => container.metadata.as_ref().map_or("", |m| &m.name),
        }
    }

    /// `namespace/name` also names a pod.
    fn answers_to(&self, text: &str) -> bool {
        match self {
            Self::Pod(pod) => pod.metadata.as_ref().is_some_and(|m| {
                m.name == text || text.split_once('/') == Some((m.namespace.as_str(), m.name.as_str()))
            }),
            Self::Container(_) => self.name() == text,
        }
    }

    pub fn alive(&self) -> bool {
        match self {
            Self::Pod(pod) => pod.state() == v1::PodSandboxState::SandboxReady,
            Self::Container(container) => container.state() == v1::ContainerState::ContainerRunning,
        }
    }

    fn created_at(&self) -> i64 {
        match self {
            Self::Pod(pod) => pod.created_at,
            Self::Container(container) => container.created_at,
        }
    }
}

pub async fn pod(client: &mut Client, text: &str) -> Result<v1::PodSandbox> {
    let pods = client.pods(v1::PodSandboxFilter::default()).await?;
    match choose(text, "pod", &pods.into_iter().map(Thing::Pod).collect::<Vec<_>>())? {
        Thing::Pod(pod) => Ok(pod),
        Thing::Container(_) => bail!("{text:?} is a container"),
    }
}

pub async fn container(client: &mut Client, text: &str) -> Result<v1::Container> {
    let containers = client.containers(v1::ContainerFilter::default()).await?;
    match choose(
        text,
        "container",
        &containers.into_iter().map(Thing::Container).collect::<Vec<_>>(),
    )? {
        Thing::Container(container) => Ok(container),
        Thing::Pod(_) => bail!("{text:?} is a pod"),
    }
}

/// A pod or a container; a name that both have means the pod, which holds the container.
pub async fn thing(client: &mut Client, text: &str) -> Result<Thing> {
    Things::list(client).await?.find(text)
}

/// Every pod and container at one moment: whoever looks for many lists them once.
#[derive(Debug)]
pub struct Things(Vec<Thing>);

impl Things {
    pub async fn list(client: &mut Client) -> Result<Self> {
        let pods = client.pods(v1::PodSandboxFilter::default()).await?;
        let containers = client.containers(v1::ContainerFilter::default()).await?;
        let pods = pods.into_iter().map(Thing::Pod);
        Ok(Self(
            pods.chain(containers.into_iter().map(Thing::Container)).collect(),
        ))
    }

    pub fn into_pods(self) -> Vec<Thing> {
        self.0
            .into_iter()
            .filter(|thing| matches!(thing, Thing::Pod(_)))
            .collect()
    }

    /// As [`thing`].
    pub fn find(&self, text: &str) -> Result<Thing> {
        let all = &self.0;
        let by_pod_name: Vec<Thing> = all
            .iter()
            .filter(|t| matches!(t, Thing::Pod(_)) && t.answers_to(text))
            .cloned()
            .collect();
        if !by_pod_name.is_empty() && !all.iter().any(|t| t.id() == text) {
            return choose(text, "pod", &by_pod_name);
        }
        choose(text, "pod or container", all)
    }
}

/// A whole id wins, then a name, then the beginning of an id. Of several with one name the one that lives is meant,
/// where that is clear; kubelet leaves old attempts about under the same name.
fn choose(text: &str, kind: &str, things: &[Thing]) -> Result<Thing> {
    if text.is_empty() {
        bail!("an empty name is no {kind}");
    }
    if let Some(exact) = things.iter().find(|t| t.id() == text) {
        return Ok(exact.clone());
    }
    let mut found: Vec<Thing> = things.iter().filter(|t| t.answers_to(text)).cloned().collect();
    if found.len() > 1 && found.iter().filter(|t| t.alive()).count() == 1 {
        found.retain(Thing::alive);
    }
    if found.is_empty() {
        found = things
            .iter()
            .filter(|t| t.id().starts_with(text))
            .cloned()
            .collect();
    }
    found.sort_by_key(|t| std::cmp::Reverse(t.created_at()));
    match found.as_slice() {
        [] => bail!("there is no {kind} {text:?}: `holdfast pods` and `holdfast ps -a` list what there is"),
        [one] => Ok(one.clone()),
        many => {
            let list: Vec<String> = many
                .iter()
                .take(10)
                .map(|t| format!("{} {} ({})", t.kind(), crate::output::short_id(t.id()), t.name()))
                .collect();
            bail!("{text:?} could be any of {}: {}", many.len(), list.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn container(id: &str, name: &str, state: v1::ContainerState) -> Thing {
        Thing::Container(v1::Container {
            id: id.to_owned(),
            metadata: Some(v1::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            state: state.into(),
            ..Default::default()
        })
    }

    #[test]
    fn ids_names_and_beginnings() {
        use v1::ContainerState::{ContainerExited as Exited, ContainerRunning as Running};
        let things = || {
            vec![
                container("abc1", "web", Exited),
                container("abc2", "web", Running),
                container("d", "abc1", Running),
                container("e1", "twin", Running),
                container("e2", "twin", Running),
            ]
        };
        let id = |text: &str| choose(text, "container", &things()).map(|t| t.id().to_owned());
        assert_eq!(id("abc1").unwrap(), "abc1", "an id goes before a name");
        assert_eq!(id("web").unwrap(), "abc2", "the one that runs is meant");
        assert_eq!(id("d").unwrap(), "d");
        assert!(id("abc").unwrap_err().to_string().contains("any of 2"));
        assert!(id("twin").unwrap_err().to_string().contains("any of 2"));
        assert!(
            id("nothing")
                .unwrap_err()
                .to_string()
                .contains("there is no container")
        );
        assert!(id("").is_err());
    }

    #[test]
    fn pods_by_namespace_and_name() {
        let pod = Thing::Pod(v1::PodSandbox {
            id: "p".into(),
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                namespace: "prod".into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        assert!(pod.answers_to("prod/web") && pod.answers_to("web") && !pod.answers_to("dev/web"));
    }
}
