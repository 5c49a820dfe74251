//! Everything that belongs to one holdfast, in the kernel and on disk.

use crate::Scope;
use crate::procfs::{self, Process};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is there, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Mount points below root and state, and our files in /run/netns, in the daemon's mount namespace.
    pub mounts: BTreeSet<PathBuf>,
    /// Our files in /run/netns.
    pub netns_files: BTreeSet<String>,
    /// Numbers of network namespaces, other than the host's, that one of our processes is in or holds open.
    pub networks: BTreeSet<u64>,
    /// Ports of the built-in bridge.
    pub links: BTreeSet<String>,
    /// `family name` of nftables tables.
    pub nft_tables: BTreeSet<String>,
    /// Elements of the sets and maps of those tables (host ports and the like), as `table set element`.
    pub nft_elements: BTreeSet<String>,
    /// Paths from the hierarchy's root, below and including the scope's, over all hierarchies.
    pub cgroups: BTreeSet<String>,
    /// `monitor`, `pause`, `zombie NAME` or the program's name, by pid: monitors of our state directory, processes in
    /// our cgroups, and the children of both. Not the daemon.
    pub processes: BTreeMap<i32, String>,
    /// Under the systemd driver: processes that keep a scope for the daemon. They are its children and end with it, so that another
    /// daemon has others.
    pub scope_helpers: usize,
    /// Names in `<root>/snapshots`.
    pub snapshots: BTreeSet<String>,
    /// Names in `<state>/pods`.
    pub pod_dirs: BTreeSet<String>,
    /// Names in `<root>/records/pods` and `<root>/records/containers`.
    pub pod_records: BTreeSet<String>,
    pub container_records: BTreeSet<String>,
    /// Files below `<root>/network` (address leases, results of plugins).
    pub network_files: BTreeSet<PathBuf>,
    /// The daemon's descriptors by what they are open on.
    pub descriptors: BTreeMap<String, usize>,
}

impl Inventory {
    #[must_use]
    pub fn take(scope: &Scope) -> Self {
        let mut out = Self {
            netns_files: procfs::entries("/run/netns")
                .filter(|name| name.starts_with(&scope.netns_prefix))
                .collect(),
            snapshots: procfs::entries(scope.root.join("snapshots")).collect(),
            pod_dirs: procfs::entries(scope.state.join("pods")).collect(),
            pod_records: records(&scope.root.join("records/pods")),
            container_records: records(&scope.root.join("records/containers")),
            descriptors: scope.daemon.map(procfs::descriptors_of).unwrap_or_default(),
            ..Self::default()
        };
        out.take_mounts(scope);
        out.take_processes(scope);
        out.take_network(scope);
        for mount in procfs::cgroup_mounts() {
            for path in &scope.cgroups {
                walk_cgroups(&mount, path, &mut out.cgroups);
            }
        }
        walk_files(&scope.root.join("network"), &scope.root, &mut out.network_files);
        out
    }

