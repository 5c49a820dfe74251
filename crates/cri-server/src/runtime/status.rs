//! RuntimeService.Status

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_engine::{CdiStatus, HandlerStatus};
use tonic::Status;

use crate::Services;

pub fn call(services: &Services, request: v1::StatusRequest) -> Result<v1::StatusResponse, Status> {
    let runtime = services.engine.readiness();
    let network = services.engine.network_status();
    let mut conditions = vec![
        condition(
            "RuntimeReady",
            runtime.ready,
            if runtime.ready { "" } else { "RuntimeNotReady" },
            &runtime.message,
        ),
        condition("NetworkReady", network.ready, &network.reason, &network.message),
    ];
    let handlers = services.engine.handlers();
    if let Some(condition) = handlers_condition(&handlers) {
        conditions.push(condition);
    }
    let mut info = BTreeMap::new();
    if request.verbose {
        // crictl lays these over the message's own fields, `runtimeHandlers` among them; and what is no object stays text.
        let details = serde_json::json!({ "handlers": handlers_info(&handlers) });
        info.insert("handlerDetails".to_owned(), details.to_string());
        info.insert("config".to_owned(), services.node.config.to_string());
        let cni = network.config.map(|config| config.to_string());
        let facts = services.engine.facts();
        let confinement = serde_json::json!({
            "apparmor": facts.apparmor.describe(),
            "selinux": facts.selinux.describe(),
        });
        info.insert("confinement".to_owned(), confinement.to_string());
        info.insert("cniconfig".to_owned(), cni.unwrap_or_default());
        info.insert("cdi".to_owned(), cdi(&services.engine.cdi_status()).to_string());
        // The peers say how the last load of CNI's configuration went; for the built-in network the same question.
        let load = match network.ready {
            true => "OK".to_owned(),
            false => format!("{}: {}", network.reason, network.message),
        };
        info.insert("lastCNILoadStatus".to_owned(), load);
        // In place of the Go version that the peers have here.
        let version = serde_json::json!({ "version": services.node.version, "language": "rust" });
        info.insert("holdfast".to_owned(), version.to_string());
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info,
        runtime_handlers: handlers.iter().filter_map(|one| handler(services, one)).collect(),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: services.node.user_namespaces,
            mount_options: true,
        }),
    })
}

/// Which devices can be asked for, and which specs cannot be used and why.
fn cdi(status: &CdiStatus) -> serde_json::Value {
    let broken = status.broken.iter();
    let broken: Vec<_> = broken
        .map(|(what, reason)| serde_json::json!({ "what": what, "reason": reason }))
        .collect();
    serde_json::json!({ "specDirs": status.dirs, "devices": status.devices, "broken": broken })
}

/// One that cannot be used is not shown: a pod that wants it is better not scheduled here.
fn handler(services: &Services, status: &HandlerStatus) -> Option<v1::RuntimeHandler> {
    let found = status.found.as_ref().ok()?;
    let built_in = status.program.is_none();
    let node = &services.node;
    Some(v1::RuntimeHandler {
        name: status.name.clone(),
        features: Some(v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: node.recursive_read_only && (built_in || found.recursive_read_only),
            user_namespaces: node.user_namespaces && built_in,
        }),
    })
}

/// Only where there are handlers with a program: for people, and for those who watch nodes.
fn handlers_condition(handlers: &[HandlerStatus]) -> Option<v1::RuntimeCondition> {
    let mut external = handlers.iter().filter(|one| one.program.is_some()).peekable();
    external.peek()?;
    let broken: Vec<String> = external
        .filter_map(|one| one.found.as_ref().err().map(|why| format!("{}: {why}", one.name)))
        .collect();
    let reason = if broken.is_empty() { "" } else { "HandlerNotUsable" };
    Some(condition(
        "RuntimeHandlersReady",
        broken.is_empty(),
        reason,
        &broken.join("; "),
    ))
}

fn handlers_info(handlers: &[HandlerStatus]) -> serde_json::Value {
    let one = |one: &HandlerStatus| {
        let found = one.found.as_ref().ok();
        serde_json::json!({
            "name": one.name,
            "path": one.program,
            "version": found.map(|found| found.version.clone()),
            "hooks": found.map(|found| found.hooks.clone()),
            "error": one.found.as_ref().err(),
        })
    };
    handlers.iter().map(one).collect()
}

fn condition(name: &str, status: bool, reason: &str, message: &str) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: name.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}
