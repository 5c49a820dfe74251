//! The log file of one container: appends whole entries; where that fails it drops, counts, tries again now and then,
//! and on success leaves a line that says how much is missing.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::state::LogState;
use crate::clock;
use crate::frame::{Sink, payload};

/// Pause between attempts to write to a log in trouble.
pub const RETRY: Duration = Duration::from_millis(250);

/// What happened to the log and is not yet reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Trouble { errno: i32 },
    Recovered { dropped: u64 },
}

#[derive(Debug)]
struct Trouble {
    errno: Errno,
    dropped: u64,
    next_try: Instant,
}

/// Opened when it is first needed.
#[derive(Debug)]
pub struct LogFile {
    /// Empty: output is thrown away, as asked.
    path: String,
    file: Option<OwnedFd>,
    trouble: Option<Trouble>,
    /// The file ends within an entry that could not be taken back.
    broken_tail: bool,
    changes: Vec<Change>,
}

impl LogFile {
    pub fn new(path: &str, left: &LogState) -> Self {
        LogFile {
            path: path.to_owned(),
            file: None,
            trouble: (left.errno != 0).then(|| Trouble {
                errno: Errno::from_raw_os_error(left.errno),
                dropped: left.dropped,
                next_try: Instant::now(),
            }),
            broken_tail: left.broken_tail,
            changes: Vec::new(),
        }
    }

    /// For [`LogState`]: errno, bytes dropped, whether the tail is broken.
    pub fn condition(&self) -> (i32, u64, bool) {
        let trouble = self.trouble.as_ref();
        (
            trouble.map_or(0, |trouble| trouble.errno.raw_os_error()),
            trouble.map_or(0, |trouble| trouble.dropped),
            self.broken_tail,
        )
    }

    pub fn in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    pub fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Opens the path anew, creating it.
    pub fn reopen(&mut self) -> Result<(), Errno> {
        if self.path.is_empty() {
            return Ok(());
        }
        self.file = None;
        self.broken_tail = false;
        self.file = Some(open(&self.path)?);
        Ok(())
    }

    /// In trouble: tries to leave the line that ends it. True if the log is fine.
    pub fn recover(&mut self, at_once: bool) -> bool {
        let Some(trouble) = &mut self.trouble else {
            return true;
        };
        let now = Instant::now();
        if now < trouble.next_try && !at_once {
            return false;
        }
        trouble.next_try = now + RETRY;
        let (errno, dropped) = (trouble.errno, trouble.dropped);
        let stamp = String::from_utf8_lossy(&clock::stamp(clock::now())).into_owned();
        let newline = if self.broken_tail { "\n" } else { "" };
        let marker = format!(
            "{newline}{stamp} stderr F [holdfast] {dropped} bytes of output are missing here: the log could not be \
             written: {errno}\n"
        );
        if self.append(marker.as_bytes()).is_err() {
            return false;
        }
        self.broken_tail = false;
        self.trouble = None;
        self.changes.push(Change::Recovered { dropped });
        true
    }

    fn append(&mut self, entries: &[u8]) -> Result<(), (usize, Errno)> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(open(&self.path).map_err(|errno| (0, errno))?),
        };
        let mut done = 0;
        while done < entries.len() {
            let errno = match rustix::io::write(file, &entries[done..]) {
                Ok(0) => Errno::IO,
                Ok(written) => {
                    done += written;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(errno) => errno,
            };
            let whole = memchr::memrchr(b'\n', &entries[..done]).map_or(0, |end| end + 1);
            if whole < done && take_back(file, done - whole).is_err() {
                self.broken_tail = true;
            }
            if !matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::FBIG) {
                // Not a full disk: the next attempt shall not depend on what this descriptor has become.
                self.file = None;
            }
            return Err((whole, errno));
        }
        Ok(())
    }
}

impl Sink for LogFile {
    fn take(&mut self, entries: &[u8]) {
        if self.path.is_empty() {
            return;
        }
        let mut lost = entries;
        if self.recover(false) {
            let Err((written, errno)) = self.append(entries) else {
                return;
            };
            lost = &entries[written..];
            self.trouble = Some(Trouble {
                errno,
                dropped: 0,
                next_try: Instant::now() + RETRY,
            });
            self.changes.push(Change::Trouble {
                errno: errno.raw_os_error(),
            });
        }
        if let Some(trouble) = &mut self.trouble {
            trouble.dropped = trouble.dropped.saturating_add(payload(lost));
        }
    }
}

fn open(path: &str) -> Result<OwnedFd, Errno> {
    // NONBLOCK: a FIFO in the log's place must not hold the pump up; regular files do not care.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o640))?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(file)
}

/// Removes the last `count` bytes, the part of an entry that did not fit. Nobody else writes to this file.
fn take_back(file: &OwnedFd, count: usize) -> Result<(), Errno> {
    let size = u64::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| Errno::OVERFLOW)?;
    rustix::fs::ftruncate(file, size.saturating_sub(count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_cannot_be_opened_counts_and_recovers_with_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/0.log");
        let mut log = LogFile::new(path.to_str().unwrap(), &LogState::default());
        let entry = b"2026-11-21T23:14:12.123456789Z stdout F hello\n";
        log.take(entry);
        log.take(entry);
        assert_eq!(log.changes(), [Change::Trouble { errno: 2 }]);
        assert_eq!(log.condition(), (2, 12, false));
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        assert!(!log.recover(false), "not before the pause is over");
        assert!(log.recover(true));
        assert_eq!(log.changes(), [Change::Recovered { dropped: 12 }]);
        log.take(entry);
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].contains("stderr F [holdfast] 12 bytes of output are missing"));
        assert!(lines[1].ends_with("F hello"));
    }

    #[test]
    fn only_a_regular_file_is_a_log() {
        let log = |path: &str| LogFile::new(path, &LogState::default()).reopen();
        assert_eq!(log("/dev/null"), Err(Errno::INVAL));
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert_eq!(log(link.to_str().unwrap()), Err(Errno::LOOP));
        assert_eq!(log(""), Ok(()));
    }
}
