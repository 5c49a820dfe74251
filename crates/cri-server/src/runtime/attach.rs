//! RuntimeService.Attach: only the URL; a client that comes with it is attached.

use holdfast_cri_api::v1;
use holdfast_streaming::AttachRequest;
use tonic::Status;

use crate::{Services, error};

pub fn call(services: &Services, request: v1::AttachRequest) -> Result<v1::AttachResponse, Status> {
    let container = super::running_container(services, &request.container_id)?;
    let attach = AttachRequest {
        container: container.id.to_string(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    let url = services.streaming.attach(attach).map_err(error::streaming)?;
    Ok(v1::AttachResponse { url })
}
