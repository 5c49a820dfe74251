//! Figures, printed and not asserted: memory of an idle pod, speed of the log, time of an exec. For the real ones set
//! HOLDFAST_MONITOR to the static program that `make monitor` builds.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Pod, privileged};

/// Pss and private memory of a process in KiB.
fn memory(pid: i32) -> (u64, u64) {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    (field("Pss:"), field("Private_Dirty:") + field("Private_Clean:"))
}

/// User and system time in ms of a process's children that it has reaped.
fn children_time(pid: i32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_ascii_whitespace()
        .collect();
    // 100 ticks a second on every machine of today (proc_pid_stat(5), fields 16 and 17).
    let ticks = |index: usize| fields[index].parse::<u64>().unwrap() * 10;
    (ticks(13), ticks(14))
}

#[test]
fn memory_of_an_idle_pod() {
    privileged(|| async {
        let pod = Pod::start().await;
        let started = pod.run("sleeper", "echo hello; exec sleep 1000").await;
        pod.exec(&started.id, "true", Duration::from_secs(5)).await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for (name, pid) in [("monitor", pod.monitor.pid), ("pause", pod.sandbox.pause_pid)] {
            let (pss, private) = memory(pid);
            println!("{name}: pss {pss} KiB, private {private} KiB");
        }
        if std::env::var_os("HOLDFAST_SMAPS").is_some() {
            println!(
                "{}",
                std::fs::read_to_string(format!("/proc/{}/smaps", pod.monitor.pid)).unwrap()
            );
        }
        pod.stop().await;
    });
}

#[test]
fn speed_of_a_log() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let line = format!("{}\n", "x".repeat(99));
        let input = pod.path("image/input");
        std::fs::write(&input, line.repeat(5_000_000)).unwrap();
        let mut cpu = children_time(pod.monitor.pid);
        for round in 0..3 {
            let started = pod
                .create(pod.container(&format!("cat{round}"), "exec cat /input"))
                .await;
            let start = Instant::now();
            pod.client().start(&started.id).await.unwrap();
            pod.exit_of(&started.id).await;
            let expected = 5_000_000 * 140;
            while std::fs::metadata(&started.log).unwrap().len() < expected {
                std::thread::sleep(Duration::from_millis(1));
            }
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "500 MB in lines of 100 bytes: {seconds:.3} s, {:.0} MB/s",
                500.0 / seconds
            );
            tokio::time::sleep(Duration::from_millis(300)).await;
            let after = children_time(pod.monitor.pid);
            let (user, system) = (after.0 - cpu.0, after.1 - cpu.1);
            println!("    pump and cat together: user {user} ms, system {system} ms");
            cpu = after;
            std::fs::remove_file(&started.log).unwrap();
        }
        pod.stop().await;
    });
}

#[test]
fn time_of_an_exec() {
    privileged(|| async {
        let pod = Pod::start().await;
        let started = pod.run("sleeper", "sleep 1000").await;
        let mut times = Vec::new();
        for _ in 0..50 {
            let start = Instant::now();
            pod.exec(&started.id, "true", Duration::from_secs(5)).await;
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "exec of sh -c true: median {:?}, worst {:?}",
            times[25], times[49]
        );
        pod.stop().await;
    });
}
