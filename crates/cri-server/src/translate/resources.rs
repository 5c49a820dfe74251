//! Limits. On the wire zero and empty mean "not given".

use holdfast_cri_api::v1;
use holdfast_model::{HugepageLimit, Resources};

pub fn resources(wire: v1::LinuxContainerResources) -> Resources {
    Resources {
        cpu_period: given(wire.cpu_period),
        cpu_quota: given(wire.cpu_quota),
        cpu_shares: given(wire.cpu_shares),
        memory_limit: given(wire.memory_limit_in_bytes),
        memory_swap_limit: given(wire.memory_swap_limit_in_bytes),
        oom_score_adj: wire.oom_score_adj,
        cpuset_cpus: Some(wire.cpuset_cpus).filter(|text| !text.is_empty()),
        cpuset_mems: Some(wire.cpuset_mems).filter(|text| !text.is_empty()),
        hugepages: wire
            .hugepage_limits
            .into_iter()
            .map(|l| HugepageLimit {
                page_size: l.page_size,
                limit: l.limit,
            })
            .collect(),
        unified: wire.unified,
    }
}

pub fn linux_resources(model: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: model.cpu_period.unwrap_or_default(),
        cpu_quota: model.cpu_quota.unwrap_or_default(),
        cpu_shares: model.cpu_shares.unwrap_or_default(),
        memory_limit_in_bytes: model.memory_limit.unwrap_or_default(),
        memory_swap_limit_in_bytes: model.memory_swap_limit.unwrap_or_default(),
        oom_score_adj: model.oom_score_adj,
        cpuset_cpus: model.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: model.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: model
            .hugepages
            .iter()
            .map(|l| v1::HugepageLimit {
                page_size: l.page_size.clone(),
                limit: l.limit,
            })
            .collect(),
        unified: model.unified.clone(),
    }
}

fn given(number: i64) -> Option<i64> {
    (number != 0).then_some(number)
}
