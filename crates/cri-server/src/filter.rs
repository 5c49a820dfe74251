//! The filters of the List calls. Everything that is given must match; ids match by prefix, as with both Go runtimes.

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_model::{ContainerRecord, Invalid, SandboxRecord};
use tonic::Status;

use crate::error;
use crate::translate::{wire_container_state, wire_sandbox_state};

/// What no pod can be, whatever there is: refused, not answered with an empty list.
pub fn check_sandbox(filter: Option<&v1::PodSandboxFilter>) -> Result<(), Status> {
    check_state::<v1::PodSandboxState>(filter.and_then(|filter| filter.state).map(|wanted| wanted.state))
}

/// The same for containers.
pub fn check_container(filter: Option<&v1::ContainerFilter>) -> Result<(), Status> {
    check_state::<v1::ContainerState>(filter.and_then(|filter| filter.state).map(|wanted| wanted.state))
}

fn check_state<S: TryFrom<i32>>(wanted: Option<i32>) -> Result<(), Status> {
    match wanted {
        Some(number) if S::try_from(number).is_err() => Err(error::invalid(Invalid::new(
            "filter.state",
            format!("{number} is no state"),
        ))),
        _ => Ok(()),
    }
}

pub fn sandbox(filter: Option<&v1::PodSandboxFilter>, record: &SandboxRecord) -> bool {
    let Some(filter) = filter else { return true };
    record.id.as_str().starts_with(&filter.id)
        && filter
            .state
            .is_none_or(|wanted| wanted.state == i32::from(wire_sandbox_state(record.state)))
        && labels(&filter.label_selector, &record.spec.labels)
}

pub fn container(filter: Option<&v1::ContainerFilter>, record: &ContainerRecord) -> bool {
    let Some(filter) = filter else { return true };
    record.id.as_str().starts_with(&filter.id)
        && record.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .is_none_or(|wanted| wanted.state == i32::from(wire_container_state(record.state)))
        && labels(&filter.label_selector, &record.spec.labels)
}

pub fn sandbox_stats(filter: Option<&v1::PodSandboxStatsFilter>, record: &SandboxRecord) -> bool {
    let Some(filter) = filter else { return true };
    record.id.as_str().starts_with(&filter.id) && labels(&filter.label_selector, &record.spec.labels)
}

pub fn container_stats(filter: Option<&v1::ContainerStatsFilter>, record: &ContainerRecord) -> bool {
    let Some(filter) = filter else { return true };
    record.id.as_str().starts_with(&filter.id)
        && record.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && labels(&filter.label_selector, &record.spec.labels)
}

/// Equality of each pair that the selector names; there is no other operator in the CRI.
fn labels(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use holdfast_model::{ContainerId, SandboxId};

    use super::*;
    use crate::testing;

    fn selector(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn all_that_is_given_must_match() {
        let mut record = testing::sandbox(SandboxId::from_bytes([0xab; 32]));
        record.spec.labels = selector("app", "web");
        let matches = |change: &dyn Fn(&mut v1::PodSandboxFilter)| {
            let mut filter = v1::PodSandboxFilter::default();
            change(&mut filter);
            sandbox(Some(&filter), &record)
        };
        assert!(sandbox(None, &record));
        assert!(matches(&|_| ()));
        assert!(matches(&|f| f.id = "abab".into()));
        assert!(!matches(&|f| f.id = "bab".into()));
        assert!(matches(&|f| f.state = Some(v1::PodSandboxStateValue { state: 0 })));
        assert!(!matches(
            &|f| f.state = Some(v1::PodSandboxStateValue { state: 1 })
        ));
        assert!(matches(&|f| f.label_selector = selector("app", "web")));
        assert!(!matches(&|f| f.label_selector = selector("app", "db")));
        assert!(!matches(&|f| f.label_selector = selector("absent", "")));
    }

    #[test]
    fn odd_filters() {
        let record = testing::sandbox(SandboxId::from_bytes([0xab; 32]));
        let matches = |filter: &v1::PodSandboxFilter| sandbox(Some(filter), &record);
        // Not hexadecimal, longer than an id, in capitals: no pod has it.
        for id in ["xyz", "AB", " ", &"ab".repeat(40)] {
            assert!(!matches(&v1::PodSandboxFilter {
                id: id.to_owned(),
                ..Default::default()
            }));
        }
        let many = (0..10_000).map(|n| (format!("key-{n}"), String::new()));
        assert!(!matches(&v1::PodSandboxFilter {
            label_selector: many.collect(),
            ..Default::default()
        }));
        let state = |state| v1::PodSandboxFilter {
            state: Some(v1::PodSandboxStateValue { state }),
            ..Default::default()
        };
        assert!(check_sandbox(Some(&state(1))).is_ok());
        assert!(check_sandbox(None).is_ok());
        let refused = check_sandbox(Some(&state(7))).err().map(|status| status.code());
        assert_eq!(refused, Some(tonic::Code::InvalidArgument));
        let container = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue { state: -1 }),
            ..Default::default()
        };
        assert!(check_container(Some(&container)).is_err());
    }

    #[test]
    fn containers_by_pod() {
        let pod = SandboxId::from_bytes([1; 32]);
        let record = testing::container(ContainerId::from_bytes([2; 32]), pod);
        let of = |id: &str| v1::ContainerFilter {
            pod_sandbox_id: id.to_owned(),
            ..Default::default()
        };
        assert!(container(Some(&of(pod.as_str())), &record));
        assert!(container(Some(&of(pod.short())), &record));
        assert!(!container(Some(&of("02")), &record));
        let exited = v1::ContainerFilter {
            state: Some(v1::ContainerStateValue {
                state: v1::ContainerState::ContainerExited.into(),
            }),
            ..Default::default()
        };
        assert!(!container(Some(&exited), &record));
        let stats = |id: &str, pod: &str| v1::ContainerStatsFilter {
            id: id.to_owned(),
            pod_sandbox_id: pod.to_owned(),
            ..Default::default()
        };
        assert!(container_stats(Some(&stats("02", "")), &record));
        assert!(container_stats(Some(&stats("", "01")), &record));
        assert!(!container_stats(Some(&stats("02", "02")), &record));
    }
}
