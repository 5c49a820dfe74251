//! Devices that vendors describe in files: the Container Device Interface (CDI 1.1.0).
//!
//! ```text
//! /etc/cdi/*.{json,yaml}, /var/run/cdi/… ── read ──> Table: name → device ── inject ──> OCI runtime spec
//!        └── inotify: changes are read and told of in the log                 adjusted, and recorded so
//! ```
//!
//! A later directory goes before an earlier one; a device that two specs of one directory describe can be had from neither.
//! A spec that cannot be used harms no other: it is named in the log, in Status, and to those who ask for a device of its
//! kind. Whoever asks sees the files as they are now, whether inotify has told of them or not: device plugins write a spec
//! and have the container made right after.
//!
//! Leaves out running hooks, which is the launcher's or an external runtime's, resctrl and moving network interfaces.

mod inject;
mod name;
mod spec;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::Spec as OciSpec;
use tracing::{info, warn};

use crate::Error;

pub(crate) use inject::Refusal;
pub(crate) use name::{Name, requested};
use spec::{Broken, Edits, Spec};

/// Files in one directory; what is beyond is not read.
const FILES: usize = 4096;
/// Broken specs that an error names.
const NAMED: usize = 4;

/// The specs of this node.
#[derive(Debug)]
pub(crate) struct Cdi {
    /// The later, the higher its priority.
    dirs: Vec<PathBuf>,
    state: Mutex<(Stamp, Arc<Table>)>,
}

/// For each file: where, which inode, how large, when written and when changed. Two equal ones have the same content.
type Stamp = Vec<(PathBuf, [i64; 6])>;

/// What the files say.
#[derive(Debug, Default)]
struct Table {
    devices: BTreeMap<Name, Place>,
    /// Described twice at the same priority.
    conflicts: BTreeMap<Name, Vec<PathBuf>>,
    broken: Vec<Broken>,
    /// Directories that are there and cannot be read.
    unreadable: Vec<(PathBuf, String)>,
}

#[derive(Debug, Clone)]
struct Place {
    spec: Arc<Spec>,
    path: Arc<Path>,
    /// Index in the spec's devices.
    device: usize,
    priority: usize,
}

/// What Status tells of the specs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CdiStatus {
    pub dirs: Vec<PathBuf>,
    /// Fully qualified.
    pub devices: Vec<String>,
    /// What cannot be used: a file, a directory or a device's name, and why.
    pub broken: Vec<(String, String)>,
}

impl Cdi {
    /// Reads the directories; those that are not there count as empty. Blocks.
    pub(crate) fn open(dirs: Vec<PathBuf>) -> Arc<Self> {
        let cdi = Arc::new(Self {
            dirs,
            state: Mutex::default(),
        });
        cdi.current();
        cdi
    }

    fn state(&self) -> MutexGuard<'_, (Stamp, Arc<Table>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files as they are now. Blocks; costs a stat(2) for each while nothing changes.
    fn current(&self) -> Arc<Table> {
        // Before the files are read: a change meanwhile is seen the next time.
        let (stamp, files, unreadable) = self.list();
        if self.state().0 == stamp {
            return self.state().1.clone();
        }
        let table = Arc::new(Table::read(&files, unreadable));
        let mut state = self.state();
        table.announce(&state.1);
        *state = (stamp, table.clone());
        table
    }

    /// Every file with the priority of its directory.
    #[allow(clippy::type_complexity, reason = "three parts of one answer")]
    fn list(&self) -> (Stamp, Vec<(PathBuf, usize)>, Vec<(PathBuf, String)>) {
        let (mut stamp, mut files, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        for (priority, dir) in self.dirs.iter().enumerate() {
            let mut names = match names_in(dir) {
                Ok(names) => names,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    stamp.push((dir.clone(), [-1; 6]));
                    unreadable.push((dir.clone(), error.to_string()));
                    continue;
                }
            };
            names.sort();
            for path in names {
                stamp.push((path.clone(), stamp_of(&path)));
                files.push((path, priority));
            }
        }
        (stamp, files, unreadable)
    }

    /// Changes `spec` as the devices want it. Blocks.
    pub(crate) fn inject(&self, names: &[Name], mut spec: OciSpec) -> Result<OciSpec, Error> {
        let table = self.current();
        let places = names
            .iter()
            .map(|name| table.find(name, &self.dirs).map(|place| (name, place)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut seen: Vec<&Arc<Path>> = Vec::new();
        for (name, place) in &places {
            let refused = |refusal| refuse(name, &place.path, refusal);
            // What a spec says of all of its devices comes once, before the first of them.
            if !seen.contains(&&place.path) {
                seen.push(&place.path);
                inject::apply(&place.spec.container_edits, &mut spec).map_err(refused)?;
            }
            inject::apply(place.edits(), &mut spec).map_err(refused)?;
        }
        Ok(spec)
    }

    /// From memory.
    pub(crate) fn status(&self) -> CdiStatus {
        let table = self.state().1.clone();
        CdiStatus {
            dirs: self.dirs.clone(),
            devices: table.devices.keys().map(ToString::to_string).collect(),
            broken: table.troubles().collect(),
        }
    }
}

fn refuse(name: &Name, path: &Path, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Missing(reason) => Error::Cdi {
            device: name.to_string(),
            reason: format!("{} wants what this node has not got: {reason}", path.display()),
        },
        Refusal::Unsupported(what) => {
            Error::Unsupported(format!("CDI device {name}: {} asks for {what}", path.display()))
        }
    }
}

/// Paths of what may be a spec.
fn names_in(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let suffix = path.extension().and_then(|ext| ext.to_str());
        if matches!(suffix, Some("json" | "yaml")) && !path.is_dir() {
            paths.push(path);
        }
        if paths.len() >= FILES {
            warn!(dir = %dir.display(), "more than {FILES} CDI specs: the rest is not read");
            break;
        }
    }
    Ok(paths)
}

