//! RuntimeService.RuntimeConfig

use holdfast_cri_api::v1;
use tonic::Status;

use crate::Services;

pub fn call(_: &Services, _: v1::RuntimeConfigRequest) -> Result<v1::RuntimeConfigResponse, Status> {
    Ok(v1::RuntimeConfigResponse {
        linux: Some(v1::LinuxRuntimeConfiguration {
            cgroup_driver: v1::CgroupDriver::Cgroupfs.into(),
        }),
    })
}
