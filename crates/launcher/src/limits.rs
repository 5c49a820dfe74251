//! Resource limits and the out-of-memory score.

use holdfast_sys::process::{self, Limit};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

use crate::fault::{Context, Fault, Result};
use crate::procfs::Procfs;

/// The limits of the new process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    wanted: Vec<(u32, Limit)>,
    /// Ours for open files, before the builder raised it for itself.
    files: Option<Limit>,
}

const NOFILE: u32 = libc::RLIMIT_NOFILE;

impl Limits {
    pub fn new(list: &[PosixRlimit]) -> Result<Self> {
        let mut wanted: Vec<(u32, Limit)> = Vec::new();
        for entry in list {
            let limit = Limit {
                soft: entry.soft(),
                hard: entry.hard(),
            };
            let number = number(entry.typ());
            if limit.soft > limit.hard {
                return Err(Fault::invalid(format!(
                    "the soft {:?} of {} is over the hard one of {}",
                    entry.typ(),
                    limit.soft,
                    limit.hard
                )));
            }
            wanted.retain(|(n, _)| *n != number);
            wanted.push((number, limit));
        }
        Ok(Self { wanted, files: None })
    }

    /// Raises, with the host's privileges, what the new process could no longer raise itself, and the builder's own
    /// limit of open files. With `clamp` a limit that we may not raise becomes the one that we have.
    pub fn prepare(&mut self, clamp: bool, warnings: &mut Vec<String>) -> Result<()> {
        let files = process::limit(NOFILE, None).at(|| "read the limit of open files")?;
        self.raise(clamp, warnings)?;
        self.files = Some(files);
        let now = process::limit(NOFILE, None).at(|| "read the limit of open files")?;
        let ours = Limit {
            soft: now.hard.min(1 << 16).max(now.soft),
            hard: now.hard,
        };
        process::limit(NOFILE, Some(ours))
            .map(drop)
            .at(|| "raise our limit of open files")
    }

    /// The first part of it: the limits that the new process is to have.
    pub fn raise(&mut self, clamp: bool, warnings: &mut Vec<String>) -> Result<()> {
        for (number, wanted) in &mut self.wanted {
            let what = || format!("set resource limit {number} to {}", wanted.hard);
            let now = process::limit(*number, None).at(what)?;
            if wanted.hard <= now.hard {
                continue;
            }
            let raised = Limit {
                soft: now.soft,
                hard: wanted.hard,
            };
            match process::limit(*number, Some(raised)) {
                Err(e) if clamp && e.raw_os_error() == Some(libc::EPERM) => {
                    warnings.push(format!(
                        "resource limit {number} stays at {} instead of {}: it may not be raised",
                        now.hard, wanted.hard
                    ));
                    wanted.hard = now.hard;
                    wanted.soft = wanted.soft.min(now.hard);
                }
                other => other.map(drop).at(what)?,
            }
        }
        Ok(())
    }

    /// What came of a wish.
    pub fn of(&self, kind: PosixRlimitType) -> Option<Limit> {
        let wanted = number(kind);
        let found = self.wanted.iter().find(|(number, _)| *number == wanted);
        found.map(|(_, limit)| *limit)
    }

    /// Sets the limits in the new process, last of all.
    pub fn set(&self) -> Result<()> {
        let inherited = self
            .files
            .filter(|_| !self.wanted.iter().any(|(n, _)| *n == NOFILE));
        let all = self.wanted.iter().copied().chain(inherited.map(|l| (NOFILE, l)));
        for (number, limit) in all {
            process::limit(number, Some(limit))
                .at(|| format!("set resource limit {number} to {}", limit.soft))?;
        }
        Ok(())
    }
}

fn number(kind: PosixRlimitType) -> u32 {
    use PosixRlimitType as T;
    match kind {
        T::RlimitCpu => libc::RLIMIT_CPU,
        T::RlimitFsize => libc::RLIMIT_FSIZE,
        T::RlimitData => libc::RLIMIT_DATA,
        T::RlimitStack => libc::RLIMIT_STACK,
        T::RlimitCore => libc::RLIMIT_CORE,
        T::RlimitRss => libc::RLIMIT_RSS,
        T::RlimitNproc => libc::RLIMIT_NPROC,
        T::RlimitNofile => libc::RLIMIT_NOFILE,
        T::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        T::RlimitAs => libc::RLIMIT_AS,
        T::RlimitLocks => libc::RLIMIT_LOCKS,
        T::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        T::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        T::RlimitNice => libc::RLIMIT_NICE,
        T::RlimitRtprio => libc::RLIMIT_RTPRIO,
        T::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// Sets the caller's own score, which its children inherit. Lowering it needs CAP_SYS_RESOURCE.
pub(crate) fn set_oom_score(
    score: i32,
    clamp: bool,
    proc: &Procfs,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let file = "self/oom_score_adj";
    match proc.write(file, score.to_string().as_bytes()) {
        Err(e) if clamp && matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            warnings.push(format!(
                "oom_score_adj stays as the runtime's own: {score} is lower and may not be set"
            ));
            Ok(())
        }
        other => other.at(|| format!("set oom_score_adj to {score}")),
    }
}
