//! Admin.UpgradeMonitors

use holdfast_cri_api::admin::{UpgradeMonitorsRequest, UpgradeMonitorsResponse, UpgradedMonitor};
use tonic::Status;

use crate::Services;

/// What fails for one pod is told with that pod; the others are upgraded all the same.
pub async fn call(services: &Services, _: UpgradeMonitorsRequest) -> Result<UpgradeMonitorsResponse, Status> {
    let outcomes = services.engine.reexec_monitors().await;
    let monitors = outcomes
        .into_iter()
        .map(|done| UpgradedMonitor {
            pod_sandbox_id: done.sandbox.to_string(),
            error: done.outcome.err().map(|error| error.chain()).unwrap_or_default(),
        })
        .collect();
    Ok(UpgradeMonitorsResponse { monitors })
}
