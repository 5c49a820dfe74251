//! Which limits an update comes to. Pure.

use std::collections::BTreeMap;

use holdfast_model::{HugepageLimit, Invalid, Resources};

/// What has to be written for `update`, on top of `kept`: some files hold two fields, and the one that the update leaves
/// out stays as it was set before. The error names the field as CRI spells it below `field`.
pub(crate) fn to_write(field: &str, kept: &Resources, update: &Resources) -> Result<Resources, Invalid> {
    let merged = kept.updated(update);
    let mut out = update.clone();
    if update.cpu_period.is_some() || update.cpu_quota.is_some() {
        (out.cpu_period, out.cpu_quota) = (merged.cpu_period, merged.cpu_quota);
    }
    if update.memory_limit.is_some() || update.memory_swap_limit.is_some() {
        (out.memory_limit, out.memory_swap_limit) = (merged.memory_limit, merged.memory_swap_limit);
        consistent(field, &merged, update)?;
    }
    out.validate(field)?;
    Ok(out)
}

/// "Memory and swap" can be below the memory limit because one of them was set earlier.
fn consistent(field: &str, merged: &Resources, update: &Resources) -> Result<(), Invalid> {
    let (limit, both) = (merged.memory_limit, merged.memory_swap_limit.unwrap_or(0));
    if both <= 0 || limit.is_some_and(|limit| (1..=both).contains(&limit)) {
        return Ok(());
    }
    let set = if update.memory_swap_limit.is_some() {
        ""
    } else {
        ", set earlier,"
    };
    let reason = match limit {
        Some(limit) if limit > 0 => {
            format!("{both} (memory and swap){set} is less than the memory limit {limit}")
        }
        _ => format!("{both} (memory and swap){set} needs a memory limit beside it"),
    };
    Err(Invalid::new(
        format!("{field}.memory_swap_limit_in_bytes"),
        reason,
    ))
}

/// A pod's limits: its containers' with the overhead on top. What is not limited for the containers is not limited by the
/// overhead.
pub(crate) fn of_pod(overhead: Option<&Resources>, resources: Option<&Resources>) -> Resources {
    let none = Resources::default();
    let (extra, own) = (overhead.unwrap_or(&none), resources.unwrap_or(&none));
    let positive = |value: Option<i64>| value.filter(|value| *value > 0);
    let sum = |own: Option<i64>, extra: Option<i64>| match positive(own) {
        Some(own) => Some(own.saturating_add(positive(extra).unwrap_or(0))),
        None => own,
    };
    let period = positive(own.cpu_period).unwrap_or(DEFAULT_PERIOD);
    let extra_quota = positive(extra.cpu_quota).map(|quota| {
        let their_period = positive(extra.cpu_period).unwrap_or(DEFAULT_PERIOD);
        let scaled = i128::from(quota) * i128::from(period) / i128::from(their_period);
        i64::try_from(scaled).unwrap_or(i64::MAX)
    });
    let shares = [own.cpu_shares, extra.cpu_shares].map(positive);
    let swap = |own: &Resources, extra: &Resources| sum(own.memory_swap_limit, positive(extra.memory_limit));
    Resources {
        cpu_period: own.cpu_period,
        cpu_quota: sum(own.cpu_quota, extra_quota),
        cpu_shares: shares.into_iter().flatten().reduce(i64::saturating_add),
        memory_limit: sum(own.memory_limit, extra.memory_limit),
        memory_swap_limit: swap(own, extra),
        oom_score_adj: 0,
        cpuset_cpus: own.cpuset_cpus.clone(),
        cpuset_mems: own.cpuset_mems.clone(),
        hugepages: pages(&own.hugepages, &extra.hugepages),
        unified: own.unified.clone(),
    }
}

/// The kernel's own, microseconds.
const DEFAULT_PERIOD: i64 = 100_000;

fn pages(own: &[HugepageLimit], extra: &[HugepageLimit]) -> Vec<HugepageLimit> {
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    for limit in own.iter().chain(extra) {
        let sum = all.entry(&limit.page_size).or_default();
        *sum = sum.saturating_add(limit.limit);
    }
    all.into_iter()
        .map(|(page_size, limit)| HugepageLimit {
            page_size: page_size.to_owned(),
            limit,
        })
        .collect()
}

/// Limits that the pod had and has no longer are lifted.
pub(crate) fn lifting(before: &Resources, mut now: Resources) -> Resources {
    let lift = |before: Option<i64>, now: Option<i64>| match (before, now) {
        (Some(before), None) if before > 0 => Some(-1),
        _ => now,
    };
    now.cpu_quota = lift(before.cpu_quota, now.cpu_quota);
    now.memory_limit = lift(before.memory_limit, now.memory_limit);
    now.memory_swap_limit = lift(before.memory_swap_limit, now.memory_swap_limit);
    now
}

/// The field of a request that a file of the kernel's came from.
pub(crate) fn field(file: &str, wanted: &Resources) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    if wanted.unified.contains_key(file) {
        return format!("unified[{file:?}]");
    }
    let known = match file {
        "cpu.shares" | "cpu.weight" => "cpu_shares",
        "cpu.cfs_period_us" => "cpu_period",
        "cpu.cfs_quota_us" | "cpu.max" => "cpu_quota",
        "cpuset.cpus" => "cpuset_cpus",
        "cpuset.mems" => "cpuset_mems",
        "memory.limit_in_bytes" | "memory.max" => "memory_limit_in_bytes",
        "memory.memsw.limit_in_bytes" | "memory.swap.max" => "memory_swap_limit_in_bytes",
        _ if file.starts_with("hugetlb.") => "hugepage_limits",
        _ => file,
    };
    known.to_owned()
}