    /// Everything that is here and not in `before`, and the other way round, in words.
    #[must_use]
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let mut out = Vec::new();
        compare(&mut out, "mount", &before.mounts, &self.mounts, |it| {
            it.display().to_string()
        });
        compare(
            &mut out,
            "file in /run/netns",
            &before.netns_files,
            &self.netns_files,
            String::clone,
        );
        compare(
            &mut out,
            "network namespace",
            &before.networks,
            &self.networks,
            u64::to_string,
        );
        compare(&mut out, "link", &before.links, &self.links, String::clone);
        compare(
            &mut out,
            "nftables table",
            &before.nft_tables,
            &self.nft_tables,
            String::clone,
        );
        compare(
            &mut out,
            "nftables element",
            &before.nft_elements,
            &self.nft_elements,
            String::clone,
        );
        compare(&mut out, "cgroup", &before.cgroups, &self.cgroups, String::clone);
        compare(
            &mut out,
            "snapshot",
            &before.snapshots,
            &self.snapshots,
            String::clone,
        );
        compare(
            &mut out,
            "pod directory",
            &before.pod_dirs,
            &self.pod_dirs,
            String::clone,
        );
        compare(
            &mut out,
            "pod record",
            &before.pod_records,
            &self.pod_records,
            String::clone,
        );
        compare(
            &mut out,
            "container record",
            &before.container_records,
            &self.container_records,
            String::clone,
        );
        compare(
            &mut out,
            "network file",
            &before.network_files,
            &self.network_files,
            |it| it.display().to_string(),
        );
        let pids = |inventory: &Self| {
            inventory
                .processes
                .iter()
                .map(|(pid, name)| (*pid, name.clone()))
                .collect()
        };
        let (old, new): (BTreeSet<_>, BTreeSet<_>) = (pids(before), pids(self));
        compare(&mut out, "process", &old, &new, |(pid, name)| {
            format!("{pid} ({name})")
        });
        if before.scope_helpers != self.scope_helpers {
            out.push(format!(
                "processes that keep a scope for the daemon: {} before, {} now",
                before.scope_helpers, self.scope_helpers
            ));
        }
        for name in before
            .descriptors
            .keys()
            .chain(self.descriptors.keys())
            .collect::<BTreeSet<_>>()
        {
            let count = |inventory: &Self| inventory.descriptors.get(name).copied().unwrap_or(0);
            // Fewer is no leak: a connection that was idle at the time of the snapshot may have ended since.
            if count(self) > count(before) {
                out.push(format!(
                    "descriptors of the daemon on {name}: {} before, {} now",
                    count(before),
                    count(self)
                ));
            }
        }
        out
    }

    /// Pids of one kind of process.
    #[must_use]
    pub fn pids_of(&self, kind: &str) -> Vec<i32> {
        self.processes
            .iter()
            .filter(|(_, name)| *name == kind)
            .map(|(pid, _)| *pid)
            .collect()
    }

    fn take_mounts(&mut self, scope: &Scope) {
        let named = |point: &Path| {
            let name = point.strip_prefix("/run/netns").ok().and_then(Path::to_str);
            name.is_some_and(|name| name.starts_with(&scope.netns_prefix))
        };
        // The directories themselves may be mounts of the test's (a tmpfs for the state, say).
        let below = |point: &Path| {
            [&scope.root, &scope.state]
                .into_iter()
                .any(|dir| point.starts_with(dir) && point != dir.as_path())
        };
        self.mounts = procfs::mount_points(&scope.host())
            .into_iter()
            .filter(|point| below(point) || named(point))
            .collect();
    }

    fn take_processes(&mut self, scope: &Scope) {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let all: Vec<Process> = Process::all()
            .into_iter()
            .filter(|process| process.pid != own && Some(process.pid) != scope.daemon)
            .collect();
        let in_cgroup = |process: &Process| {
            let mut cgroups = process.cgroups().into_iter();
            cgroups.any(|path| {
                scope
                    .cgroups
                    .iter()
                    .any(|ours| Path::new(&path).starts_with(ours))
            })
        };
        let in_state = |process: &Process| {
            process.program == "holdfast-monitor"
                && process.links().iter().any(|link| link.starts_with(&scope.state))
        };
        let mut ours: Vec<&Process> = all
            .iter()
            .filter(|process| in_cgroup(process) || in_state(process))
            .collect();
        // Children of ours, and zombies of the daemon's.
        loop {
            let parents: BTreeSet<i32> = ours.iter().map(|process| process.pid).collect();
            let known = ours.len();
            ours.extend(all.iter().filter(|process| {
                let of_daemon = process.state == 'Z' && Some(process.parent) == scope.daemon;
                !parents.contains(&process.pid) && (parents.contains(&process.parent) || of_daemon)
            }));
            if ours.len() == known {
                break;
            }
        }
        let host = procfs::namespace(&format!("/proc/{}/ns/net", scope.host()));
        for process in ours {
            self.networks.extend(process.network());
            self.networks.extend(
                process
                    .links()
                    .iter()
                    .filter_map(|link| procfs::network_number(link)),
            );
            let kind = kind(process);
            if kind == "pause" && Some(process.parent) == scope.daemon {
                self.scope_helpers += 1;
            } else {
                self.processes.insert(process.pid, kind);
            }
        }
        if let Some(daemon) = scope.daemon.and_then(Process::of) {
            self.networks.extend(
                daemon
                    .links()
                    .iter()
                    .filter_map(|link| procfs::network_number(link)),
            );
        }
        for name in &self.netns_files {
            self.networks
                .extend(procfs::namespace(&format!("/run/netns/{name}")));
        }
        if let Some(host) = host {
            self.networks.remove(&host);
        }
    }

    fn take_network(&mut self, scope: &Scope) {
        if let Some(bridge) = &scope.bridge {
            let text = run(scope, "ip", &["-o", "link", "show", "master", bridge]).unwrap_or_default();
            // `7: hf12@if2: <...> ...`
            let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
            self.links = text.lines().filter_map(name).collect();
        }
        for line in run(scope, "nft", &["list", "tables"]).unwrap_or_default().lines() {
            let mut words = line.split(' ').skip(1);
            let (Some(family), Some(name)) = (words.next(), words.next()) else {
                continue;
            };
            if name.starts_with(&scope.nft_prefix) {
                self.nft_tables.insert(format!("{family} {name}"));
                let text = run(scope, "nft", &["list", "table", family, name]).unwrap_or_default();
                self.nft_elements.extend(
                    nft_elements(&text)
                        .into_iter()
                        .map(|it| format!("{family} {name} {it}")),
                );
            }
        }
    }
}

