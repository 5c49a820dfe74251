//! Limits and the device rules of a container's cgroup.

use holdfast_model::Resources;
use oci_spec::runtime::{
    LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxHugepageLimit, LinuxMemory, LinuxResources,
};

use super::{HostDevice, Inputs};

pub(crate) fn build(inputs: &Inputs<'_>) -> LinuxResources {
    let mut resources = oci(&inputs.container.resources);
    resources.set_devices(Some(device_rules(inputs)));
    resources
}

/// Limits only, without device rules: what an update may change.
pub fn oci(wanted: &Resources) -> LinuxResources {
    let positive = |value: Option<i64>| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
    };
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive(wanted.cpu_shares));
    cpu.set_quota(wanted.cpu_quota.filter(|quota| *quota != 0));
    cpu.set_period(positive(wanted.cpu_period));
    cpu.set_cpus(wanted.cpuset_cpus.clone().filter(|list| !list.is_empty()));
    cpu.set_mems(wanted.cpuset_mems.clone().filter(|list| !list.is_empty()));
    let mut memory = LinuxMemory::default();
    memory.set_limit(wanted.memory_limit.filter(|limit| *limit != 0));
    memory.set_swap(wanted.memory_swap_limit.filter(|limit| *limit != 0));

    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu));
    resources.set_memory(Some(memory));
    if !wanted.hugepages.is_empty() {
        let limit = |limit: &holdfast_model::HugepageLimit| {
            let mut own = LinuxHugepageLimit::default();
            own.set_page_size(limit.page_size.clone());
            own.set_limit(i64::try_from(limit.limit).unwrap_or(i64::MAX));
            own
        };
        resources.set_hugepage_limits(Some(wanted.hugepages.iter().map(limit).collect()));
    }
    if !wanted.unified.is_empty() {
        resources.set_unified(Some(wanted.unified.clone().into_iter().collect()));
    }
    resources
}

pub(crate) fn device_type(device: &HostDevice) -> LinuxDeviceType {
    if device.block {
        LinuxDeviceType::B
    } else {
        LinuxDeviceType::C
    }
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    numbers: (Option<i64>, Option<i64>),
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(kind));
    rule.set_major(numbers.0);
    rule.set_minor(numbers.1);
    rule.set_access(Some(access.to_owned()));
    rule
}

/// Nothing but the devices that every container has (OCI runtime spec, "Default Devices"), and those asked for.
fn device_rules(inputs: &Inputs<'_>) -> Vec<LinuxDeviceCgroup> {
    use LinuxDeviceType::{A, B, C};
    if inputs.container.security.privileged {
        return vec![rule(true, A, (None, None), "rwm")];
    }
    let mut rules = vec![
        rule(false, A, (None, None), "rwm"),
        // Making a node is harmless where opening it is not allowed; package managers do it.
        rule(true, C, (None, None), "m"),
        rule(true, B, (None, None), "m"),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx, and every pts.
    for numbers in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule(true, C, (Some(numbers.0), Some(numbers.1)), "rwm"));
    }
    rules.push(rule(true, C, (Some(136), None), "rwm"));
    for granted in inputs.devices {
        let numbers = (
            Some(i64::from(granted.device.major)),
            Some(i64::from(granted.device.minor)),
        );
        rules.push(rule(
            true,
            device_type(&granted.device),
            numbers,
            &granted.permissions,
        ));
    }
    rules
}
