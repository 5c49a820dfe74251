//! Writable layers on a file system that keeps accounts of projects: told at once, as a walk would find them, over restarts
//! of the daemon; and nothing is left on an account.
//!
//! Wants a kernel with project quotas and loop devices, which not every machine that builds holdfast has: these run in the
//! virtual machine (`hack/vm/test`), and not by `make unit`. `privileged_layers` has the other side.
#![allow(clippy::unwrap_used)]

mod node;

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use holdfast_engine::meter::Layer;
use holdfast_images::Accounting;
use holdfast_model::{IdMapping, NamespaceMode, UserNamespace};
use holdfast_sys::project;
use holdfast_testkit::{Disk, DiskKind, isolate_mounts};
use node::{Node, wait};

const IMAGE: &str = "localhost/more:latest";
const MIB: u64 = 1 << 20;
/// Blocks that the file system allocates between two looks.
const ROUNDING: u64 = 64 << 10;

/// A layer with something to copy up.
fn more(root: &Path) {
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    std::fs::write(root.join("big"), vec![1; 20 << 20]).unwrap();
    for file in ["a", "d/b", "d/e/c"] {
        std::fs::write(root.join(file), "old\n").unwrap();
    }
}

/// In this order: the disk goes after the node.
fn node_on(kind: DiskKind) -> (Disk, Node) {
    isolate_mounts();
    let disk = Disk::new(kind);
    let node = Node::on("quota", |root| disk.mount(root));
    assert_eq!(*node.images().accounting(), Accounting::ProjectQuota);
    node.load(IMAGE, &[more], &[]);
    (disk, node)
}

fn sleeper(node: &Node, pod: &str, name: &str) -> String {
    let mut spec = node.script(name, "sleep 10000");
    spec.image.image = IMAGE.into();
    node.run(pod, spec)
}

fn nanos() -> i64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(time.unwrap().as_nanos()).unwrap()
}

/// What is told, of this moment.
fn told(node: &Node, id: &str) -> Layer {
    let asked = nanos();
    let usage = node.block_on(node.engine().container_usage(id)).unwrap();
    let layer = usage.layer.expect("a layer with an account is always told");
    assert!(layer.at >= asked, "it is {} ns old", asked - layer.at);
    layer
}

fn directories(node: &Node, id: &str) -> [PathBuf; 2] {
    let snapshot = node.images().snapshot(id).unwrap();
    [snapshot.upper, snapshot.work]
}

fn project_of(node: &Node, id: &str) -> u32 {
    let [upper, work] = directories(node, id).map(|dir| project::get(File::open(dir).unwrap()).unwrap());
    assert_eq!(upper, work);
    assert_ne!(upper, 0);
    upper
}

/// Bytes on disk of everything there, and inodes.
fn walked(dir: &Path, seen: &mut HashSet<u64>) -> (u64, u64) {
    let meta = std::fs::symlink_metadata(dir).unwrap();
    if !seen.insert(meta.ino()) {
        return (0, 0);
    }
    let mut sum = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let below = walked(&entry.unwrap().path(), seen);
            sum = (sum.0 + below.0, sum.1 + below.1);
        }
    }
    sum
}

#[track_caller]
fn assert_as_walked(node: &Node, id: &str) {
    let layer = told(node, id);
    let mut seen = HashSet::new();
    let dirs = directories(node, id).map(|dir| walked(&dir, &mut seen));
    let (bytes, inodes) = (dirs[0].0 + dirs[1].0, dirs[0].1 + dirs[1].1);
    assert_eq!(layer.inodes, inodes, "inodes");
    assert!(
        layer.bytes.abs_diff(bytes) <= ROUNDING,
        "{} told, {bytes} walked",
        layer.bytes
    );
}

#[track_caller]
fn assert_grown(before: Layer, after: Layer, bytes: u64, inodes: u64) {
    let grown = after.bytes - before.bytes;
    assert!((bytes..=bytes + ROUNDING).contains(&grown), "{grown} bytes");
    assert_eq!(after.inodes - before.inodes, inodes, "inodes");
}

fn write(node: &Node, id: &str, file: &str, mib: u64) {
    node.sh(id, &format!("dd if=/dev/zero of={file} bs=1M count={mib} 2>&1"));
}

/// Everything that overlay does by moving or linking files between its two directories, and what users do.
const WORK: &str = "set -e
echo new >>/big; echo new >>/d/e/c
ln /a /a2; mv /a2 /a3; mv /a /a4
mv /d /d2; rm -r /d2/e; mkdir /d2/e; echo x >/d2/e/new
mkdir /n; mv /eight /n/; ln /n/eight /n/nine; mv /n /n2; cp -a /n2 /n3; mv /n3/eight /big
ln -s /n2 /link; mknod /n2/pipe p; rm /n2/nine; rm -r /home || true";