fn kind(process: &Process) -> String {
    match (process.state, process.program.as_str()) {
        ('Z', _) => format!("zombie {}", process.name),
        (_, "holdfast-monitor") => "monitor".into(),
        (_, "holdfast-pause") => "pause".into(),
        (_, "") => process.name.clone(),
        (_, program) => program.to_owned(),
    }
}

/// Runs a tool in the scope's network namespace; `None` if it fails, as for a bridge that does not exist (yet).
fn run(scope: &Scope, program: &str, args: &[&str]) -> Option<String> {
    let mut command = match scope.daemon {
        Some(pid) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/proc/{pid}/ns/net")).arg(program);
            command
        }
        None => Command::new(program),
    };
    let output = command.args(args).output();
    let output = output.unwrap_or_else(|error| panic!("the leak checker needs {program}: {error}"));
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The elements of every set and map in a table, as `nft list table` prints them: `elements = { a, b : c }`, over one
/// line or several, below a line that names the set.
fn nft_elements(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut set = "";
    let mut inside: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("set ").or_else(|| line.strip_prefix("map ")) {
            set = name.trim_end_matches(" {");
        }
        let begun = line.strip_prefix("elements = {");
        if let Some(rest) = begun.or_else(|| inside.as_ref().map(|_| line)) {
            let list = inside.get_or_insert_default();
            list.push(' ');
            list.push_str(rest.trim_end_matches('}'));
            if rest.ends_with('}') {
                let elements = inside.take().unwrap_or_default();
                let elements = elements.split(',').map(str::trim).filter(|it| !it.is_empty());
                out.extend(elements.map(|it| format!("{set} {it}")));
            }
        }
    }
    out
}

/// Record files by the id that they are named after; what a crash left half-written has a name that tells.
fn records(dir: &Path) -> BTreeSet<String> {
    procfs::entries(dir)
        .map(|name| {
            name.split_once('.')
                .map_or(name.clone(), |(stem, _)| stem.to_owned())
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn walk_cgroups(mount: &Path, path: &str, out: &mut BTreeSet<String>) {
    let dir = mount.join(path.trim_start_matches('/'));
    if !dir.is_dir() {
        return;
    }
    out.insert(path.to_owned());
    for name in procfs::entries(&dir)
        .filter(|name| dir.join(name).is_dir())
        .collect::<Vec<_>>()
    {
        walk_cgroups(mount, &format!("{path}/{name}"), out);
    }
}

fn walk_files(dir: &Path, base: &Path, out: &mut BTreeSet<PathBuf>) {
    for name in procfs::entries(dir).collect::<Vec<_>>() {
        let path = dir.join(name);
        if path.is_dir() {
            walk_files(&path, base, out);
        } else if let Ok(relative) = path.strip_prefix(base) {
            out.insert(relative.to_owned());
        }
    }
}

fn compare<T: Ord>(
    out: &mut Vec<String>,
    what: &str,
    old: &BTreeSet<T>,
    new: &BTreeSet<T>,
    name: impl Fn(&T) -> String,
) {
    out.extend(
        new.difference(old)
            .map(|it| format!("{what} {} is new", name(it))),
    );
    out.extend(
        old.difference(new)
            .map(|it| format!("{what} {} is gone", name(it))),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_found_on_one_line_and_on_several() {
        let text = "table inet holdfast {
\tmap ports {
\t\ttype inet_proto . inet_service : ipv4_addr . inet_service
\t\telements = { tcp . 80 : 10.0.0.2 . 8080, udp . 53 : 10.0.0.3 . 53,
\t\t\t     tcp . 81 : 10.0.0.2 . 8081 }
\t}
\tset pods {
\t\ttype ipv4_addr
\t\telements = { 10.0.0.2 }
\t}
\tset none {
\t\ttype ipv4_addr
\t}
\tchain c {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
";
        assert_eq!(
            nft_elements(text),
            [
                "ports tcp . 80 : 10.0.0.2 . 8080",
                "ports udp . 53 : 10.0.0.3 . 53",
                "ports tcp . 81 : 10.0.0.2 . 8081",
                "pods 10.0.0.2"
            ]
        );
    }

    #[test]
    fn differences_are_told_in_words() {
        let old = Inventory {
            snapshots: BTreeSet::from(["a".to_owned()]),
            descriptors: BTreeMap::from([("socket".to_owned(), 1)]),
            ..Inventory::default()
        };
        let new = Inventory {
            processes: BTreeMap::from([(7, "pause".to_owned())]),
            descriptors: BTreeMap::from([("socket".to_owned(), 2)]),
            ..Inventory::default()
        };
        assert_eq!(
            new.differences(&old),
            [
                "snapshot a is gone",
                "process 7 (pause) is new",
                "descriptors of the daemon on socket: 1 before, 2 now"
            ]
        );
        assert!(old.differences(&old).is_empty());
    }
}
