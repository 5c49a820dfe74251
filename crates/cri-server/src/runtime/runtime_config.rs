//! RuntimeService.RuntimeConfig

use holdfast_cri_api::v1;
use holdfast_engine::CgroupDriver;
use tonic::Status;

use crate::Services;

pub fn call(services: &Services, _: v1::RuntimeConfigRequest) -> Result<v1::RuntimeConfigResponse, Status> {
    let driver = match services.engine.cgroup_driver() {
        CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
    };
    Ok(v1::RuntimeConfigResponse {
        linux: Some(v1::LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    })
}
