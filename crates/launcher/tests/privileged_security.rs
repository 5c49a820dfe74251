//! Capabilities, no_new_privs, seccomp, limits: what the program ends up with.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, PodOptions, refused};
use serde_json::json;

fn status(out: &str, key: &str) -> String {
    let line = out.lines().find(|l| l.starts_with(key)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

#[test]
fn capabilities_are_exactly_those_asked_for() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut spec = lab.spec(&pod, "cat /proc/self/status");
    spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_CHOWN", "CAP_NET_RAW"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN", "CAP_NET_RAW"],
    });
    let out = lab.run(&pod, &spec).ok();
    // A root that executes a program gets its bounding set, as everywhere.
    assert_eq!(status(&out, "CapBnd"), "0000000000002001");
    assert_eq!(status(&out, "CapEff"), "0000000000002001");
    assert_eq!(status(&out, "CapAmb"), "0000000000000000");
    assert_eq!(status(&out, "NoNewPrivs"), "1");
    // Another user keeps only the ambient ones.
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let out = lab.run(&pod, &spec).ok();
    assert_eq!(status(&out, "CapEff"), "0000000000000000");
    assert_eq!(status(&out, "CapPrm"), "0000000000000000");
    spec["process"]["capabilities"]["inheritable"] = json!(["CAP_CHOWN"]);
    spec["process"]["capabilities"]["ambient"] = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
    spec["process"]["noNewPrivileges"] = json!(false);
    let out = lab.run(&pod, &spec).ok();
    assert_eq!(status(&out, "CapEff"), "0000000000000001");
    assert_eq!(status(&out, "CapAmb"), "0000000000000001");
    assert_eq!(status(&out, "NoNewPrivs"), "0");
    spec["process"]["capabilities"] = json!(null);
    spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    let out = lab.run(&pod, &spec).ok();
    assert_eq!(status(&out, "CapEff"), "0000000000000000");
    pod.stop();
    lab.finish();
}

#[test]
fn each_container_has_a_session_keyring_of_its_own() {
    // Of the keys of other sessions none is shown, and these are the reader's (proc_keys(5)).
    // Services of systemd have sessions that root may see, named `_ses`.
    const OWN: &str = "grep -o ' _ses[.][^:]*' /proc/keys";
    let lab = Lab::new();
    for user in [false, true] {
        let pod = lab.pod_with(&PodOptions {
            user,
            ..PodOptions::default()
        });
        let script = format!("{OWN} >/tmp/ring; exec sleep 60");
        let spec = |script: &str| {
            let mut spec = lab.spec(&pod, script);
            spec["linux"]["maskedPaths"] = json!([]);
            spec
        };
        let first = lab.create(&pod, &spec(&script));
        first.release().unwrap();
        let mut process = lab.spec(&pod, "")["process"].clone();
        let script =
            format!("while ! grep -q sleep /proc/1/comm; do usleep 10000; done; cat /tmp/ring; {OWN}");
        process["args"] = json!(["sh", "-c", script]);
        let exec = lab.try_exec(&first, &process, "exec-0").unwrap();
        exec.release().unwrap();
        let out = exec.wait(&lab).ok();
        let rings: Vec<&str> = out.lines().collect();
        assert_eq!(rings.len(), 2, "{out}");
        assert!(rings[0].starts_with(" _ses.") && rings[0] == rings[1], "{out}");
        let second = lab.run(&pod, &spec(OWN)).ok();
        assert_eq!(second.lines().count(), 1, "{second}");
        assert_ne!(second.trim_end(), rings[0]);
        first.kill();
        first.wait(&lab);
        pod.stop();
    }
    lab.finish();
}

#[test]
fn what_the_runtime_lacks_is_left_out_with_a_warning() {
    let lab = Lab::new();
    let pod = lab.pod();
    let held = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let held = u64::from_str_radix(&status(&held, "CapPrm"), 16).unwrap();
    let mut spec = lab.spec(&pod, "cat /proc/self/status");
    let all = json!(["CAP_SYS_RESOURCE", "CAP_SYS_ADMIN"]);
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    spec["process"]["oomScoreAdj"] = json!(-999);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1 << 20, "hard": 1 << 20}]);
    let out = lab.run(&pod, &spec);
    let has_resource = held & 1 << 24 != 0;
    assert_eq!(out.warnings.is_empty(), has_resource, "{:?}", out.warnings);
    if !has_resource {
        assert_eq!(out.warnings.len(), 3, "{:?}", out.warnings);
        assert!(out.warnings[0].contains("CAP_SYS_RESOURCE"));
        assert_eq!(status(&out.ok(), "CapBnd"), "0000000000200000");
    }
    pod.stop();
    lab.finish();
}

#[test]
fn limits_and_scores() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut spec = lab.spec(
        &pod,
        "ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj",
    );
    spec["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}
    ]);
    spec["process"]["oomScoreAdj"] = json!(500);
    assert_eq!(lab.run(&pod, &spec).ok(), "100\n200\n0\n500\n");
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 300, "hard": 200}]);
    assert!(
        refused(lab.try_create(&pod, &spec))
            .to_string()
            .contains("is over the hard one")
    );
    // Without a wish it is what the monitor has, not what the builder took for itself.
    let ours = holdfast_sys::process::limit(libc::RLIMIT_NOFILE, None).unwrap();
    let out = lab.sh(&pod, "ulimit -n; ulimit -Hn").ok();
    assert_eq!(out, format!("{}\n{}\n", ours.soft, ours.hard));
    pod.stop();
    lab.finish();
}

