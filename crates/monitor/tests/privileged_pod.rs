//! The plain life of a pod: logs, exit codes, OOM, signals, exec.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use holdfast_monitor_api::Error;
use holdfast_monitor_api::message::{FailureKind, Phase};
use serde_json::json;
use support::{Pod, alive, entries, exec_request, lines, privileged, until, with_spec};

#[test]
fn a_container_runs_logs_and_exits() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let script = "echo out; echo err >&2; printf 'no newline'; exit 7";
        let create = pod.container("a", script);
        let started = pod.create(create).await;
        assert!(started.log.exists(), "the log is there before the start");
        assert!(alive(started.container.pid));
        let answer = pod.client().start(&started.id).await.unwrap();
        let exit = pod.exit_of(&started.id).await;
        assert_eq!(
            (exit.exit_code, exit.signal, exit.oom_killed, exit.unknown),
            (7, 0, false, false)
        );
        assert!(exit.finished_at >= answer.started_at && answer.started_at > 0);
        // The event follows the last output.
        assert_eq!(lines(&started.log, "stdout"), ["out", "no newline"]);
        assert_eq!(lines(&started.log, "stderr"), ["err"]);
        let inventory = pod.client().inventory().await.unwrap();
        let entry = &inventory.containers[0];
        assert_eq!(entry.entry.phase, i32::from(Phase::Exited));
        assert_eq!(entry.entry.exit.as_ref(), Some(&exit));
        assert!(entry.descriptors.is_none());
        let record = pod.path("state/exits").join(&started.id);
        assert!(record.exists());
        pod.client().forget_exit(&started.id).await.unwrap();
        assert!(!record.exists());
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&started.log).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        pod.stop().await;
    });
}

#[test]
fn signals_reach_init_and_kill_takes_all() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let trap = pod
            .run(
                "trap",
                "trap 'exit 3' TERM; echo ready; while :; do usleep 10000; done",
            )
            .await;
        until("it is ready", || !lines(&trap.log, "stdout").is_empty()).await;
        pod.client().signal(&trap.id, libc::SIGTERM, false).await.unwrap();
        assert_eq!(pod.exit_of(&trap.id).await.exit_code, 3);
        let many = pod.run("many", "sleep 1000 & sleep 1000").await;
        pod.client().signal(&many.id, libc::SIGKILL, true).await.unwrap();
        let exit = pod.exit_of(&many.id).await;
        assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
        let error = pod
            .client()
            .signal(&many.id, libc::SIGTERM, false)
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused {
                    kind: FailureKind::NotFound,
                    ..
                }
            ),
            "{error}"
        );
        pod.stop().await;
    });
}

#[test]
fn init_starts_with_default_signals_and_three_descriptors() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let started = pod
            .run("clean", "grep Sig /proc/self/status; ls /proc/self/fd")
            .await;
        pod.exit_of(&started.id).await;
        let lines = lines(&started.log, "stdout");
        for field in ["SigBlk", "SigIgn", "SigPnd"] {
            let line = lines.iter().find(|line| line.starts_with(field)).unwrap();
            assert!(line.ends_with("0000000000000000"), "{line}");
        }
        // ls itself has the directory open as 3.
        let fds: Vec<_> = lines.iter().filter(|line| line.parse::<u32>().is_ok()).collect();
        assert_eq!(fds, ["0", "1", "2", "3"]);
        pod.stop().await;
    });
}

#[test]
fn running_out_of_memory_is_told_apart_from_being_killed() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let eat = "dd if=/dev/zero of=/dev/null bs=200M count=1";
        let create = with_spec(pod.container("oom", &format!("exec {eat}")), |spec| {
            spec["linux"]["resources"] = json!({"memory": {"limit": 30 << 20, "swap": 30 << 20}});
        });
        let started = pod.create(create).await;
        pod.client().start(&started.id).await.unwrap();
        let exit = pod.exit_of(&started.id).await;
        assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
        // A child that the kernel chose does not make init's own exit an OOM kill.
        let create = with_spec(pod.container("child", &format!("{eat}; exit 4")), |spec| {
            spec["linux"]["resources"] = json!({"memory": {"limit": 30 << 20, "swap": 30 << 20}});
        });
        let started = pod.create(create).await;
        pod.client().start(&started.id).await.unwrap();
        let exit = pod.exit_of(&started.id).await;
        assert_eq!((exit.exit_code, exit.oom_killed), (4, false));
        // Nor does it make one of the SIGKILL that we send later.
        let create = with_spec(
            pod.container("worker", &format!("{eat}; echo lost; sleep 1000")),
            |spec| {
                spec["linux"]["resources"] = json!({"memory": {"limit": 30 << 20, "swap": 30 << 20}});
            },
        );
        let started = pod.create(create).await;
        pod.client().start(&started.id).await.unwrap();
        until("the worker is lost", || {
            lines(&started.log, "stdout").contains(&"lost".to_owned())
        })
        .await;
        pod.client()
            .signal(&started.id, libc::SIGKILL, false)
            .await
            .unwrap();
        let exit = pod.exit_of(&started.id).await;
        assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, false));
        pod.stop().await;
    });
}

