//! Further processes in a running container, and terminals.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use common::{Lab, PodOptions};
use holdfast_cgroups::Mode;
use holdfast_launcher::Kind;
use serde_json::json;

#[test]
fn an_exec_is_in_the_container() {
    let lab = Lab::new();
    for user in [false, true] {
        let pod = lab.pod_with(&PodOptions {
            user,
            ..PodOptions::default()
        });
        let running = lab.create(&pod, &lab.spec(&pod, "echo $$ > /tmp/pid; sleep 60"));
        running.release().unwrap();
        let mut process = lab.spec(&pod, "")["process"].clone();
        let script = "while ! grep -q sleep /proc/1/comm; do usleep 10000; done; tr '\\0' ' ' < /proc/1/cmdline; \
            for n in pid mnt net ipc uts cgroup user; do test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo $n; done; exit 3";
        process["args"] = json!(["sh", "-c", script]);
        let exec = lab.try_exec(&running, &process, "exec-0").unwrap();
        exec.release().unwrap();
        let out = exec.wait(&lab);
        assert_eq!((out.out.as_str(), out.code), ("sleep 60 ", 3), "{}", out.err);
        process["args"] = json!(["sh", "-c", "hostname; id -u; pwd; grep CapEff /proc/self/status"]);
        process["user"] = json!({"uid": 1000, "gid": 1000});
        process["cwd"] = json!("/home/u");
        process["capabilities"] = json!({});
        let exec = lab.try_exec(&running, &process, "exec-1").unwrap();
        exec.release().unwrap();
        let out = exec.wait(&lab).ok();
        assert_eq!(out, "pod-host\n1000\n/home/u\nCapEff:\t0000000000000000\n");
        process["args"] = json!(["nope"]);
        let exec = lab.try_exec(&running, &process, "exec-2").unwrap();
        assert_eq!(
            exec.release().unwrap_err().message,
            "exec \"nope\": no such file in $PATH"
        );
        exec.wait(&lab);
        running.kill();
        // Dead but not reaped, or gone: either way it is not running.
        std::thread::sleep(Duration::from_millis(50));
        process["args"] = json!(["true"]);
        let error = lab.try_exec(&running, &process, "exec-3").err().unwrap();
        assert!(
            error.kind() == Kind::Precondition || error.to_string().contains("namespaces"),
            "{error}"
        );
        running.wait(&lab);
        pod.stop();
    }
    lab.finish();
}

#[test]
fn an_exec_joins_no_cgroup_namespace_where_the_container_has_the_host_s() {
    let lab = Lab::new();
    let host = std::fs::read_link("/proc/self/ns/cgroup").unwrap();
    for user in [false, true] {
        let pod = lab.pod_with(&PodOptions {
            user,
            ..PodOptions::default()
        });
        let mut spec = lab.spec(&pod, "sleep 60");
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        let running = lab.create(&pod, &spec);
        running.release().unwrap();
        let mut process = spec["process"].clone();
        process["args"] = json!([
            "sh",
            "-c",
            "readlink /proc/self/ns/cgroup; readlink /proc/1/ns/cgroup; id -u"
        ]);
        let exec = lab.try_exec(&running, &process, "exec-1").unwrap();
        exec.release().unwrap();
        let host = host.display();
        assert_eq!(
            exec.wait(&lab).ok(),
            format!("{host}\n{host}\n0\n"),
            "user: {user}"
        );
        running.kill();
        running.wait(&lab);
        pod.stop();
    }
    lab.finish();
}

#[test]
fn an_exec_s_leaf_cgroup_kills_all_of_it() {
    let lab = Lab::new();
    let pod = lab.pod();
    let running = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    running.release().unwrap();
    let mut process = lab.spec(&pod, "")["process"].clone();
    process["args"] = json!(["sh", "-c", "(sleep 50 &); (sleep 51 &); echo up; sleep 52"]);
    let exec = lab.try_exec(&running, &process, "exec-1").unwrap();
    exec.release().unwrap();
    let mut up = [0; 3];
    exec.out.as_ref().unwrap().read_exact(&mut up).unwrap();
    let leaf = lab
        .hierarchy
        .open(&running.cgroup)
        .unwrap()
        .leaf("exec-1")
        .unwrap();
    leaf.kill().unwrap();
    leaf.wait_empty(Duration::from_secs(60)).unwrap();
    leaf.remove(Duration::from_secs(60)).unwrap();
    assert_eq!(exec.wait(&lab).code, 137);
    process["args"] = json!(["sh", "-c", "ps -o args | grep -c '^sleep 5'"]);
    let exec = lab.try_exec(&running, &process, "exec-2").unwrap();
    exec.release().unwrap();
    assert_eq!(exec.wait(&lab).out, "0\n", "the container itself goes on");
    running.kill();
    running.wait(&lab);
    pod.stop();
    lab.finish();
}

