//! From the OCI runtime specification's `linux.resources` to [`Limits`].

use crate::limits::{BlockIo, Cpu, Limits, Memory, Throttle};
use crate::{DeviceKind, DeviceRule, Error};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, LinuxThrottleDevice,
};
use std::collections::BTreeMap;

/// Device numbers are 12 and 20 bits wide.
const MAX_MAJOR: i64 = (1 << 12) - 1;
const MAX_MINOR: i64 = (1 << 20) - 1;

impl Limits {
    /// Refuses what no kernel could take; what one version cannot do is found out when it is applied.
    pub fn from_oci(from: &LinuxResources) -> Result<Self, Error> {
        let mut out = Self::default();
        if let Some(cpu) = from.cpu() {
            out.cpu = Cpu {
                shares: cpu.shares(),
                quota: cpu.quota(),
                period: cpu.period(),
                burst: cpu.burst(),
                idle: cpu.idle(),
                cpus: cpu.cpus().clone(),
                mems: cpu.mems().clone(),
            };
        }
        if let Some(memory) = from.memory() {
            out.memory = Memory {
                limit: memory.limit(),
                swap: memory.swap(),
                reservation: memory.reservation(),
                swappiness: memory.swappiness(),
                disable_oom_killer: memory.disable_oom_killer(),
                check_before_update: memory.check_before_update().unwrap_or(false),
            };
        }
        out.pids = from.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit);
        for page in from.hugepage_limits().iter().flatten() {
            out.hugepages.push(hugepage(page.page_size(), page.limit())?);
        }
        if let Some(block_io) = from.block_io() {
            out.block_io = convert_block_io(block_io)?;
        }
        if let Some(devices) = from.devices() {
            let rules: Result<Vec<Vec<DeviceRule>>, Error> = devices.iter().map(device_rules).collect();
            out.devices = Some(rules?.concat());
        }
        for (name, value) in from.unified().iter().flatten() {
            crate::v2::check_unified(name)?;
            out.unified.insert(name.clone(), value.clone());
        }
        Ok(out)
    }
}

/// Checks that a page size is spelled as the kernel spells its files (`64KB`, `2MB`, `1GB`).
fn hugepage(size: &str, limit: i64) -> Result<(String, u64), Error> {
    let refuse = |field, value: String, problem| {
        Err(Error::Limit {
            field,
            value,
            problem,
        })
    };
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    if !digits
        .is_some_and(|it| !it.is_empty() && it.len() < 8 && it.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return refuse(
            "huge page size",
            size.chars().take(64).collect(),
            "it is not like 2MB or 1GB",
        );
    }
    match u64::try_from(limit) {
        Ok(limit) => Ok((size.to_owned(), limit)),
        Err(_) => refuse("huge page limit", limit.to_string(), "it cannot be negative"),
    }
}

fn device_number(value: Option<i64>, most: i64) -> Result<Option<u32>, Error> {
    match value {
        // -1 and absence both mean "any".
        None | Some(-1) => Ok(None),
        Some(value) if (0..=most).contains(&value) => Ok(u32::try_from(value).ok()),
        Some(value) => Err(Error::Limit {
            field: "device number",
            value: value.to_string(),
            problem: "no device can have it",
        }),
    }
}

fn device_rules(from: &LinuxDeviceCgroup) -> Result<Vec<DeviceRule>, Error> {
    let kind = match from.typ() {
        None | Some(LinuxDeviceType::A) => DeviceKind::All,
        Some(LinuxDeviceType::B) => DeviceKind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => DeviceKind::Char,
        // A FIFO is no device: there is nothing to filter.
        Some(LinuxDeviceType::P) => return Ok(Vec::new()),
    };
    let access = from
        .access()
        .as_deref()
        .filter(|it| !it.is_empty())
        .unwrap_or("rwm");
    if let Some(wrong) = access.chars().find(|letter| !"rwm".contains(*letter)) {
        return Err(Error::Limit {
            field: "device access",
            value: wrong.to_string(),
            problem: "it is made of r, w and m",
        });
    }
    Ok(vec![DeviceRule {
        allow: from.allow(),
        kind,
        major: device_number(from.major(), MAX_MAJOR)?,
        minor: device_number(from.minor(), MAX_MINOR)?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    }])
}