/// Puts limits into a recorded OCI runtime spec; what is in it beyond CRI's fields stays.
pub(crate) fn into_spec(spec: &str, merged: &Resources) -> Result<String, serde_json::Error> {
    use serde_json::Value;
    let mut spec: Value = serde_json::from_str(spec)?;
    let Value::Object(new) = serde_json::to_value(crate::spec::oci_resources(merged))? else {
        return serde_json::to_string(&spec);
    };
    let known = &mut spec["linux"]["resources"];
    for (key, value) in new {
        match (value, &mut known[&key]) {
            (Value::Null, _) => {}
            (Value::Object(new), Value::Object(known)) if key != "unified" => {
                known.extend(new.into_iter().filter(|(_, value)| !value.is_null()));
            }
            (value, slot) => *slot = value,
        }
    }
    if merged.oom_score_adj != 0 {
        spec["process"]["oomScoreAdj"] = merged.oom_score_adj.into();
    }
    serde_json::to_string(&spec)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn memory(limit: i64, both: i64) -> Resources {
        let given = |value: i64| (value != 0).then_some(value);
        Resources {
            memory_limit: given(limit),
            memory_swap_limit: given(both),
            ..Resources::default()
        }
    }

    fn cpu(quota: i64, period: i64, shares: i64) -> Resources {
        let given = |value: i64| (value != 0).then_some(value);
        Resources {
            cpu_quota: given(quota),
            cpu_period: given(period),
            cpu_shares: given(shares),
            ..Resources::default()
        }
    }

    #[test]
    fn one_half_of_a_pair_keeps_the_other() {
        let out = to_write("linux", &cpu(50_000, 100_000, 7), &cpu(0, 200_000, 0)).unwrap();
        assert_eq!(out, cpu(50_000, 200_000, 0));
        let out = to_write("linux", &memory(100, 150), &memory(120, 0)).unwrap();
        assert_eq!(out, memory(120, 150));
        // Nothing that was not asked for.
        assert_eq!(
            to_write("linux", &memory(100, 150), &cpu(1, 0, 0)).unwrap(),
            cpu(1, 0, 0)
        );
    }

    #[test]
    fn contradictions_name_the_field() {
        let error = |kept, update| to_write("linux", &kept, &update).unwrap_err().to_string();
        assert_eq!(
            error(memory(100, 150), memory(200, 0)),
            "linux.memory_swap_limit_in_bytes: 150 (memory and swap), set earlier, is less than the memory limit 200"
        );
        assert_eq!(
            error(memory(100, 150), memory(-1, 0)),
            "linux.memory_swap_limit_in_bytes: 150 (memory and swap), set earlier, needs a memory limit beside it"
        );
        assert_eq!(
            error(memory(0, 0), memory(0, 9)),
            "linux.memory_swap_limit_in_bytes: 9 (memory and swap) needs a memory limit beside it"
        );
        assert!(error(memory(0, 0), cpu(-7, 0, 0)).starts_with("linux.cpu_quota: "));
    }

    #[test]
    fn a_pods_limits_are_its_containers_and_the_overhead() {
        let both = |own: Resources, extra: Resources| of_pod(Some(&extra), Some(&own));
        assert_eq!(both(memory(100, 150), memory(10, 0)), memory(110, 160));
        // An overhead is no limit where the containers have none.
        assert_eq!(both(memory(0, 0), memory(10, 0)), memory(0, 0));
        assert_eq!(
            both(cpu(50_000, 50_000, 512), cpu(10_000, 100_000, 102)),
            cpu(55_000, 50_000, 614)
        );
        assert_eq!(of_pod(None, None), Resources::default());
        let page = |limit| HugepageLimit {
            page_size: "2MB".into(),
            limit,
        };
        let pages = |limit| Resources {
            hugepages: vec![page(limit)],
            ..Resources::default()
        };
        assert_eq!(both(pages(4), pages(2)), pages(6));
        assert_eq!(lifting(&memory(100, 150), memory(0, 0)), memory(-1, -1));
        assert_eq!(lifting(&memory(100, 0), memory(90, 0)), memory(90, 0));
    }

    #[test]
    fn the_recorded_spec_keeps_what_is_not_ours() {
        let spec = r#"{"process":{"oomScoreAdj":5},"linux":{"resources":{"devices":[{"allow":false}],
            "cpu":{"shares":2,"burst":9},"pids":{"limit":4},"unified":{"a.b":"1"}}}}"#;
        let mut wanted = cpu(50_000, 100_000, 512);
        wanted.oom_score_adj = 7;
        wanted.unified = [("memory.high".to_owned(), "5".to_owned())].into();
        let spec: serde_json::Value = serde_json::from_str(&into_spec(spec, &wanted).unwrap()).unwrap();
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["cpu"]["shares"], 512);
        assert_eq!(resources["cpu"]["burst"], 9);
        assert_eq!(resources["pids"]["limit"], 4);
        assert_eq!(resources["devices"][0]["allow"], false);
        assert_eq!(resources["unified"], serde_json::json!({"memory.high": "5"}));
        assert_eq!(spec["process"]["oomScoreAdj"], 7);
    }

    #[test]
    fn files_lead_back_to_fields() {
        let mut wanted = Resources::default();
        wanted.unified.insert("cpu.max".into(), "1".into());
        assert_eq!(field("/sys/fs/cgroup/a/cpu.max", &wanted), "unified[\"cpu.max\"]");
        assert_eq!(
            field("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", &wanted),
            "memory_limit_in_bytes"
        );
        assert_eq!(field("hugetlb.2MB.max", &wanted), "hugepage_limits");
    }
}
