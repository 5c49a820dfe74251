//! One run of a runtime's program: its descriptors, its deadline, and its words when it fails.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_sys::exec::Image;
use holdfast_sys::pidfd::{self, Ended};
use holdfast_sys::process::{self, Control};
use holdfast_sys::{clone, namespace, scm};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};

use super::External;
use crate::error::Kind;
use crate::fault::{Context, Fault, Result, words};
use crate::namespaces::MOUNT;
use crate::walk::kill_tree;

/// How long a killed program may take to die.
const DIE: Duration = Duration::from_secs(2);
/// How much of what the program wrote is looked at, and how much of it is told.
const SAID_LIMIT: u64 = 64 * 1024;
const TOLD_LIMIT: usize = 2 * 1024;
/// What hooks and the program itself find programs by.
const PATH: &std::ffi::CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A run of the program to be.
pub(super) struct Call<'a> {
    pub runtime: &'a External,
    /// Names the run in errors: `create`.
    pub verb: &'a str,
    /// Everything after the options that go before the command.
    pub arguments: Vec<OsString>,
    /// File of the bundle that the program logs to.
    pub log: &'a str,
    /// Its standard streams. `None`: /dev/null, and for the last one what ends up in the error.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
    /// The mount namespace to run it in, if not the caller's.
    pub mounts: Option<BorrowedFd<'a>>,
    pub limit: Duration,
}

impl Call<'_> {
    /// Runs the program to its end. At the limit it is killed with all that descends from it.
    pub fn run(&self) -> Result<()> {
        let log = self.runtime.bundle.join(self.log);
        // Of an earlier try.
        let _none = std::fs::remove_file(&log);
        let what = || self.what();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at(what)?;
        let said = memfd_create("holdfast-said", MemfdFlags::CLOEXEC).at(what)?;
        let streams = [
            self.stdio[0].unwrap_or(null.as_fd()),
            self.stdio[1].unwrap_or(null.as_fd()),
            self.stdio[2].unwrap_or(said.as_fd()),
        ];
        let (image, program) = (self.image(&log)?, c_string(self.runtime.program.as_os_str())?);
        let (ours, theirs) = scm::pair().at(what)?;
        let child = clone::fork(|| {
            let error = match self.become_it(&streams, &theirs) {
                Ok(()) => image.exec(&program),
                Err(error) => error,
            };
            let _sent = scm::send(theirs.as_fd(), words(&error).as_bytes(), &[]);
            127
        })
        .at(what)?;
        drop(theirs);
        let ended = self.wait(child.pid, child.pidfd.as_fd());
        if let Some(why) = not_run(&ours) {
            let text = format!("{}: run {}: {why}", self.what(), self.runtime.program.display());
            return Err(Fault::new(Kind::NotFound, text));
        }
        match ended {
            Some(Ended::Exited(0)) => Ok(()),
            ended => Err(self.failed(ended, &log, File::from(said))),
        }
    }

    fn what(&self) -> String {
        format!("runtime handler {}: {}", self.runtime.name, self.verb)
    }

    fn image(&self, log: &Path) -> Result<Image> {
        let runtime = self.runtime;
        let mut args = vec![c_string(runtime.program.as_os_str())?];
        let mut add = |text: &OsStr| c_string(text).map(|text| args.push(text));
        add("--root".as_ref())?;
        add(runtime.root.as_os_str())?;
        if runtime.bundle.is_dir() {
            add("--log".as_ref())?;
            add(log.as_os_str())?;
            add("--log-format".as_ref())?;
            add("json".as_ref())?;
        }
        for option in &runtime.options {
            add(option.as_ref())?;
        }
        for argument in &self.arguments {
            add(argument)?;
        }
        Ok(Image::new(args, vec![PATH.to_owned()]))
    }

    /// In the new process: all that is not the program's goes.
    fn become_it(&self, streams: &[BorrowedFd<'_>; 3], refusal: &OwnedFd) -> std::io::Result<()> {
        // The caller is killed where it is given up: the program must not go on behind its back.
        process::control(Control::ParentDeathSignal(libc::SIGKILL))?;
        process::reset_signals()?;
        if let Some(mounts) = self.mounts {
            namespace::join(mounts, MOUNT)?;
        }
        for (number, fd) in (0..).zip(streams) {
            process::set_stdio(*fd, number)?;
        }
        rustix::process::chdir("/")?;
        process::close_all_but(&mut [refusal.as_raw_fd()])
    }

    /// `None`: it was killed for its slowness.
    fn wait(&self, pid: i32, pidfd: BorrowedFd<'_>) -> Option<Ended> {
        if ends(pidfd, self.limit) {
            return pidfd::try_reap(pidfd).ok().flatten();
        }
        let _killed = kill_tree(pid);
        if ends(pidfd, DIE) {
            let _reaped = pidfd::try_reap(pidfd);
        }
        None
    }

    fn failed(&self, ended: Option<Ended>, log: &Path, said: File) -> Fault {
        let logged = File::open(log).ok().and_then(|file| last_error(&tail(file)));
        let said = || Some(tail(said).trim().to_owned()).filter(|said| !said.is_empty());
        let told = logged.or_else(said);
        let text = match (ended, told) {
            (None, told) => {
                let seconds = self.limit.as_secs();
                let told = told.map(|told| format!("; its last words: {told}"));
                format!(
                    "killed after {seconds} s without an end{}",
                    told.unwrap_or_default()
                )
            }
            (Some(_), Some(told)) => told,
            (Some(Ended::Exited(code)), None) => format!("exit code {code} and no word of why"),
            (Some(Ended::Signaled(signal)), None) => format!("killed by signal {signal}"),
        };
        let text: String = text.chars().take(TOLD_LIMIT).collect();
        Fault::new(kind_of(&text), format!("{}: {text}", self.what()))
    }
}

