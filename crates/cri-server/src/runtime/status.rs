//! RuntimeService.Status

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_engine::CdiStatus;
use tonic::Status;

use crate::Services;

pub fn call(services: &Services, request: v1::StatusRequest) -> Result<v1::StatusResponse, Status> {
    let runtime = services.engine.readiness();
    let network = services.engine.network_status();
    let conditions = vec![
        condition(
            "RuntimeReady",
            runtime.ready,
            if runtime.ready { "" } else { "RuntimeNotReady" },
            &runtime.message,
        ),
        condition("NetworkReady", network.ready, &network.reason, &network.message),
    ];
    let features = v1::RuntimeHandlerFeatures {
        recursive_read_only_mounts: services.node.recursive_read_only,
        user_namespaces: services.node.user_namespaces,
    };
    let mut info = BTreeMap::new();
    if request.verbose {
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
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions }),
        info,
        runtime_handlers: services
            .node
            .handlers
            .iter()
            .map(|name| v1::RuntimeHandler {
                name: name.clone(),
                features: Some(features),
            })
            .collect(),
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

fn condition(name: &str, status: bool, reason: &str, message: &str) -> v1::RuntimeCondition {
    v1::RuntimeCondition {
        r#type: name.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}
