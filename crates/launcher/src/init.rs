//! The new process itself, from its first breath to execve: what only it can do, in the order in which it must.
//!
//! It runs in a fork of the builder. Up to the barrier failures go to the builder; after it, to the monitor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use holdfast_sys::process::{self, Control};
use holdfast_sys::{mount, scm, seccomp as filter};
use oci_spec::runtime::{Box as ConsoleSize, Process};
use rustix::fs::{Gid, OFlags, Uid, fchown, fstatfs};

use crate::building::ExecFailure;
use crate::channel::{Word, say, wait_for_release};
use crate::creds::{self, Credentials};
use crate::error::Kind;
use crate::fault::{Context, Fault, Result};
use crate::hooks::{Hooks, Starting};
use crate::limits::Limits;
use crate::place::{Root, Want, attach};
use crate::plan::Stdio;
use crate::procfs::Procfs;
use crate::program::{Program, home_of};
use crate::staging;

const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
/// Exit code of an init that never came to its program.
const FAILED: i32 = 127;

/// What container inits and execs have in common.
#[derive(Debug)]
pub(crate) struct Init<'a> {
    /// Processes of one container share a session keyring. Other containers have their own; root of one in the same user namespace that
    /// may call keyctl(2), which the default seccomp profile forbids, can join another's by its name.
    pub container_id: &'a str,
    pub process: &'a Process,
    pub credentials: &'a Credentials,
    pub limits: &'a Limits,
    pub seccomp: Option<&'a holdfast_seccomp::Program>,
    pub stdio: &'a Stdio,
    /// Version 1 `tasks` files to join.
    pub tasks: &'a [OwnedFd],
    /// Make the working directory where there is none.
    pub make_directory: bool,
    /// Bind the terminal, if there is one, at /dev/console.
    pub console: bool,
    /// A procfs that shows this process, for labels.
    pub proc: &'a Procfs,
    pub builder: &'a OwnedFd,
    pub barrier: &'a OwnedFd,
    /// Those of a container that has some.
    pub hooks: Option<&'a Hooks>,
}

/// An init's own user ids are set last; until then it acts as its user namespace's root.
pub(crate) fn become_root() -> Result<()> {
    process::set_ids(0, 0, &[]).at(|| "become the user namespace's root")?;
    // The change of ids has set it anew, to what the sysctl fs.suid_dumpable says.
    process::control(Control::Dumpable(false)).at(|| "become undumpable")
}

