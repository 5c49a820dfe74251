//! Logs whose disk is full, hangs or is no disk: nothing but that container's output feels it.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_monitor_api::message::LogTrouble;
use holdfast_monitor_api::{MonitorEvent, Stdio};
use rustix::process::{Pid, Signal, kill_process};
use support::{Pod, Started, alive, lines, privileged, state_of, until};

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i; usleep 2000; done";

/// No number is missing or there twice.
fn check_count(started: &Started) -> usize {
    let lines = lines(&started.log, "stdout");
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(*line, (index + 1).to_string(), "line {} of the log", index + 1);
    }
    lines.len()
}

/// Reads events until there is a report about a log that `wanted` wants.
async fn trouble(pod: &mut Pod, wanted: impl Fn(&LogTrouble) -> bool) {
    let start = Instant::now();
    loop {
        let hit = |event: &MonitorEvent| matches!(event, MonitorEvent::LogTrouble(t) if wanted(t));
        if pod.seen.iter().any(hit) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no such report");
        let event = tokio::time::timeout(Duration::from_secs(60), pod.monitor.events.next()).await;
        pod.seen.push(event.unwrap().unwrap());
    }
}

/// Nothing waits in the container's pipe: what it has written so far is read.
async fn until_read(started: &Started) {
    let Stdio::Pipes { stdout, .. } = &started.container.descriptors.stdio else {
        panic!("the container has a terminal");
    };
    until("the output is read", || {
        rustix::io::ioctl_fionread(stdout.as_fd()).unwrap() == 0
    })
    .await;
}

/// Holds up, as a disk that hangs would, the process that has this log open.
async fn hang_up(pod: &Pod, log: &Path) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", pod.monitor.pid);
    let writes = |pid: Pid| {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).into_iter();
        let mut fds = fds.flatten().flatten();
        fds.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == log))
    };
    let mut found = None;
    until("the log is written", || {
        let children = std::fs::read_to_string(&children).unwrap();
        let mut pids = children
            .split_whitespace()
            .filter_map(|pid| Pid::from_raw(pid.parse().ok()?));
        found = pids.find(|pid| writes(*pid)).filter(|pid| {
            // It may have ended meanwhile.
            let stopped = kill_process(*pid, Signal::STOP).is_ok();
            while stopped && state_of(pid.as_raw_nonzero().get()).is_some_and(|state| !"TZ".contains(state)) {
            }
            stopped && writes(*pid)
        });
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn is_there(pod: &Pod, id: &str, file: &str) -> bool {
    let script = format!("test -e {file}");
    let finished = pod.exec(id, &script, Duration::from_secs(20)).await;
    finished.exit_code == 0
}

#[test]
fn a_full_disk_drops_counts_and_leaves_a_line() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let disk = pod.path("logs");
        let size = std::ffi::CString::new("size=1m").unwrap();
        rustix::mount::mount(
            "tmpfs",
            &disk,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            size.as_c_str(),
        )
        .unwrap();
        let mut big = pod.container("big", "while test ! -e /go; do usleep 5000; done; yes 12345678 | head -c 1800000; echo > /done; while test ! -e /on; do usleep 5000; done; echo after; exit 1");
        big.log_path = disk.join("big.log").to_str().unwrap().to_owned();
        let big = pod.create(big).await;
        pod.client().start(&big.id).await.unwrap();
        // Beside it, another container on another disk is not concerned.
        let mut other = pod.container("other", COUNT);
        other.log_path = pod.path("other.log").to_str().unwrap().to_owned();
        let other = pod.create(other).await;
        pod.client().start(&other.id).await.unwrap();
        pod.exec(&big.id, "echo > /go", Duration::from_secs(5)).await;
        trouble(&mut pod, |trouble| !trouble.error.is_empty()).await;
        let done = "while test ! -e /done; do usleep 10000; done";
        let finished = pod.exec(&big.id, done, Duration::from_secs(60)).await;
        assert!(!finished.timed_out);
        until_read(&big).await;
        let seen = check_count(&other);
        until("the other goes on", || check_count(&other) > seen + 10).await;
        // Room again, as after a rotation that the kubelet compresses away.
        let full = std::fs::read(&big.log).unwrap();
        assert!(full.ends_with(b"\n"), "no half entry is left behind");
        std::fs::rename(&big.log, disk.join("big.log.1")).unwrap();
        std::fs::remove_file(disk.join("big.log.1")).unwrap();
        pod.client().reopen_log(&big.id).await.unwrap();
        trouble(&mut pod, |trouble| trouble.error.is_empty()).await;
        pod.exec(&big.id, "echo > /on", Duration::from_secs(5)).await;
        assert_eq!(pod.exit_of(&big.id).await.exit_code, 1);
        // More than one recovery if the pipe still held more than the disk took.
        let recovered: Vec<u64> = pod
            .seen
            .iter()
            .filter_map(|event| match event {
                MonitorEvent::LogTrouble(trouble) if trouble.error.is_empty() => Some(trouble.dropped_bytes),
                _ => None,
            })
            .collect();
        let dropped: u64 = recovered.iter().sum();
        let markers = lines(&big.log, "stderr");
        assert!(
            !recovered.is_empty() && markers.len() == recovered.len(),
            "{markers:?} {recovered:?}"
        );
        for (marker, dropped) in markers.iter().zip(&recovered) {
            assert!(
                marker.contains(&format!("{dropped} bytes of output are missing")),
                "{marker}"
            );
        }
        let kept: u64 = full
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| line.len() as u64 - 40)
            .sum();
        let rest = lines(&big.log, "stdout")
            .into_iter()
            .filter(|line| line != "after");
        let rest: u64 = rest.map(|line| line.len() as u64 + 1).sum();
        assert_eq!(
            kept + rest + dropped,
            1_800_000,
            "every byte is in the log or counted"
        );
        assert_eq!(lines(&big.log, "stdout").last().unwrap(), "after");
        // Its directory goes with the mount namespace; nothing may be open there.
        pod.client().remove(&big.id).await.unwrap();
        rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::empty()).unwrap();
        pod.stop().await;
    });
}

