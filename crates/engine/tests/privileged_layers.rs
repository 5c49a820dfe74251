//! Writable layers on a file system that keeps no accounts of projects: a walk finds what they use, and says when it was.
#![allow(clippy::unwrap_used)]

mod node;

use holdfast_images::Accounting;
use holdfast_testkit::mount_tmpfs;
use node::{Node, wait};

#[test]
fn without_accounts_layers_are_walked() {
    // No tmpfs of any kernel accounts for projects.
    let mut node = Node::on("walk", mount_tmpfs);
    assert!(matches!(node.images().accounting(), Accounting::Walk { .. }));
    let pod = node.run_pod(node.host_pod("one"));
    let id = node.run(&pod, node.script("main", "sleep 10000"));
    let layer = || {
        let usage = node.block_on(node.engine().container_usage(&id)).unwrap();
        usage.layer
    };
    let before = wait("a first walk", layer);
    node.sh(&id, "dd if=/dev/zero of=/eight bs=1M count=8 2>&1");
    let after = wait("another walk", || layer().filter(|now| now.at > before.at));
    assert_eq!(after.bytes - before.bytes, 8 << 20);
    assert_eq!(after.inodes - before.inodes, 1);
    assert_eq!(node.images().layer_use(&id), None);
    node.remove_pod(&pod);
    node.assert_clean();
}