fn stamp_of(path: &Path) -> [i64; 6] {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or([-2; 6], |meta| {
        [
            meta.ino().cast_signed(),
            meta.size().cast_signed(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        ]
    })
}

impl Place {
    fn edits(&self) -> &Edits {
        &self.spec.devices[self.device].container_edits
    }
}

impl Table {
    fn read(files: &[(PathBuf, usize)], unreadable: Vec<(PathBuf, String)>) -> Self {
        let mut table = Self {
            unreadable,
            ..Self::default()
        };
        for (path, priority) in files {
            match spec::read(path) {
                Ok(spec) => table.add(spec, path, *priority),
                Err(broken) => table.broken.push(broken),
            }
        }
        for name in table.conflicts.keys() {
            table.devices.remove(name);
        }
        table
    }

    /// Directories come with rising priority.
    fn add(&mut self, spec: Spec, path: &Path, priority: usize) {
        let (spec, path): (_, Arc<Path>) = (Arc::new(spec), path.into());
        for (device, described) in spec.devices.iter().enumerate() {
            let name = Name {
                kind: spec.kind.clone(),
                device: described.name.clone(),
            };
            match self.devices.get(&name) {
                Some(known) if known.priority == priority => {
                    let paths = self.conflicts.entry(name).or_default();
                    if paths.is_empty() {
                        paths.push(known.path.to_path_buf());
                    }
                    paths.push(path.to_path_buf());
                    continue;
                }
                Some(_) => drop(self.conflicts.remove(&name)),
                None => {}
            }
            let place = Place {
                spec: spec.clone(),
                path: path.clone(),
                device,
                priority,
            };
            self.devices.insert(name, place);
        }
    }

    fn find(&self, name: &Name, dirs: &[PathBuf]) -> Result<Place, Error> {
        if let Some(place) = self.devices.get(name) {
            return Ok(place.clone());
        }
        let reason = match self.conflicts.get(name) {
            Some(paths) => format!("is described by each of {}: one of them must go", join(paths)),
            None => {
                let kind = self.devices.keys().any(|known| known.kind == name.kind);
                let what = if kind { "that name" } else { "that kind" };
                format!(
                    "no spec in {} has a device of {what}{}",
                    join(dirs),
                    self.suspects(name)
                )
            }
        };
        Err(Error::Cdi {
            device: name.to_string(),
            reason,
        })
    }

    /// Specs that might have had it, were they not broken.
    fn suspects(&self, name: &Name) -> String {
        let might = |broken: &&Broken| broken.kind.as_ref().is_none_or(|kind| *kind == name.kind);
        let broken = self.broken.iter().filter(might).take(NAMED);
        let broken = broken.map(|broken| format!("{}: {}", broken.path.display(), broken.reason));
        let dirs = self.unreadable.iter().take(NAMED);
        let all: Vec<String> = broken
            .chain(dirs.map(|(dir, reason)| format!("{}: {reason}", dir.display())))
            .collect();
        if all.is_empty() {
            String::new()
        } else {
            format!("; it may be in what cannot be used: {}", all.join("; "))
        }
    }

    /// What cannot be used, and why.
    fn troubles(&self) -> impl Iterator<Item = (String, String)> {
        let dirs = self.unreadable.iter();
        let dirs = dirs.map(|(dir, reason)| (dir.display().to_string(), reason.clone()));
        let files = self.broken.iter();
        let files = files.map(|broken| (broken.path.display().to_string(), broken.reason.clone()));
        let conflicts = self.conflicts.iter();
        dirs.chain(files).chain(conflicts.map(|(name, paths)| {
            (
                name.to_string(),
                format!("is described by each of {}", join(paths)),
            )
        }))
    }

    /// Tells the log what is new.
    fn announce(&self, before: &Self) {
        let known: Vec<_> = before.troubles().collect();
        for trouble in self.troubles().filter(|trouble| !known.contains(trouble)) {
            warn!(spec = %trouble.0, reason = %trouble.1, "CDI spec cannot be used");
        }
        if !self.devices.keys().eq(before.devices.keys()) {
            info!(devices = self.devices.len(), "CDI devices");
        }
    }
}

fn join(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}
