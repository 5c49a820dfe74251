//! What puts one of the kernel's files back as it was before a write. Pure: `plan` does the reading.
//!
//! Most files read as they are written. Those of one line a device or resource want the one line back that was changed,
//! or the word for "no limit" where there was none.

/// Lines to write, in this order, to have back what `file` held when it read `text`, after `value` was written to it.
pub(crate) fn before(file: &str, value: &str, text: &str) -> Vec<String> {
    let key = value.split_whitespace().next().unwrap_or_default();
    let line = || {
        let of_key = |line: &&str| line.split_whitespace().next() == Some(key);
        text.lines().find(of_key).map(|line| line.trim().to_owned())
    };
    let or = |none: &str| line().unwrap_or_else(|| format!("{key} {none}"));
    match file {
        "io.max" => vec![or("rbps=max wbps=max riops=max wiops=max")],
        "rdma.max" => vec![or("hca_handle=max hca_object=max")],
        "io.latency" => vec![or("target=0")],
        "misc.max" => vec![or("max")],
        "io.weight" | "io.bfq.weight" => vec![if key.contains(':') {
            or("default")
        } else {
            default_weight(text)
        }],
        "blkio.weight_device" | "blkio.bfq.weight_device" => vec![or("0")],
        _ if file.starts_with("blkio.throttle.") => vec![or("0")],
        // `oom_kill_disable 0` and more.
        "memory.oom_control" => {
            let disabled = crate::io::keyed(text, "oom_kill_disable");
            vec![disabled.unwrap_or_default().to_string()]
        }
        // The reason why a partition is invalid follows its name.
        "cpuset.cpus.partition" => vec![text.split_whitespace().next().unwrap_or("member").to_owned()],
        // An empty write does nothing; an empty line empties the list.
        _ if text.trim().is_empty() => vec!["\n".to_owned()],
        _ => vec![text.trim().to_owned()],
    }
}

/// The line of a file that a write changes, where it changes one and leaves the others: of a device, or a resource.
pub(crate) fn key<'a>(file: &str, value: &'a str) -> Option<&'a str> {
    let of_lines = matches!(file, "io.max" | "io.latency" | "rdma.max" | "misc.max")
        || file.starts_with("blkio.throttle.")
        || file.ends_with("weight_device")
        || (file.starts_with("io.") && file.ends_with("weight"));
    let first = value.split_whitespace().next();
    first.filter(|word| of_lines && (!file.ends_with("weight") || word.contains(':')))
}

/// Where version 2 shows what an empty list comes to.
pub(crate) fn effective(file: &str) -> Option<&'static str> {
    match file {
        "cpuset.cpus" => Some("cpuset.cpus.effective"),
        "cpuset.mems" => Some("cpuset.mems.effective"),
        _ => None,
    }
}

/// A file that changes with `file`: its own value is lost unless it is put back too.
pub(crate) fn companion(file: &str) -> Option<&'static str> {
    match file {
        // Leaving SCHED_IDLE resets the weight.
        "cpu.idle" | "cpu.weight.nice" => Some("cpu.weight"),
        _ => None,
    }
}

/// Of `default 100` with or without lines of devices, or of a bare number.
fn default_weight(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default().trim();
    let of_default = text.lines().find_map(|line| line.trim().strip_prefix("default "));
    // A number alone is taken by every one of these files.
    of_default.unwrap_or(first).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(key("io.max", "8:0 rbps=1"), Some("8:0"));
        assert_eq!(key("io.weight", "8:0 5"), Some("8:0"));
        assert_eq!(key("io.weight", "default 5"), None);
        assert_eq!(key("blkio.throttle.read_bps_device", "8:0 5"), Some("8:0"));
        assert_eq!(key("blkio.bfq.weight_device", "8:0 5"), Some("8:0"));
        assert_eq!(key("cpu.max", "5 100000"), None);
        assert_eq!(key("memory.max", "5"), None);
    }

    #[test]
    fn what_was_there_is_written_again() {
        let devices =
            "8:0 rbps=1000 wbps=max riops=max wiops=max\n8:16 rbps=max wbps=7 riops=max wiops=max\n";
        let table = [
            ("cpu.max", "1000 100000", "max 100000\n", "max 100000"),
            ("memory.max", "5", "max\n", "max"),
            ("cpuset.cpus", "0", "\n", "\n"),
            ("cpuset.cpus", "0", "0-1\n", "0-1"),
            (
                "io.max",
                "8:16 wbps=9",
                devices,
                "8:16 rbps=max wbps=7 riops=max wiops=max",
            ),
            (
                "io.max",
                "8:32 wbps=9",
                devices,
                "8:32 rbps=max wbps=max riops=max wiops=max",
            ),
            ("io.weight", "50", "default 100\n8:0 30\n", "default 100"),
            ("io.weight", "default 50", "default 100\n", "default 100"),
            ("io.bfq.weight", "50", "100\n", "100"),
            ("io.weight", "8:0 50", "default 100\n8:0 30\n", "8:0 30"),
            ("io.weight", "8:16 50", "default 100\n8:0 30\n", "8:16 default"),
            ("io.latency", "8:0 target=50", "", "8:0 target=0"),
            (
                "rdma.max",
                "mlx5_0 hca_handle=2",
                "mlx5_0 hca_handle=max hca_object=9\n",
                "mlx5_0 hca_handle=max hca_object=9",
            ),
            ("misc.max", "res_a 3", "res_a max\nres_b 4\n", "res_a max"),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:0 9\n", "8:0 9"),
            ("blkio.throttle.read_bps_device", "8:0 5", "", "8:0 0"),
            (
                "memory.oom_control",
                "1",
                "oom_kill_disable 0\nunder_oom 0\n",
                "0",
            ),
            (
                "cpuset.cpus.partition",
                "member",
                "root invalid (Cpu list empty)\n",
                "root",
            ),
            (
                "memory.limit_in_bytes",
                "5",
                "9223372036854771712\n",
                "9223372036854771712",
            ),
        ];
        for (file, value, text, want) in table {
            // `io.weight` of one number reads `default N`, and takes that too.
            assert_eq!(
                before(file, value, text),
                [want.strip_prefix("default ").unwrap_or(want)],
                "{file} {value}"
            );
        }
    }
}
