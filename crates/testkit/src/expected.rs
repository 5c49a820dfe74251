//! What the living records own, to be compared with what is there.

use crate::Inventory;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;

/// One pod that has been run and not removed.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// Stopped pods keep their record, and nothing in the kernel.
    pub ready: bool,
    /// It has a network namespace of its own.
    pub own_network: bool,
    /// It is on the built-in bridge: a port there, and an address.
    pub bridged: bool,
    /// File in /run/netns, with external CNI plugins.
    pub netns_file: Option<String>,
    /// Its cgroup, from the root of the hierarchy; pause's is `<that>/<id>`, a container's `<that>/<container id>`.
    /// `None`: cgroups are not compared for it.
    pub cgroup: Option<String>,
    /// Its containers that have not been removed, and whether each one is running.
    pub containers: Vec<(String, bool)>,
}

/// All pods that have not been removed.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    pub pods: Vec<Pod>,
    /// Cgroups that stay when their pods have gone, such as the parent of all.
    pub lasting_cgroups: Vec<String>,
    /// Parent of the monitors' own cgroups, each named after its sandbox.
    pub monitor_cgroup: Option<String>,
}

impl Expected {
    /// Everything that should be there and is not, and the other way round, in words.
    #[must_use]
    pub fn differences(&self, found: &Inventory) -> Vec<String> {
        let mut out = Vec::new();
        let ready: Vec<&Pod> = self.pods.iter().filter(|pod| pod.ready).collect();
        let ids: BTreeSet<String> = self.pods.iter().map(|pod| pod.id.clone()).collect();
        let containers: BTreeSet<String> = self.containers().map(|(id, _)| id.clone()).collect();
        exact(&mut out, "pod record", &ids, &found.pod_records);
        exact(
            &mut out,
            "container record",
            &containers,
            &found.container_records,
        );
        exact(&mut out, "snapshot", &containers, &found.snapshots);
        // A stopped pod's directory may stay until it is removed.
        let stray = found.pod_dirs.difference(&ids);
        out.extend(stray.map(|id| format!("pod directory {id} belongs to no pod")));
        let missing = ready.iter().filter(|pod| !found.pod_dirs.contains(&pod.id));
        out.extend(missing.map(|pod| format!("pod directory {} is missing", pod.id)));

        let files: BTreeSet<String> = ready.iter().filter_map(|pod| pod.netns_file.clone()).collect();
        exact(&mut out, "file in /run/netns", &files, &found.netns_files);
        let mounts: BTreeSet<String> = files.iter().map(|name| format!("/run/netns/{name}")).collect();
        let there = found
            .mounts
            .iter()
            .map(PathBuf::as_path)
            .map(|path| path.display().to_string())
            .collect();
        exact(&mut out, "mount", &mounts, &there);

        let own_network = ready.iter().filter(|pod| pod.own_network).count();
        number(&mut out, "network namespaces", own_network, &found.networks);
        number(
            &mut out,
            "links on the bridge",
            ready.iter().filter(|pod| pod.bridged).count(),
            &found.links,
        );
        number(&mut out, "monitors", ready.len(), &found.pids_of("monitor"));
        number(&mut out, "pause processes", ready.len(), &found.pids_of("pause"));
        let zombies = found
            .processes
            .iter()
            .filter(|(_, name)| name.starts_with("zombie"));
        out.extend(zombies.map(|(pid, name)| format!("process {pid} is a {name}")));
        let running = self.containers().any(|(_, running)| *running);
        let strangers = found
            .processes
            .iter()
            .filter(|(_, name)| !["monitor", "pause"].contains(&name.as_str()));
        if !running {
            out.extend(
                strangers.map(|(pid, name)| format!("process {pid} ({name}) belongs to no container")),
            );
        }
        self.cgroup_differences(found, &mut out);
        out
    }

    fn containers(&self) -> impl Iterator<Item = &(String, bool)> {
        self.pods.iter().flat_map(|pod| &pod.containers)
    }

