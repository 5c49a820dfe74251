//! Pods with user namespaces: ids of the root, of volumes and of the pod's own files; with the host's network too.
#![allow(clippy::unwrap_used)]

mod node;

use std::os::unix::fs::{MetadataExt, chown};

use holdfast_engine::Kind;
use holdfast_model::{IdMapping, Mount, NamespaceMode, SandboxSpec, UserNamespace};
use node::Node;

const MAP: IdMapping = IdMapping {
    host_id: 200_000,
    container_id: 0,
    length: 65_536,
};

fn mapped(mut spec: SandboxSpec) -> SandboxSpec {
    spec.security.namespaces.user = Some(UserNamespace {
        mode: NamespaceMode::Pod,
        uids: vec![MAP],
        gids: vec![MAP],
    });
    spec
}

fn own_root_in(node: &Node, pod: &str) {
    let volume = node.path("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("file"), "").unwrap();
    chown(volume.join("file"), Some(1000), Some(1000)).unwrap();
    let mount = |path: &str, maps: Vec<IdMapping>| Mount {
        container_path: path.into(),
        host_path: volume.to_str().unwrap().into(),
        uid_mappings: maps.clone(),
        gid_mappings: maps,
        ..Mount::default()
    };
    let mut spec = node.script("main", "echo hi >/made; sleep 1000");
    spec.mounts = vec![mount("/mapped", vec![MAP]), mount("/plain", vec![])];
    let main = node.run(pod, spec);
    assert_eq!(
        node.sh(&main, "id -u; stat -c %u /bin/busybox /made /dev/shm/."),
        "0\n0\n0\n0\n"
    );
    assert_eq!(
        node.sh(
            &main,
            "stat -c '%u %g' /mapped/file /plain/file; touch /mapped/made"
        ),
        "1000 1000\n65534 65534\n"
    );
    assert_eq!(std::fs::metadata(volume.join("made")).unwrap().uid(), 0);
    // The pod's own files are its root's to change.
    assert_eq!(
        node.sh(
            &main,
            "stat -c %u /etc/resolv.conf /etc/hostname; echo '# x' >>/etc/resolv.conf"
        ),
        "0\n0\n"
    );
    assert!(
        node.sh(&main, "ls /sys/class/net /dev/null /proc/self/ns/user")
            .contains("lo")
    );
    let pid = node.status(&main).pid.unwrap();
    let map = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "200000", "65536"]
    );
}

#[test]
fn a_user_namespace_with_its_own_root() {
    let mut node = Node::new("userns");
    let pod = node.run_pod(mapped(node.pod("one")));
    own_root_in(&node, &pod);
    node.remove_pod(&pod);
    node.assert_clean();
}

/// The kubelet's are anywhere below 2^32.
#[test]
fn ids_above_2_31() {
    let mut node = Node::new("usernshigh");
    let map = IdMapping {
        host_id: 3_000_000_512,
        ..MAP
    };
    let mut spec = mapped(node.host_pod("one"));
    if let Some(user) = &mut spec.security.namespaces.user {
        (user.uids, user.gids) = (vec![map], vec![map]);
    }
    let pod = node.run_pod(spec);
    let mut terminal = node.script("terminal", "test -t 1 && id -u && stat -c %u /etc/hostname");
    terminal.tty = true;
    let main = node.run(&pod, terminal);
    assert_eq!(node.wait_exit(&main).exit.as_ref().unwrap().code, 0);
    assert_eq!(
        node.log(&main).matches("stdout F 0").count(),
        2,
        "{}",
        node.log(&main)
    );
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn with_the_hosts_network() {
    let mut node = Node::new("usernshost");
    let pod = node.run_pod(mapped(node.host_pod("one")));
    own_root_in(&node, &pod);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let mut node = Node::new("usernsbad");
    let mut spec = mapped(node.pod("pid"));
    spec.security.namespaces.pid = NamespaceMode::Node;
    let error = node
        .block_on(node.engine().run_pod_sandbox(spec, ""))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("userns_options"), "{error}");
    let pod = node.run_pod(mapped(node.host_pod("one")));
    let other = IdMapping { host_id: 1, ..MAP };
    let mut spec = node.script("main", "sleep 1000");
    spec.mounts = vec![Mount {
        container_path: "/d".into(),
        host_path: "/tmp".into(),
        uid_mappings: vec![other],
        gid_mappings: vec![other],
        ..Mount::default()
    }];
    let error = node
        .block_on(node.engine().create_container(&pod, spec))
        .unwrap_err();
    assert!(error.to_string().contains("mounts[0].uidMappings"), "{error}");
    node.remove_pod(&pod);
    node.assert_clean();
}