#[test]
fn a_log_is_reopened_for_rotation_and_nothing_is_lost() {
    privileged(|| async {
        let pod = Pod::start().await;
        let counter = pod.run("counter", COUNT).await;
        let quiet = pod.run("quiet", "sleep 1000").await;
        until("it counts", || lines(&counter.log, "stdout").len() > 10).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        for started in [&counter, &quiet] {
            let old = started.log.with_extension("old");
            std::fs::rename(&started.log, &old).unwrap();
            pod.client().reopen_log(&started.id).await.unwrap();
            assert!(started.log.exists());
        }
        until("it counts on", || lines(&counter.log, "stdout").len() > 10).await;
        pod.client()
            .signal(&counter.id, libc::SIGKILL, false)
            .await
            .unwrap();
        until("it is over", || !alive(counter.container.pid)).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut all = lines(&counter.log.with_extension("old"), "stdout");
        all.extend(lines(&counter.log, "stdout"));
        for (index, line) in all.iter().enumerate() {
            assert_eq!(*line, (index + 1).to_string());
        }
        pod.stop().await;
    });
}

#[test]
fn a_log_that_hangs_holds_up_its_container_s_output_alone() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let big = "while test ! -e /go; do echo tick; usleep 20000; done; yes 12345678 | head -c 1800000; echo > /done; \
                   while :; do echo tock; usleep 20000; done";
        let big = pod.run("big", big).await;
        let hung = hang_up(&pod, &big.log).await;
        pod.exec(&big.id, "echo > /go", Duration::from_secs(60)).await;

        // Beside it: start, log, exec, exit, removal; and the container itself is only held up in its writing.
        let other = pod.run("other", COUNT).await;
        until("the other logs", || check_count(&other) > 20).await;
        let short = pod.run("short", "echo here; exit 6").await;
        assert_eq!(pod.exit_of(&short.id).await.exit_code, 6);
        assert_eq!(lines(&short.log, "stdout"), ["here"]);
        pod.client().remove(&short.id).await.unwrap();
        assert!(!is_there(&pod, &big.id, "/done").await, "1.8 MB fit into a pipe");
        assert!(alive(big.container.pid));
        let count = |wanted: &str| {
            let lines = lines(&big.log, "stdout");
            lines.into_iter().filter(|line| line == wanted).count()
        };
        assert_eq!(count("12345678"), 0);

        // It comes round: not a byte is lost.
        kill_process(hung, Signal::CONT).unwrap();
        until("the writing goes on", || count("tock") > 0).await;
        assert_eq!(count("12345678"), 200_000);
        assert!(is_there(&pod, &big.id, "/done").await);

        // And once more, for good: the end is told all the same, and the container can be removed.
        let hung = hang_up(&pod, &big.log).await;
        pod.client().signal(&big.id, libc::SIGKILL, true).await.unwrap();
        assert_eq!(pod.exit_of(&big.id).await.signal, 9);
        assert!(alive(hung.as_raw_nonzero().get()));
        pod.client().remove(&big.id).await.unwrap();
        until("the hung process is gone", || !alive(hung.as_raw_nonzero().get())).await;
        let seen = check_count(&other);
        until("the other goes on", || check_count(&other) > seen + 10).await;
        pod.stop().await;
    });
}

