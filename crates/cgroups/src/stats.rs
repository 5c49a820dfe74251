//! What a cgroup uses, in one form for both versions, read through descriptors that stay open.
//!
//! A reader of a cgroup that was removed gets ENODEV ([`Error::is_gone`]). Units are microseconds and bytes.

use crate::hierarchy::{Controller, Home};
use crate::io::{self, keyed};
use crate::{Cgroup, Error};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Everything that was readable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu: CpuStat,
    pub memory: MemoryStat,
    pub pids: PidsStat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuStat {
    pub usage_us: u64,
    pub user_us: u64,
    pub system_us: u64,
    /// Bandwidth periods that passed, and those in which the cgroup was throttled.
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_us: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStat {
    /// Including the page cache.
    pub usage: u64,
    /// `usage` without inactive page cache: what the kubelet evicts by.
    pub working_set: u64,
    /// Anonymous memory and swap cache.
    pub rss: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Swap alone; `None` without swap accounting.
    pub swap_usage: Option<u64>,
    /// `None`: no limit.
    pub limit: Option<u64>,
    /// Swap alone; `None`: no limit, or no swap accounting.
    pub swap_limit: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStat {
    pub current: u64,
    /// `None`: no limit.
    pub limit: Option<u64>,
}

/// An open file with the name that errors call it by.
#[derive(Debug)]
struct File {
    fd: OwnedFd,
    name: String,
}

#[derive(Debug)]
enum CpuFiles {
    None,
    V2 {
        stat: File,
    },
    V1 {
        usage: Option<(File, File, File)>,
        stat: Option<File>,
    },
}

#[derive(Debug)]
enum MemoryFiles {
    None,
    V2 {
        current: File,
        stat: File,
        max: File,
        swap: Option<(File, File)>,
    },
    V1 {
        usage: File,
        stat: File,
        limit: File,
        total: Option<(File, File)>,
    },
}

/// Reads one cgroup's figures again and again: a few preads, nothing opened.
#[derive(Debug)]
pub struct StatReader {
    cpu: CpuFiles,
    memory: MemoryFiles,
    pids: Option<(File, File)>,
}

impl StatReader {
    pub(crate) fn open(cgroup: &Cgroup) -> Result<Self, Error> {
        Ok(Self {
            cpu: open_cpu(cgroup)?,
            memory: open_memory(cgroup)?,
            pids: open_pids(cgroup)?,
        })
    }

    pub fn read(&self) -> Result<Stats, Error> {
        Ok(Stats {
            cpu: self.read_cpu()?,
            memory: self.read_memory()?,
            pids: match &self.pids {
                Some((current, max)) => PidsStat {
                    current: current.number()?,
                    limit: max.limit()?,
                },
                None => PidsStat::default(),
            },
        })
    }

    fn read_cpu(&self) -> Result<CpuStat, Error> {
        let mut out = CpuStat::default();
        match &self.cpu {
            CpuFiles::None => {}
            CpuFiles::V2 { stat } => {
                let text = stat.text()?;
                let get = |key| keyed(&text, key).unwrap_or(0);
                out = CpuStat {
                    usage_us: get("usage_usec"),
                    user_us: get("user_usec"),
                    system_us: get("system_usec"),
                    periods: get("nr_periods"),
                    throttled_periods: get("nr_throttled"),
                    throttled_us: get("throttled_usec"),
                };
            }
            CpuFiles::V1 { usage, stat } => {
                if let Some((usage, user, system)) = usage {
                    out.usage_us = usage.number()? / 1000;
                    out.user_us = user.number()? / 1000;
                    out.system_us = system.number()? / 1000;
                }
                if let Some(stat) = stat {
                    let text = stat.text()?;
                    out.periods = keyed(&text, "nr_periods").unwrap_or(0);
                    out.throttled_periods = keyed(&text, "nr_throttled").unwrap_or(0);
                    out.throttled_us = keyed(&text, "throttled_time").unwrap_or(0) / 1000;
                }
            }
        }
        Ok(out)
    }

    fn read_memory(&self) -> Result<MemoryStat, Error> {
        let mut out = MemoryStat::default();
        let text;
        let keys: [&str; 4];
        match &self.memory {
            MemoryFiles::None => return Ok(out),
            MemoryFiles::V2 {
                current,
                stat,
                max,
                swap,
            } => {
                out.usage = current.number()?;
                out.limit = max.limit()?;
                if let Some((usage, limit)) = swap {
                    out.swap_usage = Some(usage.number()?);
                    out.swap_limit = limit.limit()?;
                }
                text = stat.text()?;
                keys = ["inactive_file", "anon", "pgfault", "pgmajfault"];
            }
            MemoryFiles::V1 {
                usage,
                stat,
                limit,
                total,
            } => {
                out.usage = usage.number()?;
                out.limit = limit.limit()?;
                if let Some((usage, limit)) = total {
                    out.swap_usage = Some(usage.number()?.saturating_sub(out.usage));
                    out.swap_limit = limit
                        .limit()?
                        .zip(out.limit)
                        .map(|(total, memory)| total.saturating_sub(memory));
                }
                text = stat.text()?;
                keys = [
                    "total_inactive_file",
                    "total_rss",
                    "total_pgfault",
                    "total_pgmajfault",
                ];
            }
        }
        let [inactive, rss, faults, major] = keys.map(|key| keyed(&text, key).unwrap_or(0));
        out.working_set = out.usage.saturating_sub(inactive);
        out.rss = rss;
        out.page_faults = faults;
        out.major_page_faults = major;
        Ok(out)
    }
}

impl File {
    fn text(&self) -> Result<String, Error> {
        io::read_fd(&self.fd).map_err(|errno: Errno| Error::Read {
            file: self.name.clone(),
            source: errno.into(),
        })
    }

    fn number(&self) -> Result<u64, Error> {
        let text = self.text()?;
        text.trim().parse().map_err(|_| Error::Parse {
            file: self.name.clone(),
            text,
        })
    }

    /// `max`, and what version 1 shows where there is no limit (the largest multiple of a page), are `None`.
    fn limit(&self) -> Result<Option<u64>, Error> {
        const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;
        match self.text()?.trim() {
            "max" => Ok(None),
            text => match text.parse() {
                Ok(value) if value >= UNLIMITED => Ok(None),
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(Error::Parse {
                    file: self.name.clone(),
                    text: text.to_owned(),
                }),
            },
        }
    }
}

/// Opens the files of one controller, all or none; none where the first is missing.
fn open_all<const N: usize>(
    cgroup: &Cgroup,
    home: &Home<'_>,
    files: [&str; N],
) -> Result<Option<[File; N]>, Error> {
    let (Home::V1(root) | Home::V2(root)) = home;
    let dir = cgroup.dir_in(root);
    let mut out = Vec::with_capacity(N);
    for file in files {
        match io::open(root, &dir, file, OFlags::RDONLY) {
            Ok(fd) => out.push(File {
                fd,
                name: io::name(root, &dir, file),
            }),
            // A controller that could not be enabled has no files: no figures, as without the controller.
            Err(error) if error.is_gone() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(out.try_into().ok())
}

fn open_cpu(cgroup: &Cgroup) -> Result<CpuFiles, Error> {
    let hierarchy = cgroup.hierarchy();
    let usage = match hierarchy.home(Controller::Cpuacct) {
        Some(home) => open_all(
            cgroup,
            &home,
            ["cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"],
        )?,
        None => None,
    };
    let usage = usage.map(|[total, user, system]| (total, user, system));
    Ok(match hierarchy.home(Controller::Cpu) {
        Some(home @ Home::V1(_)) => CpuFiles::V1 {
            usage,
            stat: open_all(cgroup, &home, ["cpu.stat"])?.map(|[stat]| stat),
        },
        Some(home @ Home::V2(_)) => match open_all(cgroup, &home, ["cpu.stat"])? {
            Some([stat]) => CpuFiles::V2 { stat },
            None => CpuFiles::None,
        },
        None if usage.is_some() => CpuFiles::V1 { usage, stat: None },
        None => CpuFiles::None,
    })
}

fn open_memory(cgroup: &Cgroup) -> Result<MemoryFiles, Error> {
    let Some(home) = cgroup.hierarchy().home(Controller::Memory) else {
        return Ok(MemoryFiles::None);
    };
    let out = match home {
        Home::V2(_) => {
            let swap = open_all(cgroup, &home, ["memory.swap.current", "memory.swap.max"])?;
            open_all(cgroup, &home, ["memory.current", "memory.stat", "memory.max"])?.map(
                |[current, stat, max]| MemoryFiles::V2 {
                    current,
                    stat,
                    max,
                    swap: swap.map(|[usage, limit]| (usage, limit)),
                },
            )
        }
        Home::V1(_) => {
            let total = open_all(
                cgroup,
                &home,
                ["memory.memsw.usage_in_bytes", "memory.memsw.limit_in_bytes"],
            )?;
            let files = ["memory.usage_in_bytes", "memory.stat", "memory.limit_in_bytes"];
            open_all(cgroup, &home, files)?.map(|[usage, stat, limit]| MemoryFiles::V1 {
                usage,
                stat,
                limit,
                total: total.map(|[usage, limit]| (usage, limit)),
            })
        }
    };
    Ok(out.unwrap_or(MemoryFiles::None))
}

fn open_pids(cgroup: &Cgroup) -> Result<Option<(File, File)>, Error> {
    let Some(home) = cgroup.hierarchy().home(Controller::Pids) else {
        return Ok(None);
    };
    Ok(open_all(cgroup, &home, ["pids.current", "pids.max"])?.map(|[current, max]| (current, max)))
}
