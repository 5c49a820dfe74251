//! Records for the tests of this crate, by way of JSON: fields that it does not care about may come and go.

use holdfast_model::{SandboxId, SandboxRecord, SandboxSpec, SandboxState};
use serde_json::json;

pub(crate) fn sandbox(id: SandboxId) -> SandboxRecord {
    serde_json::from_value(json!({
        "id": id,
        "spec": SandboxSpec::default(),
        "state": SandboxState::Ready,
        "created_at": 1,
        "handler": "",
        "cgroup": "",
        "hostname": "",
        "pause_pid": 7,
        "boot_id": "",
    }))
    .unwrap()
}