fn fifo(path: &Path) {
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        path,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    )
    .unwrap();
}

#[test]
fn a_fifo_that_nobody_reads_is_no_log() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let mut create = pod.container("never", "true");
        fifo(Path::new(&create.log_path));
        let error = pod.client().create_container(create.clone()).await.unwrap_err();
        assert!(error.to_string().contains("never.log"), "{error}");
        std::fs::remove_file(&create.log_path).unwrap();
        create.log_path.clear();

        // In the place of a log that is in use: the reopening fails, output is dropped and counted, life goes on.
        let script = "echo one; while test ! -e /go; do usleep 5000; done; echo two; echo > /done; \
                      while test ! -e /on; do usleep 5000; done; echo three; exit 3";
        let started = pod.run("some", script).await;
        until("it has begun", || lines(&started.log, "stdout") == ["one"]).await;
        std::fs::remove_file(&started.log).unwrap();
        fifo(&started.log);
        let error = pod.client().reopen_log(&started.id).await.unwrap_err();
        assert!(error.to_string().contains("some.log"), "{error}");
        pod.exec(&started.id, "echo > /go", Duration::from_secs(20)).await;
        trouble(&mut pod, |trouble| !trouble.error.is_empty()).await;
        until_read(&started).await;
        assert!(is_there(&pod, &started.id, "/done").await);

        // A file again: it is found without anybody's help, and a line says what is missing.
        std::fs::remove_file(&started.log).unwrap();
        trouble(&mut pod, |trouble| {
            trouble.error.is_empty() && trouble.dropped_bytes == 4
        })
        .await;
        pod.exec(&started.id, "echo > /on", Duration::from_secs(20)).await;
        assert_eq!(pod.exit_of(&started.id).await.exit_code, 3);
        let markers = lines(&started.log, "stderr");
        assert!(
            markers.len() == 1 && markers[0].contains("4 bytes of output are missing"),
            "{markers:?}"
        );
        assert_eq!(lines(&started.log, "stdout"), ["three"]);
        pod.stop().await;
    });
}

#[test]
fn what_is_lost_at_the_very_end_is_told() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let script = "echo one; while test ! -e /go; do usleep 5000; done; echo five";
        let started = pod.run("last", script).await;
        until("it has begun", || lines(&started.log, "stdout") == ["one"]).await;
        std::fs::remove_file(&started.log).unwrap();
        fifo(&started.log);
        pod.client().reopen_log(&started.id).await.unwrap_err();
        pod.exec(&started.id, "echo > /go", Duration::from_secs(20)).await;
        assert_eq!(pod.exit_of(&started.id).await.exit_code, 0);
        trouble(&mut pod, |trouble| {
            !trouble.error.is_empty() && trouble.dropped_bytes == 5
        })
        .await;
        pod.stop().await;
    });
}