fn told_at_once(kind: DiskKind) {
    let (_disk, mut node) = node_on(kind);
    let pod = node.run_pod(node.host_pod("one"));
    let (id, other) = (sleeper(&node, &pod, "one"), sleeper(&node, &pod, "two"));
    assert_ne!(project_of(&node, &id), project_of(&node, &other));
    let (before, others) = (told(&node, &id), told(&node, &other));
    assert!(before.bytes < MIB && before.inodes < 100, "{before:?}");

    write(&node, &id, "/eight", 8);
    assert_grown(before, told(&node, &id), 8 * MIB, 1);
    assert_as_walked(&node, &id);
    node.sh(&id, WORK);
    assert_as_walked(&node, &id);
    assert_eq!(told(&node, &other).bytes, others.bytes, "accounts are mixed up");

    // Every way to ask.
    let now = told(&node, &id);
    let same = |layer: Option<Layer>| {
        let layer = layer.unwrap();
        assert_eq!((layer.bytes, layer.inodes), (now.bytes, now.inodes));
        assert!(layer.at > now.at);
    };
    let record = node.status(&id);
    same(node.block_on(node.engine().container_usages(&[record]))[0].layer);
    let pod_usage = node.block_on(node.engine().pod_usage(&pod)).unwrap();
    same(
        pod_usage
            .containers
            .iter()
            .find(|it| it.record.id.as_str() == id)
            .unwrap()
            .layer,
    );
    let metrics = node.block_on(node.engine().metrics()).unwrap();
    same(
        metrics[0]
            .containers
            .iter()
            .find(|it| it.record.id.as_str() == id)
            .unwrap()
            .layer,
    );

    // Restarts of the daemon.
    let project = project_of(&node, &id);
    node.restart();
    assert_eq!(project_of(&node, &id), project);
    let again = told(&node, &id);
    assert!(again.bytes.abs_diff(now.bytes) <= ROUNDING, "{again:?} {now:?}");
    write(&node, &id, "/one", 1);
    assert_grown(again, told(&node, &id), MIB, 1);
    assert_as_walked(&node, &id);

    // It is told of a container that has ended too, and then there is nothing.
    node.stop_pod(&pod);
    assert_as_walked(&node, &id);
    node.remove_pod(&pod);
    node.assert_clean();
    let root = File::open(node.path("root")).unwrap();
    wait("the account to be empty", || {
        project::account(&root, project).unwrap().unused().then_some(())
    });
}

#[test]
fn on_ext4() {
    told_at_once(DiskKind::Ext4);
}

#[test]
fn on_xfs() {
    told_at_once(DiskKind::Xfs);
}

#[test]
fn in_a_user_namespace() {
    let (_disk, node) = node_on(DiskKind::Ext4);
    let map = |host_id| IdMapping {
        host_id,
        container_id: 0,
        length: 65_536,
    };
    let mut spec = node.host_pod("mapped");
    spec.security.namespaces.user = Some(UserNamespace {
        mode: NamespaceMode::Pod,
        uids: vec![map(200_000)],
        gids: vec![map(200_000)],
    });
    let pod = node.run_pod(spec);
    let id = sleeper(&node, &pod, "main");
    let before = told(&node, &id);
    write(&node, &id, "/eight", 8);
    assert_grown(before, told(&node, &id), 8 * MIB, 1);
    node.sh(&id, WORK);
    assert_as_walked(&node, &id);
    node.remove_pod(&pod);
}

/// What root in a container outside a user namespace can do.
#[test]
fn an_account_that_a_container_dodges_is_not_believed() {
    let (_disk, mut node) = node_on(DiskKind::Ext4);
    let pod = node.run_pod(node.host_pod("one"));
    let id = sleeper(&node, &pod, "main");
    let before = told(&node, &id);
    write(&node, &id, "/hidden", 100);
    let [upper, _] = directories(&node, &id);
    project::set_file(File::open(upper.join("hidden")).unwrap(), 77).unwrap();
    let hidden = told(&node, &id);
    assert!(
        hidden.bytes < before.bytes + MIB,
        "the kernel does not let it any more?"
    );
    // At once after a start of the daemon, and then some times soon after each other.
    node.crash();
    node.open();
    wait("the account not to be believed", || {
        let usage = node.block_on(node.engine().container_usage(&id)).unwrap();
        usage.layer.filter(|layer| layer.bytes > 100 * MIB)
    });
    node.remove_pod(&pod);
}

/// An administrator's project is not taken from him, and the container works.
#[test]
fn below_a_directory_of_somebody_elses_project() {
    let (_disk, node) = node_on(DiskKind::Ext4);
    let snapshots = File::open(node.path("root/snapshots")).unwrap();
    project::set(&snapshots, 5).unwrap();
    let pod = node.run_pod(node.host_pod("one"));
    let id = sleeper(&node, &pod, "main");
    for dir in directories(&node, &id) {
        assert_eq!(project::get(File::open(dir).unwrap()).unwrap(), 5);
    }
    write(&node, &id, "/eight", 8);
    node.sh(&id, WORK);
    let asked = nanos();
    wait("a walk", || {
        let usage = node.block_on(node.engine().container_usage(&id)).unwrap();
        usage
            .layer
            .filter(|layer| layer.at > asked && layer.bytes > 8 * MIB)
    });
    node.remove_pod(&pod);
}
