//! What a cgroup uses, in one form for both versions.
//!
//! [`StatReader`] keeps the files of what is asked for all the time open; [`Detail`] opens the others when it is asked.
//! A reader of a cgroup that was removed gets ENODEV ([`Error::is_gone`]). Units are microseconds and bytes.

mod detail;
mod reader;

pub use detail::{Detail, HugetlbStat, IoStat};
pub use reader::StatReader;

/// Everything that was readable.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    pub cpu: CpuStat,
    pub memory: MemoryStat,
    pub pids: PidsStat,
    pub pressure: Pressures,
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
    /// The page cache, and how much of it is mapped.
    pub cache: u64,
    pub mapped_file: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Swap alone; `None` without swap accounting.
    pub swap_usage: Option<u64>,
    /// `None`: no limit.
    pub limit: Option<u64>,
    /// Swap alone; `None`: no limit, or no swap accounting.
    pub swap_limit: Option<u64>,
}

/// Tasks: threads, as the kernel counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidsStat {
    pub current: u64,
    /// `None`: no limit.
    pub limit: Option<u64>,
}

/// Pressure stall information; `None` where the kernel keeps none for the cgroup. It is the unified hierarchy's, so the
/// hybrid has it too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressures {
    pub cpu: Option<Pressure>,
    pub memory: Option<Pressure>,
    pub io: Option<Pressure>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks waited.
    pub some: Stall,
    /// All that could have run waited.
    pub full: Stall,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Per cent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

impl Pressure {
    /// Reads a `*.pressure` file (Documentation/accounting/psi.rst). A line that is missing is zero.
    fn parse(text: &str) -> Self {
        let mut out = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let stall = match words.next() {
                Some("some") => &mut out.some,
                Some("full") => &mut out.full,
                _ => continue,
            };
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let number = || value.parse().unwrap_or_default();
                match key {
                    "avg10" => stall.avg10 = number(),
                    "avg60" => stall.avg60 = number(),
                    "avg300" => stall.avg300 = number(),
                    "total" => stall.total_us = value.parse().unwrap_or_default(),
                    _ => {}
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_files() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234567\nfull avg10=0.00 avg60=0.00 avg300=0.01 total=89\n";
        let read = Pressure::parse(text);
        assert_eq!(
            read.some,
            Stall {
                avg10: 1.5,
                avg60: 0.25,
                avg300: 0.0,
                total_us: 1_234_567
            }
        );
        assert_eq!((read.full.total_us, read.full.avg300), (89, 0.01));
        // Before Linux 5.13 the cpu's has one line.
        let old = Pressure::parse("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n");
        assert_eq!((old.some.total_us, old.full), (7, Stall::default()));
        assert_eq!(
            Pressure::parse("what=ever\nsome avg10 total=x"),
            Pressure::default()
        );
    }
}