fn ends(pidfd: BorrowedFd<'_>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut watched = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match poll(&mut watched, Timespec::try_from(left).ok().as_ref()) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Why the program could not be executed, if that is so. Its end of the socket is gone by now in any case.
fn not_run(socket: &OwnedFd) -> Option<String> {
    let mut buffer = [0; 512];
    let received = scm::try_recv(socket.as_fd(), &mut buffer).ok()?;
    (received.length > 0).then(|| String::from_utf8_lossy(&buffer[..received.length]).into_owned())
}

pub(super) fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| Fault::invalid(format!("{:?} holds a NUL", text.to_string_lossy())))
}

fn tail(mut file: File) -> String {
    let length = file.metadata().map_or(0, |known| known.len());
    let _from = file.seek(SeekFrom::Start(length.saturating_sub(SAID_LIMIT)));
    let mut bytes = Vec::new();
    let _read = file.take(SAID_LIMIT).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last line of a log in JSON that speaks of an error.
fn last_error(log: &str) -> Option<String> {
    log.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let serious = matches!(entry["level"].as_str(), Some("error" | "fatal" | "panic"));
        entry["msg"]
            .as_str()
            .filter(|_| serious)
            .map(|text| text.trim().to_owned())
    })
}

/// What class of failure the runtime's words are of: they are all that it says.
fn kind_of(text: &str) -> Kind {
    let has = |words: &str| text.contains(words);
    if has("not supported") || has("unsupported") || has("not implemented") {
        Kind::Unsupported
    } else if has("not running") || has("stopped") {
        Kind::Precondition
    } else if has("not found in $PATH") || has("no such file") || has("No such file") || has("does not exist")
    {
        Kind::NotFound
    } else if has("permission denied") || has("Permission denied") || has("not a directory") {
        Kind::Invalid
    } else {
        Kind::Internal
    }
}

/// A file that the program was told to write, of a size that is sane.
pub(super) fn read_small(path: &PathBuf) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(4096).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> (tempfile::TempDir, Result<()>) {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let runtime = External {
            name: "shell".into(),
            program: "/bin/sh".into(),
            root: dir.path().into(),
            bundle: dir.path().join("none"),
            options: Vec::new(),
        };
        // sh takes `--root DIR` for an option that it does not know, so a script stands between.
        let program = dir.path().join("runtime");
        let text = format!("#!/bin/sh\n{script}\n");
        std::fs::write(&program, text).unwrap_or_else(|e| panic!("{e}"));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap_or_else(|e| panic!("{e}"));
        let runtime = External { program, ..runtime };
        let call = Call {
            runtime: &runtime,
            verb: "try",
            arguments: vec!["try".into()],
            log: "log",
            stdio: [None; 3],
            mounts: None,
            limit,
        };
        let outcome = call.run();
        (dir, outcome)
    }

    fn message(outcome: Result<()>) -> String {
        outcome.err().map(|fault| fault.message).unwrap_or_default()
    }

    #[test]
    fn what_the_program_says_is_in_the_error() {
        let limit = Duration::from_secs(10);
        assert!(shell("exit 0", limit).1.is_ok());
        let said = message(shell("echo no luck today >&2; exit 3", limit).1);
        assert_eq!(said, "runtime handler shell: try: no luck today");
        let silent = message(shell("exit 3", limit).1);
        assert!(silent.contains("exit code 3"), "{silent}");
        let killed = message(shell("kill -9 $$", limit).1);
        assert!(killed.contains("signal 9"), "{killed}");
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        let (dir, outcome) = shell(
            "echo waiting >&2; sleep 1000 & echo $! > $2/child; wait",
            Duration::from_millis(500),
        );
        let said = message(outcome);
        assert!(
            said.contains("killed after") && said.contains("waiting"),
            "{said}"
        );
        assert!(start.elapsed() < Duration::from_secs(8));
        let child: i32 = std::fs::read_to_string(dir.path().join("child"))
            .unwrap_or_else(|e| panic!("{e}"))
            .trim()
            .parse()
            .unwrap_or_else(|e| panic!("{e}"));
        // It was sent SIGKILL, and dies when it is next looked at.
        let state = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        while !(state().is_empty() || state().contains(") Z ")) {
            assert!(start.elapsed() < Duration::from_secs(30), "{}", state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
        let runtime = External {
            name: "gone".into(),
            program: "/nowhere/runc".into(),
            root: dir.path().into(),
            bundle: dir.path().into(),
            options: Vec::new(),
        };
        let call = Call {
            runtime: &runtime,
            verb: "create",
            arguments: Vec::new(),
            log: "log",
            stdio: [None; 3],
            mounts: None,
            limit: Duration::from_secs(5),
        };
        assert_eq!(
            message(call.run()),
            "runtime handler gone: create: run /nowhere/runc: no such file or directory"
        );
    }

    #[test]
    fn the_last_error_of_a_log() {
        let log = "{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"last \"}\n\
                   {\"level\":\"warning\",\"msg\":\"no\"}\nnot json\n";
        assert_eq!(last_error(log).as_deref(), Some("last"));
        assert_eq!(last_error("x\n"), None);
    }

    #[test]
    fn words_have_kinds() {
        for (text, kind) in [
            ("exec: \"x\": executable file not found in $PATH", Kind::NotFound),
            ("cgroups in hybrid mode not supported", Kind::Unsupported),
            ("cannot exec in a stopped container", Kind::Precondition),
            ("exec /x: permission denied", Kind::Invalid),
            ("boom", Kind::Internal),
        ] {
            assert_eq!(kind_of(text), kind, "{text}");
        }
    }
}
