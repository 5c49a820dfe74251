//! The figures that are asked for all the time, through descriptors that stay open.

use super::{CpuStat, MemoryStat, PidsStat, Pressure, Pressures, Stats};
use crate::hierarchy::{Controller, Home};
use crate::io::{self, SHORT, keyed};
use crate::{Cgroup, Error};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// An open file with the name that errors call it by.
#[derive(Debug)]
struct File {
    fd: OwnedFd,
    /// Shared by the files of one directory.
    dir: Arc<str>,
    file: &'static str,
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
        /// The limit of memory and swap together, where swap is accounted for.
        total: Option<File>,
    },
}

#[derive(Debug)]
struct PressureFiles {
    cpu: Option<File>,
    memory: Option<File>,
    io: Option<File>,
}

/// Reads one cgroup's figures again and again: a few preads, nothing opened.
#[derive(Debug)]
pub struct StatReader {
    cpu: CpuFiles,
    memory: MemoryFiles,
    pids: Option<(File, File)>,
    pressure: PressureFiles,
}

type Buffer = [u8; SHORT];

impl StatReader {
    pub(crate) fn open(cgroup: &Cgroup) -> Result<Self, Error> {
        Ok(Self {
            cpu: open_cpu(cgroup)?,
            memory: open_memory(cgroup)?,
            pids: open_pids(cgroup)?,
            pressure: open_pressure(cgroup)?,
        })
    }

    pub fn read(&self) -> Result<Stats, Error> {
        let mut buffer = [0; SHORT];
        Ok(Stats {
            cpu: self.read_cpu(&mut buffer)?,
            memory: self.read_memory(&mut buffer)?,
            pids: match &self.pids {
                Some((current, max)) => PidsStat {
                    current: current.number(&mut buffer)?,
                    limit: max.limit(&mut buffer)?,
                },
                None => PidsStat::default(),
            },
            pressure: Pressures {
                cpu: read_pressure(self.pressure.cpu.as_ref(), &mut buffer)?,
                memory: read_pressure(self.pressure.memory.as_ref(), &mut buffer)?,
                io: read_pressure(self.pressure.io.as_ref(), &mut buffer)?,
            },
        })
    }

    /// Microseconds of processor time alone, for samplers.
    pub fn cpu_usage_us(&self) -> Result<u64, Error> {
        let mut buffer = [0; SHORT];
        match &self.cpu {
            CpuFiles::V1 {
                usage: Some((usage, _, _)),
                ..
            } => Ok(usage.number(&mut buffer)? / 1000),
            _ => Ok(self.read_cpu(&mut buffer)?.usage_us),
        }
    }

    fn read_cpu(&self, buffer: &mut Buffer) -> Result<CpuStat, Error> {
        let mut out = CpuStat::default();
        match &self.cpu {
            CpuFiles::None => {}
            CpuFiles::V2 { stat } => {
                let text = stat.text(buffer)?;
                let get = |key| keyed(text, key).unwrap_or(0);
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
                    out.usage_us = usage.number(buffer)? / 1000;
                    out.user_us = user.number(buffer)? / 1000;
                    out.system_us = system.number(buffer)? / 1000;
                }
                if let Some(stat) = stat {
                    let text = stat.text(buffer)?;
                    out.periods = keyed(text, "nr_periods").unwrap_or(0);
                    out.throttled_periods = keyed(text, "nr_throttled").unwrap_or(0);
                    out.throttled_us = keyed(text, "throttled_time").unwrap_or(0) / 1000;
                }
            }
        }
        Ok(out)
    }

    fn read_memory(&self, buffer: &mut Buffer) -> Result<MemoryStat, Error> {
        let mut out = MemoryStat::default();
        match &self.memory {
            MemoryFiles::None => {}
            MemoryFiles::V2 {
                current,
                stat,
                max,
                swap,
            } => {
                out.usage = current.number(buffer)?;
                out.limit = max.limit(buffer)?;
                if let Some((usage, limit)) = swap {
                    out.swap_usage = Some(usage.number(buffer)?);
                    out.swap_limit = limit.limit(buffer)?;
                }
                fill_memory(&mut out, stat.text(buffer)?, &V2_KEYS);
            }
            MemoryFiles::V1 {
                usage,
                stat,
                limit,
                total,
            } => {
                out.usage = usage.number(buffer)?;
                out.limit = limit.limit(buffer)?;
                if let Some(total) = total {
                    out.swap_limit = total
                        .limit(buffer)?
                        .zip(out.limit)
                        .map(|(total, memory)| total.saturating_sub(memory));
                }
                let text = stat.text(buffer)?;
                out.swap_usage = total.is_some().then(|| keyed(text, "total_swap").unwrap_or(0));
                fill_memory(&mut out, text, &V1_KEYS);
            }
        }
        Ok(out)
    }
}

