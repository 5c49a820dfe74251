//! The figures that are asked for now and then, such as by a collector of metrics.

use crate::hierarchy::{Controller, Home};
use crate::io::{self, Root, keyed};
use crate::{Cgroup, Error};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Devices and page sizes that are told of.
const MAX_DEVICES: usize = 256;
const MAX_PAGE_SIZES: usize = 16;

/// What [`super::Stats`] leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// By device; empty where nothing was read or written, or nobody counts.
    pub io: Vec<IoStat>,
    pub hugetlb: Vec<HugetlbStat>,
    /// The most memory that was ever used; `None` before Linux 5.19 (version 2).
    pub memory_max_usage: Option<u64>,
    /// How often the limit was met.
    pub memory_failures: u64,
    /// The kernel's own memory on behalf of the cgroup.
    pub kernel_memory: u64,
    pub oom_kills: u64,
    /// Processes in it and below.
    pub processes: Vec<i32>,
}

/// One block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStat {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugetlbStat {
    /// As in the names of the files: `2MB`.
    pub page_size: String,
    pub usage: u64,
    /// Version 1 alone keeps it.
    pub max_usage: Option<u64>,
}

impl Detail {
    pub(crate) fn read(cgroup: &Cgroup) -> Self {
        let hierarchy = cgroup.hierarchy();
        let mut out = Self {
            oom_kills: cgroup.oom_kills().unwrap_or(0),
            processes: cgroup.procs().unwrap_or_default(),
            ..Self::default()
        };
        match hierarchy.home(Controller::Memory) {
            Some(Home::V1(root)) => {
                let file = At::new(cgroup, root);
                out.memory_max_usage = file.number("memory.max_usage_in_bytes");
                out.memory_failures = file.number("memory.failcnt").unwrap_or(0);
                out.kernel_memory = file.number("memory.kmem.usage_in_bytes").unwrap_or(0);
            }
            Some(Home::V2(root)) => {
                let file = At::new(cgroup, root);
                let from = |name, key| file.text(name).ok().and_then(|text| keyed(&text, key));
                out.memory_max_usage = file.number("memory.peak");
                out.memory_failures = from("memory.events", "max").unwrap_or(0);
                // Since Linux 5.18; before, its larger parts.
                out.kernel_memory = from("memory.stat", "kernel").unwrap_or_else(|| {
                    let part = |key| from("memory.stat", key).unwrap_or(0);
                    part("slab") + part("kernel_stack") + part("pagetables") + part("percpu")
                });
            }
            None => {}
        }
        out.io = match hierarchy.home(Controller::Io) {
            Some(Home::V1(root)) => read_blkio(&At::new(cgroup, root)),
            Some(Home::V2(root)) => parse_io_stat(&At::new(cgroup, root).text("io.stat").unwrap_or_default()),
            None => Vec::new(),
        };
        out.hugetlb = match hierarchy.home(Controller::Hugetlb) {
            Some(Home::V1(root)) => read_hugetlb(&At::new(cgroup, root), "usage_in_bytes"),
            Some(Home::V2(root)) => read_hugetlb(&At::new(cgroup, root), "current"),
            None => Vec::new(),
        };
        out
    }
}

/// One cgroup's directory in one hierarchy.
struct At<'a> {
    root: &'a Root,
    dir: String,
}

impl<'a> At<'a> {
    fn new(cgroup: &Cgroup, root: &'a Root) -> Self {
        Self {
            root,
            dir: cgroup.dir_in(root),
        }
    }

    fn text(&self, file: &str) -> Result<String, Error> {
        io::read(self.root, &self.dir, file)
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.text(file).ok()?.trim().parse().ok()
    }
}

