//! The answers in JSON: discovery, errors, and pods as far as the CRI knows them.

use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use super::Failure;
use crate::cri::Cri;

/// Where every pod is said to run.
const NODE: &str = "stub";

pub fn version() -> Value {
    json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0-stub", "platform": "linux/amd64"})
}

pub fn api_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

pub fn api_groups() -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
}

pub fn resources() -> Value {
    let resource = |name: &str, kind: &str, verbs: &[&str]| {
        json!({"name": name, "singularName": if name == "pods" { "pod" } else { "" }, "namespaced": true, "kind": kind,
               "verbs": verbs, "shortNames": if name == "pods" { vec!["po"] } else { Vec::new() }})
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [
        resource("pods", "Pod", &["get", "list"]),
        resource("pods/attach", "PodAttachOptions", &["create", "get"]),
        resource("pods/exec", "PodExecOptions", &["create", "get"]),
        resource("pods/log", "Pod", &["get"]),
        resource("pods/portforward", "PodPortForwardOptions", &["create", "get"]),
    ]})
}

/// kubectl asks for it when it finds no pod, so as to say which of the two is missing. Every name is a namespace here.
pub fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}, "status": {"phase": "Active"}})
}

pub fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        404 => "NotFound",
        400 => "BadRequest",
        _ => "InternalError",
    };
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": message})
}

pub async fn pods(cri: &Cri, namespace: &str) -> Result<Value, Failure> {
    let mut items = Vec::new();
    for sandbox in cri.pods(None).await? {
        if sandbox
            .metadata
            .as_ref()
            .is_some_and(|m| m.namespace == namespace)
        {
            items.push(described(cri, &sandbox).await?);
        }
    }
    Ok(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}))
}

pub async fn pod(cri: &Cri, namespace: &str, name: &str) -> Result<Value, Failure> {
    described(cri, &sandbox(cri, namespace, name).await?).await
}

/// The newest sandbox of the pod.
pub async fn sandbox(cri: &Cri, namespace: &str, name: &str) -> Result<cri::PodSandbox, Failure> {
    let sandboxes = cri.pods(None).await?.into_iter();
    sandboxes
        .filter(|s| {
            s.metadata
                .as_ref()
                .is_some_and(|m| m.namespace == namespace && m.name == name)
        })
        .max_by_key(|s| s.created_at)
        .ok_or_else(|| Failure::new(404, format!("pods \"{name}\" not found")))
}

/// The pod's container of that name, or its only one.
pub async fn container(
    cri: &Cri,
    sandbox: &cri::PodSandbox,
    name: Option<&str>,
) -> Result<cri::Container, Failure> {
    let containers = containers(cri, sandbox).await?.into_iter();
    containers
        .filter(|c| name.is_none_or(|name| c.metadata.as_ref().is_some_and(|m| m.name == name)))
        .max_by_key(|c| c.created_at)
        .ok_or_else(|| {
            Failure::new(
                400,
                format!("container {} is not valid for this pod", name.unwrap_or("(none)")),
            )
        })
}

async fn containers(cri: &Cri, sandbox: &cri::PodSandbox) -> Result<Vec<cri::Container>, Failure> {
    let filter = cri::ContainerFilter {
        pod_sandbox_id: sandbox.id.clone(),
        ..Default::default()
    };
    Ok(cri.containers(Some(filter)).await?)
}

async fn described(cri: &Cri, sandbox: &cri::PodSandbox) -> Result<Value, Failure> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let (mut specs, mut statuses, mut running, mut failed) = (Vec::new(), Vec::new(), false, false);
    for container in containers(cri, sandbox).await? {
        let name = container.metadata.clone().unwrap_or_default().name;
        let image = container.image.clone().unwrap_or_default().image;
        let request = cri::ContainerStatusRequest {
            container_id: container.id.clone(),
            verbose: true,
        };
        let reply = cri.runtime.clone().container_status(request).await?.into_inner();
        let status = reply.status.unwrap_or_default();
        // Whether it has a terminal and an input is only in the verbose part.
        let info: Value =
            serde_json::from_str(reply.info.get("info").map_or("null", String::as_str)).unwrap_or_default();
        let flag = |name: &str| info["config"][name].as_bool().unwrap_or_default();
        let runs = status.state() == cri::ContainerState::ContainerRunning;
        running |= runs;
        failed |= status.exit_code != 0;
        let state = if runs {
            json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
        } else {
            json!({"terminated": {"exitCode": status.exit_code, "reason": status.reason}})
        };
        specs.push(json!({"name": name, "image": image, "stdin": flag("stdin"), "tty": flag("tty")}));
        statuses.push(json!({"name": name, "image": image, "imageID": container.image_ref, "ready": runs, "restartCount": 0,
            "containerID": format!("stub://{}", container.id), "state": state}));
    }
    let phase = match (running, failed) {
        (true, _) => "Running",
        (false, true) => "Failed",
        (false, false) => "Succeeded",
    };
    Ok(json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid, "labels": sandbox.labels,
                     "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": NODE, "containers": specs},
        "status": {"phase": phase, "containerStatuses": statuses},
    }))
}