/// Names in `memory.stat` of: inactive file cache, anonymous memory, page cache, mapped files, faults, major faults.
type Keys = [&'static str; 6];
const V2_KEYS: Keys = [
    "inactive_file",
    "anon",
    "file",
    "file_mapped",
    "pgfault",
    "pgmajfault",
];
const V1_KEYS: Keys = [
    "total_inactive_file",
    "total_rss",
    "total_cache",
    "total_mapped_file",
    "total_pgfault",
    "total_pgmajfault",
];

/// Takes what the file has in one walk: it is the longest of all.
fn fill_memory(out: &mut MemoryStat, text: &str, keys: &Keys) {
    let mut values = [0; 6];
    for (name, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(at) = keys.iter().position(|key| *key == name) {
            values[at] = value.parse().unwrap_or(0);
        }
    }
    let [inactive, rss, cache, mapped, faults, major] = values;
    out.working_set = out.usage.saturating_sub(inactive);
    out.rss = rss;
    out.cache = cache;
    out.mapped_file = mapped;
    out.page_faults = faults;
    out.major_page_faults = major;
}

/// None where the kernel has it switched off, for all (EOPNOTSUPP) or for this cgroup.
fn read_pressure(file: Option<&File>, buffer: &mut Buffer) -> Result<Option<Pressure>, Error> {
    let Some(file) = file else { return Ok(None) };
    match file.text(buffer) {
        Ok(text) => Ok(Some(Pressure::parse(text))),
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

impl File {
    fn name(&self) -> String {
        format!("{}/{}", self.dir, self.file)
    }

    fn text<'a>(&self, buffer: &'a mut Buffer) -> Result<&'a str, Error> {
        io::read_short(&self.fd, buffer).map_err(|errno: Errno| Error::Read {
            file: self.name(),
            source: errno.into(),
        })
    }

    fn number(&self, buffer: &mut Buffer) -> Result<u64, Error> {
        let text = self.text(buffer)?;
        text.trim().parse().map_err(|_| self.parse_error(text))
    }

    /// `max`, and what version 1 shows where there is no limit (the largest multiple of a page), are `None`.
    fn limit(&self, buffer: &mut Buffer) -> Result<Option<u64>, Error> {
        const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;
        match self.text(buffer)?.trim() {
            "max" => Ok(None),
            text => match text.parse() {
                Ok(value) if value >= UNLIMITED => Ok(None),
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(self.parse_error(text)),
            },
        }
    }

    fn parse_error(&self, text: &str) -> Error {
        Error::Parse {
            file: self.name(),
            text: text.to_owned(),
        }
    }
}

/// Opens the files of one controller, all or none; none where the first is missing.
fn open_all<const N: usize>(
    cgroup: &Cgroup,
    home: &Home<'_>,
    files: [&'static str; N],
) -> Result<Option<[File; N]>, Error> {
    let (Home::V1(root) | Home::V2(root)) = home;
    let dir = cgroup.dir_in(root);
    let shown: Arc<str> = io::name(root, &dir, "").into();
    let mut out = Vec::with_capacity(N);
    for file in files {
        match io::open(root, &dir, file, OFlags::RDONLY) {
            Ok(fd) => out.push(File {
                fd,
                dir: shown.clone(),
                file,
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
            let total = open_all(cgroup, &home, ["memory.memsw.limit_in_bytes"])?;
            let files = ["memory.usage_in_bytes", "memory.stat", "memory.limit_in_bytes"];
            open_all(cgroup, &home, files)?.map(|[usage, stat, limit]| MemoryFiles::V1 {
                usage,
                stat,
                limit,
                total: total.map(|[total]| total),
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

fn open_pressure(cgroup: &Cgroup) -> Result<PressureFiles, Error> {
    let home = cgroup
        .hierarchy()
        .mounts
        .unified
        .as_ref()
        .map(|unified| Home::V2(&unified.root));
    let open = |file| -> Result<Option<File>, Error> {
        let Some(home) = &home else { return Ok(None) };
        match open_all(cgroup, home, [file]) {
            Ok(found) => Ok(found.map(|[file]| file)),
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(error) => Err(error),
        }
    };
    Ok(PressureFiles {
        cpu: open("cpu.pressure")?,
        memory: open("memory.pressure")?,
        io: open("io.pressure")?,
    })
}
