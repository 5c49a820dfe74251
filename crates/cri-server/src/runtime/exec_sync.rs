//! RuntimeService.ExecSync

use std::time::Duration;

use holdfast_cri_api::v1;
use holdfast_engine::ExecRequest;
use holdfast_model::Invalid;
use tonic::Status;

use crate::{Services, error};

pub async fn call(services: &Services, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(error::missing("cmd"));
    }
    if let Some(n) = request.cmd.iter().position(|arg| arg.contains('\0')) {
        return Err(error::invalid(Invalid::new(
            format!("cmd[{n}]"),
            "contains a NUL byte",
        )));
    }
    let timeout = u64::try_from(request.timeout).unwrap_or(0);
    let exec = ExecRequest {
        command: request.cmd,
        timeout: (timeout > 0).then(|| Duration::from_secs(timeout)),
    };
    let output = services
        .engine
        .exec_sync(&request.container_id, exec)
        .await
        .map_err(error::engine)?;
    if output.timed_out {
        // kubelet's probes look for this code.
        return Err(Status::deadline_exceeded(format!(
            "the command timed out: it ran longer than {timeout} s and was killed"
        )));
    }
    if output.discarded > 0 {
        tracing::info!(
            container = request.container_id,
            discarded = output.discarded,
            "an exec wrote more than one answer can hold"
        );
    }
    Ok(v1::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.exit_code,
    })
}
