//! RuntimeService.Exec: only the URL; the command starts when a client comes with it.

use holdfast_cri_api::v1;
use holdfast_streaming::ExecRequest;
use tonic::Status;

use crate::{Services, error};

pub fn call(services: &Services, request: v1::ExecRequest) -> Result<v1::ExecResponse, Status> {
    let container = super::running_container(services, &request.container_id)?;
    let exec = ExecRequest {
        container: container.id.to_string(),
        command: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let url = services.streaming.exec(exec).map_err(error::streaming)?;
    Ok(v1::ExecResponse { url })
}
