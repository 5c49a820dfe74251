//! RuntimeService.PortForward: only the URL; a client that comes with it names ports as it goes.

use holdfast_cri_api::v1;
use holdfast_engine::Error;
use holdfast_model::{Invalid, SandboxState};
use tonic::Status;

use crate::{Services, error};

pub fn call(services: &Services, request: v1::PortForwardRequest) -> Result<v1::PortForwardResponse, Status> {
    let sandbox = services
        .engine
        .sandbox(&request.pod_sandbox_id)
        .map_err(error::engine)?;
    if sandbox.state != SandboxState::Ready {
        return Err(error::engine(Error::State {
            what: "pod",
            id: sandbox.id.to_string(),
            state: sandbox.state.name(),
            wanted: "it must be ready",
        }));
    }
    let port = |(n, port): (usize, &i32)| {
        u16::try_from(*port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| {
                Invalid::new(
                    format!("port[{n}]"),
                    format!("{port} is no port: 1 to 65535 are possible"),
                )
            })
    };
    let ports = request
        .port
        .iter()
        .enumerate()
        .map(port)
        .collect::<Result<_, _>>()
        .map_err(error::invalid)?;
    let url = services
        .streaming
        .port_forward(sandbox.id.to_string(), ports)
        .map_err(error::streaming)?;
    Ok(v1::PortForwardResponse { url })
}