    /// Each cgroup that is there is one of a record's or above one, and each that a running container needs is there.
    fn cgroup_differences(&self, found: &Inventory, out: &mut Vec<String>) {
        let mut needed = BTreeSet::new();
        let mut allowed: BTreeSet<String> = self.lasting_cgroups.iter().cloned().collect();
        for pod in &self.pods {
            let Some(cgroup) = &pod.cgroup else {
                return;
            };
            if pod.ready {
                needed.insert(format!("{cgroup}/{}", pod.id));
                let monitor = self
                    .monitor_cgroup
                    .iter()
                    .map(|parent| format!("{parent}/{}", pod.id));
                allowed.extend(monitor);
            }
            for (id, running) in &pod.containers {
                let path = format!("{cgroup}/{id}");
                if *running {
                    needed.insert(path)
                } else {
                    allowed.insert(path)
                };
            }
        }
        out.extend(
            needed
                .difference(&found.cgroups)
                .map(|path| format!("cgroup {path} is missing")),
        );
        allowed.extend(needed);
        let above = |path: &str| allowed.iter().any(|it| it.starts_with(&format!("{path}/")));
        let strays = found
            .cgroups
            .iter()
            .filter(|path| !allowed.contains(*path) && !above(path));
        out.extend(strays.map(|path| format!("cgroup {path} belongs to no record")));
    }
}

fn exact(out: &mut Vec<String>, what: &str, want: &BTreeSet<String>, found: &BTreeSet<String>) {
    out.extend(
        found
            .difference(want)
            .map(|it| format!("{what} {it} belongs to no record")),
    );
    out.extend(want.difference(found).map(|it| format!("{what} {it} is missing")));
}

fn number<'a, T: Display + 'a>(
    out: &mut Vec<String>,
    what: &str,
    want: usize,
    found: impl IntoIterator<Item = &'a T>,
) {
    let found: Vec<String> = found.into_iter().map(ToString::to_string).collect();
    if found.len() != want {
        out.push(format!(
            "{what}: {want} expected, {} found ({})",
            found.len(),
            found.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn pod() -> Pod {
        Pod {
            id: "p1".into(),
            ready: true,
            own_network: true,
            bridged: true,
            cgroup: Some("/t/p1".into()),
            containers: vec![("c1".into(), true)],
            ..Pod::default()
        }
    }

    fn found() -> Inventory {
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|it| (*it).to_owned())
                .collect::<BTreeSet<String>>()
        };
        Inventory {
            networks: BTreeSet::from([42]),
            links: set(&["hf1"]),
            cgroups: set(&["/t", "/t/p1", "/t/p1/p1", "/t/p1/c1"]),
            processes: BTreeMap::from([(1, "monitor".into()), (2, "pause".into()), (3, "sleep".into())]),
            snapshots: set(&["c1"]),
            pod_dirs: set(&["p1"]),
            pod_records: set(&["p1"]),
            container_records: set(&["c1"]),
            ..Inventory::default()
        }
    }

    #[test]
    fn a_living_pod_owns_what_is_there() {
        let expected = Expected {
            pods: vec![pod()],
            ..Expected::default()
        };
        assert_eq!(expected.differences(&found()), Vec::<String>::new());
    }

    #[test]
    fn each_stray_and_each_loss_is_told() {
        let expected = Expected {
            pods: vec![pod()],
            ..Expected::default()
        };
        let mut inventory = found();
        inventory.cgroups.insert("/t/p1/old".into());
        inventory.cgroups.remove("/t/p1/c1");
        inventory.links.clear();
        inventory.processes.insert(9, "zombie sleep".into());
        inventory.mounts.insert("/r/snapshots/c1/merged".into());
        let text = expected.differences(&inventory).join("\n");
        for part in [
            "/t/p1/old",
            "/t/p1/c1 is missing",
            "links on the bridge: 1",
            "zombie",
            "/merged",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let nothing = Expected {
            lasting_cgroups: vec!["/t".into()],
            ..Expected::default()
        };
        assert_eq!(nothing.differences(&found()).len(), 12);
    }
}
