//! The monitor that waits for the next pod.

#![allow(clippy::unwrap_used)]

mod node;

use std::path::Path;

use node::{Node, alive, kill9, wait};

fn monitor_of(node: &Node, pod: &str) -> i32 {
    node.engine().sandbox(pod).unwrap().monitor_pid.unwrap()
}

#[test]
fn the_next_pod_gets_the_monitor_that_waits_and_another_takes_its_place() {
    let mut node = Node::new("spare");
    let first = node.spare();
    let pod = node.run_pod(node.host_pod("one"));
    assert_eq!(monitor_of(&node, &pod), first);
    assert!(node.state().join(format!("pods/{pod}/monitor.log")).exists());
    let target = std::fs::read_link(format!("/proc/{first}/fd/2")).unwrap();
    assert!(
        target.ends_with(Path::new(&format!("{pod}/monitor.log"))),
        "{target:?}"
    );
    let container = node.run(&pod, node.script("main", "sleep 1000"));
    assert_eq!(node.sh(&container, "echo here"), "here\n");
    assert!(node.spare() != first);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_spare_that_died_is_not_used_and_none_outlives_the_daemon() {
    let mut node = Node::new("deadspare");
    let dead = node.spare();
    kill9(dead);
    wait("its end", || (!alive(dead)).then_some(()));
    let pod = node.run_pod(node.host_pod("one"));
    assert!(monitor_of(&node, &pod) != dead);
    node.remove_pod(&pod);
    let left = node.spare();
    node.crash();
    wait("the spare to leave", || (!alive(left)).then_some(()));
    node.open();
    node.assert_clean();
}