impl Init<'_> {
    /// Descriptors that [`Init::run`] needs.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.proc.as_fd(), self.builder.as_fd(), self.barrier.as_fd()];
        fds.extend(self.tasks.iter().map(AsFd::as_fd));
        if let Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } = self.stdio
        {
            fds.extend([stdin, stdout, stderr].into_iter().flatten().map(AsFd::as_fd));
        }
        fds
    }

    /// Runs to the end. `enter` brings the process into its root: `/` is the container's when it returns.
    pub fn run(&self, enter: impl FnOnce(&mut Vec<String>) -> Result<()>) -> i32 {
        let (program, terminal, starting) = match self.prepare(enter) {
            Ok(ready) => ready,
            Err(fault) => {
                let _gone = say(self.builder.as_fd(), &Word::Failed(fault.into()), &[]);
                return FAILED;
            }
        };
        if !wait_for_release(self.barrier) {
            return FAILED;
        }
        let finished = self.finish(terminal.as_ref(), starting.as_ref().map(Starting::state));
        // What it owns is closed by then.
        std::mem::forget(terminal);
        let finished = finished.and_then(|()| starting.map_or(Ok(()), |hooks| hooks.run()));
        let failure = match finished {
            Ok(()) => program.exec(),
            Err(fault) => ExecFailure {
                message: fault.message,
                errno: fault.errno,
                kind: fault.kind,
            },
        };
        let bytes = serde_json::to_vec(&failure).unwrap_or_default();
        let _gone = scm::send(self.barrier.as_fd(), &bytes, &[]);
        FAILED
    }

    fn prepare(
        &self,
        enter: impl FnOnce(&mut Vec<String>) -> Result<()>,
    ) -> Result<(Program, Option<OwnedFd>, Option<Starting<'_>>)> {
        for tasks in self.tasks {
            rustix::io::write(tasks, b"0").at(|| "join the cgroup")?;
        }
        process::reset_signals().at(|| "reset signals")?;
        rustix::process::setsid().at(|| "make a session")?;
        let mut warnings = Vec::new();
        enter(&mut warnings)?;
        let root = staging::root()?;
        let root = Root {
            fd: root.as_fd(),
            owner: (0, 0),
        };
        let terminal = match self.stdio {
            Stdio::Terminal => Some(open_terminal(root, self.process.console_size())?),
            Stdio::Pipes { .. } => None,
        };
        if let Some((master, _)) = terminal.as_ref().filter(|_| self.console) {
            bind_console(master.as_fd())?;
        }
        self.change_directory(root)?;
        let home = home_of(self.credentials.uid, root);
        let program = Program::new(self.process, Some(home))?;
        let starting = self.hooks.map(Starting::prepare).transpose()?.flatten();
        let (master, peer) = terminal.unzip();
        self.set_stdio(root, peer.as_ref())?;
        let master = master.as_ref().map(AsFd::as_fd);
        say(self.builder.as_fd(), &Word::Ready { warnings }, master.as_slice())
            .at(|| "report to the builder")?;
        Ok((program, peer, starting))
    }

    /// Past the barrier: gives up everything but what the program is to have.
    /// `state` is what hooks that come after are given.
    fn finish(&self, terminal: Option<&OwnedFd>, state: Option<BorrowedFd<'_>>) -> Result<()> {
        if let Some(terminal) = terminal {
            process::set_controlling_terminal(terminal.as_fd()).at(|| "set the controlling terminal")?;
        }
        // First: it tells what is wrong with a label.
        creds::label(self.process, self.proc)?;
        creds::join_keyring(self.container_id, self.process, self.proc)?;
        self.limits.set()?;
        // Before any filter: it might not allow it. Close-on-exec would come too late: while execve looks for its program,
        // /proc/self/fd leads through whatever is open (CVE-2024-21626). The barrier is a socket, which leads nowhere.
        let mut keep = vec![self.barrier.as_raw_fd()];
        keep.extend(state.map(|state| state.as_raw_fd()));
        process::close_all_but(&mut keep).at(|| "close descriptors")?;
        self.credentials.assume(|| match self.seccomp {
            Some(program) => filter::install(program.instructions(), program.flags())
                .map(drop)
                .at(|| "install the seccomp filter"),
            None => Ok(()),
        })
    }

    /// The working directory must be inside the root (CVE-2024-21626). Where root may not go (NFS with root_squash,
    /// FUSE, a volume of an owner whom the user namespace does not know) its user may.
    fn change_directory(&self, root: Root<'_>) -> Result<()> {
        let cwd = self.process.cwd();
        let enter = || -> Result<()> {
            let dir = match self.make_directory {
                true => ensure_working_directory(root, cwd)?,
                false => find_working_directory(root, cwd)?,
            };
            let entered = rustix::process::fchdir(&dir).at(|| entering(cwd));
            entered.map_err(|fault| fault.kind(Kind::Invalid))
        };
        match enter() {
            Err(denied) if denied.errno == libc::EACCES => self.credentials.try_on(enter)??,
            other => other?,
        }
        let is_inside =
            rustix::process::getcwd(Vec::new()).is_ok_and(|path| path.as_bytes().first() == Some(&b'/'));
        if is_inside {
            Ok(())
        } else {
            Err(Fault::invalid(format!(
                "the working directory {} is outside of the container's root",
                cwd.display()
            )))
        }
    }

    fn set_stdio(&self, root: Root<'_>, terminal: Option<&OwnedFd>) -> Result<()> {
        let what = || "set standard input and output";
        if let Some(terminal) = terminal {
            self.give(terminal.as_fd());
            return (0..3)
                .try_for_each(|n| process::set_stdio(terminal.as_fd(), n))
                .at(what);
        }
        let Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        } = self.stdio
        else {
            return Ok(());
        };
        for (number, fd) in [stdin, stdout, stderr].into_iter().enumerate() {
            let number = number as i32;
            match fd {
                Some(fd) => {
                    self.give(fd.as_fd());
                    process::set_stdio(fd.as_fd(), number).at(what)?;
                }
                None => {
                    let null = open_null(root)?;
                    process::set_stdio(null.as_fd(), number).at(what)?;
                }
            }
        }
        Ok(())
    }

    /// A user who is not root must be able to open /proc/self/fd/1 again. Not all that can be a standard descriptor
    /// has an owner that can be changed, and none of it is reason to fail.
    fn give(&self, fd: BorrowedFd<'_>) {
        let user = Uid::from_raw(self.credentials.uid);
        let _best_effort = fchown(fd, Some(user), None::<Gid>);
    }
}

fn entering(cwd: &Path) -> String {
    format!("change to the working directory {}", cwd.display())
}