#[test]
fn a_terminal_is_the_container_s_own() {
    let lab = Lab::new();
    for user in [false, true] {
        let pod = lab.pod_with(&PodOptions {
            user,
            ..PodOptions::default()
        });
        let mut spec = lab.spec(&pod, "tty; stat -c %F /dev/console; test -t 0 && echo terminal; read x; echo got $x; tty < /dev/console; stat -c %u $(tty)");
        spec["process"]["terminal"] = json!(true);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let mut running = lab.create(&pod, &spec);
        running.release().unwrap();
        let mut master = std::fs::File::from(running.built.pty_master.take().unwrap());
        let mut text = String::new();
        let mut buffer = [0; 512];
        let mut asked = false;
        // The master reads EIO once nobody has the other end.
        while let Ok(n @ 1..) = master.read(&mut buffer) {
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
            // Its echo comes at once, in the middle of what is being printed.
            if !asked && text.contains("terminal\r\n") {
                asked = true;
                master.write_all(b"word\n").unwrap();
            }
        }
        let out = running.wait(&lab);
        assert_eq!(out.code, 0, "{text}");
        for want in [
            "/dev/pts/0\r\n",
            "character special file\r\n",
            "terminal\r\n",
            "got word\r\n",
            "1000\r\n",
        ] {
            assert!(text.contains(want), "{want:?} in {text}");
        }
        pod.stop();
    }
    lab.finish();
}

#[test]
fn an_exec_can_have_a_terminal() {
    let lab = Lab::new();
    let pod = lab.pod();
    let running = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    running.release().unwrap();
    let mut process = lab.spec(&pod, "")["process"].clone();
    process["terminal"] = json!(true);
    process["consoleSize"] = json!({"height": 33, "width": 99});
    process["args"] = json!(["sh", "-c", "tty; stty size"]);
    let mut exec = lab.try_exec(&running, &process, "exec-1").unwrap();
    let mut master = std::fs::File::from(exec.built.pty_master.take().unwrap());
    exec.release().unwrap();
    let mut text = Vec::new();
    let _ = master.read_to_end(&mut text);
    assert_eq!(String::from_utf8_lossy(&text), "/dev/pts/0\r\n33 99\r\n");
    assert_eq!(exec.wait(&lab).code, 0);
    running.kill();
    running.wait(&lab);
    drop(master);
    pod.stop();
    lab.finish();
}

/// A container that has delegated its cgroup, as one with systemd in it does: no process may be in the cgroup itself
/// (EBUSY), so the exec goes where init is. That the container has a procfs of its own by then must not matter.
#[test]
fn an_exec_goes_where_init_is_when_the_container_s_cgroup_has_others_below() {
    let lab = Lab::new();
    let unified = match lab.hierarchy.mode() {
        Mode::Unified => "/sys/fs/cgroup",
        Mode::Hybrid => "/sys/fs/cgroup/unified",
        Mode::Legacy => panic!("this test needs the unified cgroup hierarchy"),
    };
    let pod = lab.pod();
    let running = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    running.release().unwrap();
    let own = PathBuf::from(format!("{unified}{}", running.cgroup));
    let below = own.join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("cgroup.procs"), running.built.pid.to_string()).unwrap();
    let controllers = std::fs::read_to_string(own.join("cgroup.controllers")).unwrap();
    let controller = controllers.split_whitespace().next().unwrap();
    std::fs::write(own.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let mut process = lab.spec(&pod, "")["process"].clone();
    process["args"] = json!(["sh", "-c", "grep ^0:: /proc/1/cgroup /proc/self/cgroup"]);
    let exec = lab.try_exec(&running, &process, "").unwrap();
    exec.release().unwrap();
    assert_eq!(
        exec.wait(&lab).ok(),
        "/proc/1/cgroup:0::/below\n/proc/self/cgroup:0::/below\n"
    );
    running.kill();
    running.wait(&lab);
    pod.stop();
    lab.finish();
}

/// A container is given its working directory; an exec finds it or fails, as with the field's other runtimes.
#[test]
fn an_exec_makes_no_working_directory() {
    let lab = Lab::new();
    let pod = lab.pod();
    let running = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    running.release().unwrap();
    let mut process = lab.spec(&pod, "")["process"].clone();
    process["cwd"] = json!("/not/there");
    let error = common::refused(lab.try_exec(&running, &process, "exec-1"));
    // As the monitor does: the container's PID namespace ends only when all its processes are reaped.
    while holdfast_sys::pidfd::reap_any().unwrap().is_some() {}
    assert_eq!(
        (error.to_string().as_str(), error.kind()),
        (
            "change to the working directory /not/there: no such file or directory",
            Kind::Invalid
        )
    );
    process["cwd"] = json!("/");
    process["args"] = json!(["test", "-e", "/not"]);
    let exec = lab.try_exec(&running, &process, "exec-2").unwrap();
    exec.release().unwrap();
    assert_eq!(exec.wait(&lab).code, 1);
    running.kill();
    running.wait(&lab);
    pod.stop();
    lab.finish();
}