/// Names of the sizes of huge pages, as the files are called; they do not change while the machine runs.
fn page_sizes() -> &'static [String] {
    static SIZES: OnceLock<Vec<String>> = OnceLock::new();
    SIZES.get_or_init(|| {
        let Ok(listed) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
            return Vec::new();
        };
        let names = listed
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut sizes: Vec<u64> = names
            .filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok())
            .take(MAX_PAGE_SIZES)
            .collect();
        sizes.sort_unstable();
        sizes.into_iter().map(page_size_name).collect()
    })
}

/// As the kernel writes it (mem_fmt in mm/hugetlb_cgroup.c).
fn page_size_name(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
}

fn read_hugetlb(file: &At<'_>, usage: &str) -> Vec<HugetlbStat> {
    let read = |size: &String| {
        Some(HugetlbStat {
            page_size: size.clone(),
            usage: file.number(&format!("hugetlb.{size}.{usage}"))?,
            max_usage: file.number(&format!("hugetlb.{size}.max_usage_in_bytes")),
        })
    };
    page_sizes().iter().filter_map(read).collect()
}

fn read_blkio(file: &At<'_>) -> Vec<IoStat> {
    // Those below count too; old kernels only have the others.
    let read = |name: &str| {
        file.text(&format!("{name}_recursive"))
            .or_else(|_| file.text(name))
            .unwrap_or_default()
    };
    parse_blkio(
        &read("blkio.throttle.io_service_bytes"),
        &read("blkio.throttle.io_serviced"),
    )
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Lines of `major:minor Read|Write|... number`, with a last one for the total.
fn parse_blkio(bytes: &str, operations: &str) -> Vec<IoStat> {
    let mut found: BTreeMap<(u32, u32), IoStat> = BTreeMap::new();
    for (text, counts_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(at), Some(what), Some(value)) = (
                words.next().and_then(device),
                words.next(),
                words.next().and_then(|word| word.parse().ok()),
            ) else {
                continue;
            };
            if found.len() >= MAX_DEVICES && !found.contains_key(&at) {
                continue;
            }
            let stat = found.entry(at).or_default();
            (stat.major, stat.minor) = at;
            match (what, counts_bytes) {
                ("Read", true) => stat.read_bytes = value,
                ("Write", true) => stat.write_bytes = value,
                ("Read", false) => stat.reads = value,
                ("Write", false) => stat.writes = value,
                _ => {}
            }
        }
    }
    found.into_values().collect()
}

/// Lines of `major:minor rbytes=… wbytes=… rios=… wios=… dbytes=… dios=…`.
fn parse_io_stat(text: &str) -> Vec<IoStat> {
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = device(words.next()?)?;
        let mut stat = IoStat {
            major,
            minor,
            ..IoStat::default()
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => stat.read_bytes = value,
                "wbytes" => stat.write_bytes = value,
                "rios" => stat.reads = value,
                "wios" => stat.writes = value,
                _ => {}
            }
        }
        Some(stat)
    };
    text.lines().filter_map(parse).take(MAX_DEVICES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_tell_the_same() {
        let wanted = [
            IoStat {
                major: 8,
                minor: 0,
                read_bytes: 4096,
                write_bytes: 8192,
                reads: 1,
                writes: 2,
            },
            IoStat {
                major: 254,
                minor: 16,
                write_bytes: 5,
                ..IoStat::default()
            },
        ];
        let bytes = "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n254:16 Write 5\nTotal 12293\n";
        let operations = "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n";
        assert_eq!(parse_blkio(bytes, operations), wanted);
        let v2 =
            "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:16 wbytes=5\n(unknown) x=1\n";
        assert_eq!(parse_io_stat(v2), wanted);
        assert_eq!(parse_io_stat(""), []);
        assert_eq!(parse_blkio("Total 0\n", "x"), []);
    }

    #[test]
    fn sizes_are_written_as_the_kernel_does() {
        let names = [64, 2048, 1 << 20, 16 << 20].map(page_size_name);
        assert_eq!(names, ["64KB", "2MB", "1GB", "16GB"]);
    }
}
