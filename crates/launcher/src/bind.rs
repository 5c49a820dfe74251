//! Bind mounts: a clone of the source, taken where it is, with its flags, propagation and id map set before the
//! container can see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use holdfast_sys::mount::{Attributes, Propagation, set_attributes};
use rustix::fs::{CWD, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::Kind;
use crate::fault::{Context, Fault, Result};
use crate::mounts::Entry;
use crate::procfs::Procfs;
use crate::selinux::Label;
use crate::userns::Mapping;

/// Clones `source` of the host for `entry`. With `label` it gets that label first.
pub(crate) fn open(
    source: &Path,
    entry: &Entry,
    mapping: Option<&Mapping<'_>>,
    proc: &Procfs,
    label: Option<Label<'_>>,
) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | recursive_flag(entry);
    let clone = open_tree(CWD, source, flags).map_err(|errno| {
        let what = format!(
            "mount source {} (for {})",
            source.display(),
            entry.destination.display()
        );
        let fault = Fault::system(what, &errno.into());
        if errno == rustix::io::Errno::NOENT {
            fault.kind(Kind::NotFound)
        } else {
            fault
        }
    })?;
    check_propagation(source, entry, proc)?;
    if let Some(label) = label {
        // Before the container can see it, and before the clone becomes read-only.
        label.relabel(clone.as_fd(), source, proc)?;
    }
    dress(clone.as_fd(), entry, mapping)?;
    Ok(clone)
}

fn recursive_flag(entry: &Entry) -> OpenTreeFlags {
    if entry.options.bind_recursive {
        OpenTreeFlags::AT_RECURSIVE
    } else {
        OpenTreeFlags::empty()
    }
}

/// Sets what the options ask for on a detached clone.
pub(crate) fn dress(mount: BorrowedFd<'_>, entry: &Entry, mapping: Option<&Mapping<'_>>) -> Result<()> {
    let options = &entry.options;
    let what = |what: &str| format!("{what} of the mount at {}", entry.destination.display());
    // A mount that asks for nothing is private: what the host mounts later stays the host's.
    let (propagation, recursive) = match options.propagation {
        Propagation::Unchanged => (Propagation::Private, true),
        asked => (asked, options.propagation_recursive),
    };
    let attributes = Attributes {
        propagation,
        recursive,
        ..Attributes::default()
    };
    set_attributes(mount, attributes).at(|| what("set the propagation"))?;
    if options.idmap {
        let mapping =
            mapping.ok_or_else(|| Fault::invalid(what("the pod has no user namespace for the id map")))?;
        let attributes = Attributes {
            idmap: Some(mapping.user),
            recursive: options.idmap_recursive,
            ..Attributes::default()
        };
        set_attributes(mount, attributes).map_err(|e| {
            let fault = Fault::system(what("map the ids"), &e);
            match e.raw_os_error() {
                Some(libc::EINVAL) => fault.kind(Kind::Unsupported), // the file system cannot
                _ => fault,
            }
        })?;
    }
    for (change, recursive) in [(options.recursive, true), (options.attributes, false)] {
        if change.is_empty() {
            continue;
        }
        let attributes = Attributes {
            set: change.set,
            clear: change.clear,
            recursive,
            ..Attributes::default()
        };
        set_attributes(mount, attributes).at(|| what("set the flags"))?;
    }
    Ok(())
}

/// A mount that is to carry mounts to the host, or get them from there, must lie on one that can: as the kubelet's
/// users know it, that is an error and not a silent nothing.
fn check_propagation(source: &Path, entry: &Entry, proc: &Procfs) -> Result<()> {
    let (needs, name) = match entry.options.propagation {
        Propagation::Shared => (&["shared:"][..], "shared"),
        Propagation::Slave => (&["shared:", "master:"][..], "shared or slave"),
        _ => return Ok(()),
    };
    let what = || format!("look up the mount of {}", source.display());
    let stat = rustix::fs::statx(
        CWD,
        source,
        rustix::fs::AtFlags::empty(),
        rustix::fs::StatxFlags::MNT_ID,
    )
    .at(what)?;
    let table = proc.open("self/mountinfo", OFlags::RDONLY).at(what)?;
    let table = std::io::read_to_string(std::fs::File::from(table)).at(what)?;
    let id = stat.stx_mnt_id.to_string();
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(&id))
        .unwrap_or_default();
    let shared = line
        .split(' ')
        .skip(6)
        .take_while(|field| *field != "-")
        .any(|field| needs.iter().any(|tag| field.starts_with(tag)));
    if shared {
        Ok(())
    } else {
        Err(Fault::invalid(format!(
            "{} is not on a {name} mount, as the propagation of the mount at {} needs",
            source.display(),
            entry.destination.display()
        )))
    }
}