fn convert_block_io(from: &LinuxBlockIo) -> Result<BlockIo, Error> {
    let numbers = |major, minor| -> Result<(u32, u32), Error> {
        let major = device_number(Some(major), MAX_MAJOR)?;
        let minor = device_number(Some(minor), MAX_MINOR)?;
        major.zip(minor).ok_or_else(|| Error::Limit {
            field: "block device number",
            value: "-1".into(),
            problem: "an I/O limit is for one device",
        })
    };
    let mut out = BlockIo {
        weight: from.weight(),
        ..BlockIo::default()
    };
    for device in from.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let (major, minor) = numbers(device.major(), device.minor())?;
            out.weight_device.push((major, minor, weight));
        }
    }
    type Pick = fn(&mut Throttle) -> &mut Option<u64>;
    let lists: [(&Option<Vec<LinuxThrottleDevice>>, Pick); 4] = [
        (from.throttle_read_bps_device(), |it| &mut it.read_bps),
        (from.throttle_write_bps_device(), |it| &mut it.write_bps),
        (from.throttle_read_iops_device(), |it| &mut it.read_iops),
        (from.throttle_write_iops_device(), |it| &mut it.write_iops),
    ];
    let mut devices: BTreeMap<(u32, u32), Throttle> = BTreeMap::new();
    for (list, pick) in lists {
        for device in list.iter().flatten() {
            let (major, minor) = numbers(device.major(), device.minor())?;
            let entry = devices.entry((major, minor)).or_insert_with(|| Throttle {
                major,
                minor,
                ..Throttle::default()
            });
            *pick(entry) = Some(device.rate());
        }
    }
    out.throttle = devices.into_values().collect();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(json: &str) -> Result<Limits, Error> {
        Limits::from_oci(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn resources_are_taken_over() {
        let it = limits(
            r#"{
              "cpu": {"shares": 512, "quota": 20000, "period": 100000, "cpus": "0-1"},
              "memory": {"limit": 1048576, "swap": 1048576},
              "pids": {"limit": 10},
              "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
              "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"}],
              "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}],
                          "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 9}]},
              "unified": {"memory.oom.group": "1"}
            }"#,
        )
        .unwrap();
        assert_eq!(it.cpu.shares, Some(512));
        assert_eq!(it.memory.limit, Some(1_048_576));
        assert_eq!(it.pids, Some(10));
        assert_eq!(it.hugepages, [("2MB".to_owned(), 0)]);
        let devices = it.devices.as_ref().unwrap();
        assert!(!devices[0].allow && devices[0].mknod && devices[0].major.is_none());
        assert!(devices[1].allow && !devices[1].mknod && devices[1].minor == Some(3));
        assert_eq!(it.block_io.throttle.len(), 1);
        assert_eq!(it.block_io.throttle[0].read_bps, Some(7));
        assert_eq!(it.block_io.throttle[0].write_iops, Some(9));
        let text = serde_json::to_string(&it).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&text).unwrap(), it);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let table = [
            (
                r#"{"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}"#,
                "huge page size",
            ),
            (
                r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}"#,
                "huge page limit",
            ),
            (
                r#"{"devices": [{"allow": true, "access": "rx"}]}"#,
                "device access",
            ),
            (
                r#"{"devices": [{"allow": true, "type": "c", "major": 99999}]}"#,
                "device number",
            ),
            (r#"{"unified": {"cgroup.procs": "1"}}"#, "cgroup.procs"),
        ];
        for (json, part) in table {
            let text = limits(json).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }
}
