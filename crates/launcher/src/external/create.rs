//! The builder of a container that a runtime makes.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_sys::process::{self, Control};
use holdfast_sys::{namespace, pidfd};
use rustix::fs::{Mode, OFlags};

use super::call::{Call, read_small};
use super::console::Console;
use super::{CREATE, External, spec};
use crate::building::{Made, Slot};
use crate::bundle;
use crate::container::open_rootfs;
use crate::error::Kind;
use crate::fault::{Context, Fault, Result};
use crate::namespaces::MOUNT;
use crate::overlay::Overlay;
use crate::plan::{ContainerPlan, Stdio};
use crate::procfs::Procfs;
use crate::selinux::Label;

const PID_FILE: &str = "init.pid";

pub(super) fn build(runtime: &External, plan: &ContainerPlan<'_>) -> Result<Made> {
    prepare_builder()?;
    let tty = matches!(plan.stdio, Stdio::Terminal);
    let mut translated = spec::translate(plan, &runtime.bundle, tty)?;
    let mut warnings = Vec::new();
    spec::clamp(
        &mut translated.spec["process"],
        plan.clamp_privileges,
        &mut warnings,
    )?;
    bundle::make(&runtime.bundle)?;
    let mounts = mount(runtime, plan, &translated)?;
    bundle::write(&runtime.bundle, &translated.spec)?;
    let console = tty
        .then(|| Console::listen(&runtime.bundle, "init.tty"))
        .transpose()?;
    let pid_file = runtime.bundle.join(PID_FILE);
    let mut arguments: Vec<OsString> = Vec::new();
    if spec::by_systemd(plan) {
        arguments.push("--systemd-cgroup".into());
    }
    arguments.extend(["create".into(), "--bundle".into(), runtime.bundle.clone().into()]);
    arguments.extend(["--pid-file".into(), pid_file.clone().into()]);
    if let Some(console) = &console {
        arguments.extend(["--console-socket".into(), console.path.clone().into()]);
    }
    arguments.push(plan.id.into());
    let call = Call {
        runtime,
        verb: "create",
        arguments,
        log: "create.log",
        stdio: plan.stdio.ends(),
        mounts: None,
        limit: CREATE,
    };
    call.run()?;
    let (pid, init) = left_behind(&pid_file)?;
    let mut fds = vec![(Slot::Init, init), (Slot::Mnt, mounts)];
    if let Some(console) = console {
        fds.push((Slot::Terminal, console.take()?));
    }
    Ok(Made { pid, fds, warnings })
}

/// The builder becomes the one to whom the runtime's child is left, so that its number is its own until it is opened
/// here; and a session leader, by which what hangs can be found when the builder was killed.
pub(super) fn prepare_builder() -> Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Fails only where we lead one already.
    let _led = rustix::process::setsid();
    process::control(Control::ChildSubreaper(true)).at(|| "become a subreaper")
}

/// Makes what lies in the bundle, in a mount namespace of its own, in which the caller is afterwards.
fn mount(runtime: &External, plan: &ContainerPlan<'_>, wanted: &spec::Translated) -> Result<OwnedFd> {
    let proc = Procfs::shared()?;
    let label = Label::new(wanted.spec["linux"]["mountLabel"].as_str().unwrap_or_default())?;
    if let Some(label) = label {
        for source in &plan.relabel {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let top = rustix::fs::open(source, flags, Mode::empty())
                .at(|| format!("open {}, which is to be labelled", source.display()))?;
            label.relabel(top.as_fd(), source, proc)?;
        }
    }
    let host = proc
        .namespace(0, "mnt")
        .at(|| "open the host's mount namespace")?;
    let shm = match (wanted.shm, &plan.namespaces.mnt) {
        (true, Some(pause)) => Some(bundle::pod_shm(pause.as_fd(), host.as_fd())?),
        (true, None) => return Err(Fault::invalid("the pod's mount namespace is not open")),
        (false, _) => None,
    };
    let copy = bundle::enter_copy(&runtime.bundle, proc)?;
    // An overlay of many layers is made in yet another namespace, on a kernel that knows no better.
    let back = || namespace::join(copy.as_fd(), MOUNT).at(|| "go back to the copied mount namespace");
    let root = open_rootfs(&plan.rootfs, proc, None, label)?;
    back()?;
    bundle::place(&runtime.bundle, bundle::ROOT, root.as_fd())?;
    if let Some(shm) = shm {
        bundle::place(&runtime.bundle, bundle::SHM, shm.as_fd())?;
    }
    for (name, layers) in &wanted.overlays {
        let overlay = Overlay {
            lowers: &layers.lowers,
            upper: layers.upper.as_ref().map(|(upper, work)| (&**upper, &**work)),
            options: &layers.options,
            label,
        };
        let mount = overlay.mount(proc, None)?;
        back()?;
        bundle::place(&runtime.bundle, name, mount.as_fd())?;
    }
    Ok(copy)
}

/// The process that the runtime has left to us, by the file that it wrote.
pub(super) fn left_behind(pid_file: &std::path::PathBuf) -> Result<(i32, OwnedFd)> {
    let what = || format!("read {}", pid_file.display());
    let text = read_small(pid_file).at(what)?;
    let lost = || {
        Fault::new(
            Kind::Internal,
            format!("the runtime wrote {text:?} for a process number"),
        )
    };
    let pid: i32 = text.trim().parse().map_err(|_| lost())?;
    let process = pidfd::open(pid).at(|| format!("open process {pid}"))?;
    // Only then is its end ours to see, and the number surely its own.
    let status = Procfs::shared()?.open(format!("{pid}/status"), OFlags::RDONLY);
    let status = std::io::read_to_string(std::fs::File::from(status.at(what)?)).at(what)?;
    let parent = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .and_then(|parent| parent.trim().parse::<i32>().ok());
    match parent == Some(rustix::process::getpid().as_raw_nonzero().get()) {
        true => Ok((pid, process)),
        false => Err(Fault::new(
            Kind::Internal,
            format!("process {pid}, which the runtime names, was not left to its caller"),
        )),
    }
}