#[test]
fn without_a_pid_namespace_the_rest_dies_with_init() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let script = "sleep 1000 >/dev/null 2>&1 & echo $!; exit 0";
        let create = with_spec(pod.container("host", script), |spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        let started = pod.create(create).await;
        pod.client().start(&started.id).await.unwrap();
        pod.exit_of(&started.id).await;
        let child: i32 = lines(&started.log, "stdout")[0].parse().unwrap();
        until("the orphan is dead", || !alive(child)).await;
        until("the orphan is reaped", || support::state_of(child).is_none()).await;
        pod.stop().await;
    });
}

#[test]
fn exec_collects_output_and_code() {
    privileged(|| async {
        let pod = Pod::start().await;
        let started = pod.run("sleeper", "sleep 1000").await;
        let none = Duration::ZERO;
        let finished = pod
            .exec(&started.id, "echo hello; echo oops >&2; exit 5", none)
            .await;
        assert_eq!(
            (finished.exit_code, finished.timed_out, finished.discarded),
            (5, false, 0)
        );
        assert_eq!(
            (finished.stdout.as_slice(), finished.stderr.as_slice()),
            (&b"hello\n"[..], &b"oops\n"[..])
        );
        // Over the limit of 16 MiB less 64 KiB: the rest is thrown away, not waited for.
        let finished = pod
            .exec(
                &started.id,
                "yes | head -c 20000000; yes | head -c 1000 >&2",
                none,
            )
            .await;
        let kept = (finished.stdout.len() + finished.stderr.len()) as u64;
        assert_eq!(kept, 16 * 1024 * 1024 - 64 * 1024);
        assert_eq!(kept + finished.discarded, 20_001_000);
        // Both streams large: two descriptors, in order.
        let finished = pod
            .exec(
                &started.id,
                "yes a | head -c 300000; yes b | head -c 200000 >&2",
                none,
            )
            .await;
        assert!(finished.stdout.len() == 300_000 && finished.stdout.starts_with(b"a\n"));
        assert!(finished.stderr.len() == 200_000 && finished.stderr.starts_with(b"b\n"));
        let error = pod
            .client()
            .exec_sync(exec_request("nobody", "true", none))
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused {
                    kind: FailureKind::NotFound,
                    ..
                }
            ),
            "{error}"
        );
        let mut request = exec_request(&started.id, "true", none);
        request.process =
            serde_json::to_vec(&json!({"args": ["/no/such"], "cwd": "/", "user": {"uid": 0, "gid": 0}}))
                .unwrap();
        let error = pod.client().exec_sync(request).await.unwrap_err();
        assert!(
            matches!(error, Error::Refused { .. }) && error.to_string().contains("/no/such"),
            "{error}"
        );
        pod.stop().await;
    });
}

#[test]
fn exec_returns_at_exit_although_a_grandchild_holds_the_pipe() {
    privileged(|| async {
        let pod = Pod::start().await;
        let started = pod.run("sleeper", "sleep 1000").await;
        let start = Instant::now();
        let finished = pod
            .exec(
                &started.id,
                "echo before; sleep 1000 & exit 3",
                Duration::from_secs(600),
            )
            .await;
        assert_eq!((finished.exit_code, finished.timed_out), (3, false));
        assert_eq!(finished.stdout, b"before\n");
        assert!(start.elapsed() < Duration::from_secs(120));
        pod.stop().await;
    });
}

