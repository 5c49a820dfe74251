//! How long it takes. Prints figures and asserts only what no machine should miss.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::Lab;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn creation_is_quick() {
    let lab = Lab::new();
    let (mut pods, mut creates, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let start = Instant::now();
        let pod = lab.pod();
        pods.push(start.elapsed());
        let spec = lab.spec(&pod, "true");
        let start = Instant::now();
        let running = lab.create(&pod, &spec);
        creates.push(start.elapsed());
        let start = Instant::now();
        running.release().unwrap();
        starts.push(start.elapsed());
        running.wait(&lab).ok();
        pod.stop();
        lab.remove_cgroup(&format!("{}/pause", lab.cgroup));
    }
    let (pod, create, start) = (median(pods), median(creates), median(starts));
    println!("medians: sandbox {pod:?}, create {create:?}, start {start:?}");
    assert!(create < Duration::from_millis(500));
    lab.finish();
}