#[test]
fn seccomp_filters_hold() {
    let lab = Lab::new();
    let pod = lab.pod();
    for no_new_privs in [true, false] {
        let mut spec = lab.spec(&pod, "grep Seccomp: /proc/self/status; mkdir /x 2>&1");
        spec["process"]["noNewPrivileges"] = json!(no_new_privs);
        spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        });
        let out = lab.run(&pod, &spec);
        assert_eq!(
            out.out,
            "Seccomp:\t2\nmkdir: can't create directory '/x': Operation not supported\n"
        );
    }
    let caps = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"];
    let profile = holdfast_seccomp::default_profile(&caps, holdfast_seccomp::Machine::NATIVE);
    let mut spec = lab.spec(
        &pod,
        "echo fine; mount -t tmpfs x /tmp 2>/dev/null || echo refused",
    );
    spec["linux"]["seccomp"] = serde_json::to_value(&profile).unwrap();
    assert_eq!(lab.run(&pod, &spec).ok(), "fine\nrefused\n");
    pod.stop();
    lab.finish();
}

#[test]
fn cgroup_limits_hold_from_the_barrier_on() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut spec = lab.spec(
        &pod,
        "dd if=/dev/zero of=/dev/null bs=64M count=1 2>&1; echo survived",
    );
    spec["linux"]["resources"] = json!({
        "memory": {"limit": 16 << 20},
        "pids": {"limit": 50},
        "cpu": {"shares": 512, "quota": 50000, "period": 100000},
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}],
    });
    let running = lab.create(&pod, &spec);
    let cgroup = lab.hierarchy.open(&running.cgroup).unwrap();
    let before = cgroup.oom_kills().unwrap();
    running.release().unwrap();
    let out = {
        let kills = || cgroup.oom_kills().unwrap() - before;
        let out = pid_wait(&running);
        assert!(kills() > 0 || out == 0, "no OOM kill was counted");
        out
    };
    assert!(out == 0 || out == 137);
    let text = running
        .out
        .as_ref()
        .map(|f| std::io::read_to_string(f).unwrap())
        .unwrap();
    assert!(!text.contains("64.0MB") && !text.contains("64M"), "{text}");
    lab.remove_cgroup(&running.cgroup);
    drop(running);
    // The device filter: zero and null are allowed, full is not.
    spec["process"]["args"] = json!(["sh", "-c", "echo > /dev/null; echo > /dev/full || echo refused"]);
    let out = lab.run(&pod, &spec);
    assert!(
        out.out == "refused\n" && out.err.contains("not permitted"),
        "{out:?}"
    );
    pod.stop();
    lab.finish();
}

fn pid_wait(running: &common::Running) -> i32 {
    use std::os::fd::AsFd;
    holdfast_sys::pidfd::reap(running.built.pidfd.as_fd())
        .unwrap()
        .code()
}

/// The old root is not unmounted but lies below: no way up leads to it.
#[test]
fn there_is_nothing_above_the_root() {
    let lab = Lab::new();
    std::fs::create_dir_all(lab.path("image/inner")).unwrap();
    let chroot = "chroot /inner /bin/true";
    let pod = lab.pod();
    let script = format!(
        "mkdir -p /inner/bin; cp /bin/busybox /inner/bin/true; {chroot}; cat /proc/self/mountinfo | cut -d' ' -f5 | sort | uniq -d; \
         cut -d' ' -f5 /proc/self/mountinfo | head -1; ls /../../.. | tr '\\n' ' '; ls /proc/1/root/.. | tr '\\n' ' '; \
         nsenter --mount=/proc/self/ns/mnt ls / | tr '\\n' ' '; unshare -U true && echo nested; \
         umount -l /; ls -A / 2>&1 | tr '\\n' ' '"
    );
    let mut spec = lab.spec(&pod, &script);
    for set in ["bounding", "effective", "permitted"] {
        let caps = spec["process"]["capabilities"][set].as_array_mut().unwrap();
        caps.extend([json!("CAP_SYS_ADMIN"), json!("CAP_SYS_PTRACE")]);
    }
    let out = lab.run(&pod, &spec);
    let root = "bin dev etc home inner proc sys tmp ";
    let want = format!("/\n{root}{root}{root}nested\n");
    assert!(out.out.starts_with(&want), "{out:?}");
    pod.stop();
    lab.finish();
}

/// What the launcher still has open must lead nowhere while execve looks for the program (CVE-2024-21626): not to the
/// host's procfs, not to the tree in which the root was put together.
#[test]
fn no_descriptor_of_the_launcher_leads_to_a_program() {
    let lab = Lab::new();
    let pod = lab.pod();
    let running = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    running.release().unwrap();
    let mut spec = lab.spec(&pod, "");
    for number in 3..20 {
        for rest in ["self/exe", "1/root/bin/true", "root/bin/true", "bin/true"] {
            let program = format!("/proc/self/fd/{number}/{rest}");
            spec["process"]["args"] = json!([program]);
            let exec = lab.try_exec(&running, &spec["process"], "exec-1").unwrap();
            let failure = exec.release().expect_err(&program);
            assert!(
                matches!(failure.errno, libc::ENOENT | libc::ENOTDIR),
                "{program}: {failure:?}"
            );
            exec.wait(&lab);
            let container = lab.create(&pod, &spec);
            let failure = container.release().expect_err(&program);
            assert!(
                matches!(failure.errno, libc::ENOENT | libc::ENOTDIR),
                "{program}: {failure:?}"
            );
            container.wait(&lab);
        }
    }
    running.kill();
    running.wait(&lab);
    pod.stop();
    lab.finish();
}