#[test]
fn exec_past_its_time_is_killed_with_all_its_children() {
    privileged(|| async {
        let pod = Pod::start().await;
        let started = pod.run("sleeper", "sleep 1000").await;
        for manages_cgroup in [false, true] {
            let id = if manages_cgroup {
                let mut create = pod.container("own", "sleep 1000");
                create.manages_cgroup = true;
                let own = pod.create(create).await;
                pod.client().start(&own.id).await.unwrap();
                own.id
            } else {
                started.id.clone()
            };
            let start = Instant::now();
            let script = "echo partial; sleep 998 & sleep 999";
            let finished = pod.exec(&id, script, Duration::from_millis(1500)).await;
            assert!(finished.timed_out, "manages_cgroup: {manages_cgroup}");
            assert_eq!(
                (finished.exit_code, finished.stdout.as_slice()),
                (137, &b"partial\n"[..])
            );
            assert!(start.elapsed() < Duration::from_secs(120));
            let script =
                "for p in /proc/[0-9]*; do cat $p/cmdline 2>/dev/null | grep -q 99[89] && echo $p; done";
            let start = Instant::now();
            while !pod.exec(&id, script, Duration::ZERO).await.stdout.is_empty() {
                assert!(
                    start.elapsed() < Duration::from_secs(60),
                    "a child of the exec lives on"
                );
            }
        }
        pod.stop().await;
    });
}

#[test]
fn what_cannot_be_made_is_unwound_and_named() {
    privileged(|| async {
        let pod = Pod::start().await;
        let mut create = pod.container("nolog", "true");
        // The log's directory is made; this one cannot be.
        std::fs::write(pod.path("a-file"), "").unwrap();
        create.log_path = pod.path("a-file/0.log").to_str().unwrap().to_owned();
        let error = pod.client().create_container(create).await.unwrap_err();
        assert!(error.to_string().contains("a-file/0.log"), "{error}");
        let create = with_spec(pod.container("nomount", "true"), |spec| {
            let mounts = spec["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"]}));
        });
        let error = pod.client().create_container(create).await.unwrap_err();
        assert!(error.to_string().contains("/no/such/source"), "{error}");
        let create = with_spec(pod.container("noexec", "true"), |spec| {
            spec["process"]["args"] = json!(["/no/such"]);
        });
        let created = pod.create(create).await;
        let error = pod.client().start(&created.id).await.unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
        let mut create = pod.container("bad", "true");
        create.container_id = "../x".to_owned();
        let error = pod.client().create_container(create).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused {
                    kind: FailureKind::Invalid,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(pod.client().inventory().await.unwrap().containers.len(), 1);
        let error = pod.client().shutdown().await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused {
                    kind: FailureKind::Precondition,
                    ..
                }
            ),
            "{error}"
        );
        pod.stop().await;
    });
}

#[test]
fn a_removal_in_the_midst_of_a_creation_leaves_nothing() {
    privileged(|| async {
        let pod = Pod::start().await;
        let mut cancelled = 0;
        for round in 0..24u64 {
            let create = pod.container(&format!("half{round}"), "sleep 1000");
            let (client, id) = (pod.client().clone(), create.container_id.clone());
            let making = tokio::spawn(async move { client.create_container(create).await });
            tokio::time::sleep(Duration::from_micros(round * 400)).await;
            pod.client().remove(&id).await.unwrap();
            if let Err(error) = making.await.unwrap() {
                assert!(
                    error.to_string().contains("removed while it was created"),
                    "{error}"
                );
                cancelled += 1;
            }
            // A remove that was there before the create has removed nothing.
            pod.client().remove(&id).await.unwrap();
            assert!(pod.client().inventory().await.unwrap().containers.is_empty());
        }
        assert!(cancelled > 0, "no removal came in the midst");
        pod.stop().await;
    });
}

#[test]
fn a_terminal_is_logged_as_stdout() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let mut create = with_spec(
            pod.container("tty", "test -t 0 && echo terminal; echo err >&2; exit 2"),
            |spec| {
                spec["process"]["terminal"] = json!(true);
            },
        );
        create.tty = true;
        let started = pod.create(create).await;
        pod.client().start(&started.id).await.unwrap();
        assert_eq!(pod.exit_of(&started.id).await.exit_code, 2);
        let log = entries(&started.log);
        let text: Vec<_> = log
            .iter()
            .map(|(stream, tag, text)| (stream.as_str(), tag.as_str(), text.trim_end()))
            .collect();
        assert_eq!(text, [("stdout", "F", "terminal"), ("stdout", "F", "err")]);
        pod.stop().await;
    });
}