fn find_working_directory(root: Root<'_>, cwd: &Path) -> Result<OwnedFd> {
    if !cwd.is_absolute() {
        return Err(Fault::invalid(format!(
            "the working directory {:?} is not an absolute path",
            cwd.display().to_string()
        )));
    }
    let found = root.find(cwd).at(|| entering(cwd));
    found.map_err(|fault| fault.kind(Kind::Invalid))
}

/// Finds the working directory, or makes it where the image lacks it.
pub(crate) fn ensure_working_directory(root: Root<'_>, cwd: &Path) -> Result<OwnedFd> {
    match find_working_directory(root, cwd) {
        Err(absent) if absent.errno == libc::ENOENT => {}
        other => return other,
    }
    root.ensure(cwd, Want::Directory).map_err(|mut fault| {
        fault.message = format!("{}: {}", entering(cwd), fault.message);
        fault.kind(Kind::Invalid)
    })
}

fn open_null(root: Root<'_>) -> Result<OwnedFd> {
    let null = root
        .open(Path::new("/dev/null"), OFlags::RDWR | OFlags::NOCTTY)
        .at(|| "open the container's /dev/null")?;
    if staging::is_null(null.as_fd()) {
        Ok(null)
    } else {
        Err(Fault::invalid("the container's /dev/null is not the null device"))
    }
}

/// A new pseudo-terminal of the container's own devpts: master and peer (CVE-2025-52565: both are what they seem).
fn open_terminal(root: Root<'_>, size: Option<ConsoleSize>) -> Result<(OwnedFd, OwnedFd)> {
    let what = || "open a terminal in the container's /dev/pts";
    let pts = root.find_plain(Path::new("/dev/pts")).at(what)?;
    if fstatfs(&pts).at(what)?.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return Err(Fault::invalid("the container's /dev/pts is not a devpts"));
    }
    let inside = Root {
        fd: pts.as_fd(),
        owner: (0, 0),
    };
    let master = inside
        .open(Path::new("ptmx"), OFlags::RDWR | OFlags::NOCTTY)
        .at(what)?;
    rustix::pty::unlockpt(&master).at(what)?;
    let peer = process::terminal_peer(master.as_fd()).at(what)?;
    if let Some(size) = size {
        let size = rustix::termios::Winsize {
            ws_row: cells(size.height()),
            ws_col: cells(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).at(|| "set the terminal's size")?;
    }
    Ok((master, peer))
}

/// Rows or columns, of which the kernel knows 65,535.
fn cells(wanted: u64) -> u16 {
    u16::try_from(wanted).unwrap_or(u16::MAX)
}

/// Binds the terminal with this master at /dev/console, where that is a file of ours. Called with `/` the container's.
fn bind_console(master: BorrowedFd<'_>) -> Result<()> {
    let what = || "bind the terminal at /dev/console";
    let name = rustix::pty::ptsname(master, Vec::new()).at(what)?;
    let root = staging::root()?;
    let root = Root {
        fd: root.as_fd(),
        owner: (0, 0),
    };
    let path = PathBuf::from(name.to_string_lossy().into_owned());
    let peer = root.find_plain(&path).at(what)?;
    if fstatfs(&peer).at(what)?.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return Err(Fault::invalid("the container's /dev/pts is not a devpts"));
    }
    let console = root.find_plain(Path::new("/dev/console")).at(what)?;
    let clone = staging::clone_tree(peer.as_fd(), false).at(what)?;
    attach(clone.as_fd(), console.as_fd()).at(what)
}

/// Makes a mount that lies over its namespace's root the process's root.
///
/// Below it is only the staging tree, which holds nothing of the host, and every way up (`..` from outside of an inner
/// chroot, setns to one's own namespace) ends at the topmost mount at `/`, which is this one. So there is nothing to
/// take off; unmounting an old root would wait for an RCU grace period, which takes milliseconds on a busy machine.
pub(crate) fn enter_root(root: BorrowedFd<'_>) -> Result<()> {
    let what = || "change the root";
    rustix::process::fchdir(root).at(what)?;
    rustix::process::chroot(".").at(what)?;
    rustix::process::chdir("/").at(what)
}

/// Makes the tree behind `root` the process's own, and lets go of the old one.
pub(crate) fn pivot(root: BorrowedFd<'_>) -> Result<()> {
    let what = || "change the root";
    rustix::process::fchdir(root).at(what)?;
    mount::pivot_here().at(what)?;
    // The old root now lies over the new one, at the same place: take it off.
    mount::detach_here().at(|| "detach the old root")?;
    rustix::process::chdir("/").at(what)
}

/// Closes everything that this process does not need itself, so that no other container's pipe is held open by one
/// that waits at its barrier.
pub(crate) fn close_others(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    process::close_all_but(&mut numbers)
}
