//! Pods with a user namespace: ids, id-mapped layers and volumes, what a container's root may not do.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Lab, MAP, PodOptions};
use serde_json::json;

fn with_user() -> PodOptions {
    PodOptions {
        user: true,
        ..PodOptions::default()
    }
}

#[test]
fn root_is_root_inside_only() {
    let lab = Lab::new();
    let pod = lab.pod_with(&with_user());
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c '%u %g' / /bin/busybox /proc/1 /dev /dev/null; \
                  touch /made /dev/shm/made && stat -c %u /made; echo x > /dev/null; cat /etc/passwd > /tmp/copy; chown 1000 /tmp/copy && stat -c %u /tmp/copy; hostname";
    let out = lab.sh(&pod, script).ok();
    let mut lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.remove(0), "0");
    assert_eq!(lines.remove(0).trim(), format!("0 {} 65536", MAP.host_id));
    assert_eq!(
        lines,
        ["0 0", "0 0", "0 0", "0 0", "0 0", "0", "1000", "pod-host"]
    );
    use std::os::unix::fs::MetadataExt;
    let made = std::fs::metadata(lab.path("c0/upper/made")).unwrap();
    assert_eq!(made.uid(), MAP.host_id);
    assert_eq!(std::fs::metadata(lab.path("image/bin/busybox")).unwrap().uid(), 0);
    pod.stop();
    lab.finish();
}

#[test]
fn its_mounts_are_locked() {
    let lab = Lab::new();
    let pod = lab.pod_with(&with_user());
    let data = lab.path("data");
    std::fs::create_dir_all(&data).unwrap();
    // Those that the host made are; procfs and its masks are the user namespace's own, as with other runtimes.
    let script = "umount /dev/shm 2>/dev/null || echo locked; mount -o remount,rw,bind /d 2>/dev/null || echo locked; \
                  umount /d 2>/dev/null || echo locked; mount -t tmpfs x /tmp && echo may";
    let mut spec = lab.spec(&pod, script);
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push(json!("CAP_SYS_ADMIN"));
    }
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/d", "type": "bind", "source": data, "options": ["rbind", "ro"]}));
    let out = lab.run(&pod, &spec).ok();
    assert_eq!(out, "locked\nlocked\nlocked\nmay\n");
    pod.stop();
    lab.finish();
}

#[test]
fn volumes_can_be_mapped() {
    let lab = Lab::new();
    let pod = lab.pod_with(&with_user());
    let data = lab.path("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("file"), "").unwrap();
    std::os::unix::fs::chown(data.join("file"), Some(1000), Some(1000)).unwrap();
    let entry = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": data, "options": options});
    let mut spec = lab.spec(&pod, "stat -c %u /plain/file /mapped/file; touch /mapped/new");
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(entry("/plain", &["rbind"]));
    mounts.push(entry("/mapped", &["rbind", "idmap"]));
    // The volume's root directory is host root's: mapped, it is the container root's to write in.
    assert_eq!(lab.run(&pod, &spec).ok(), "65534\n1000\n");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(data.join("new")).unwrap().uid(), 0);
    pod.stop();
    lab.finish();
}

#[test]
fn many_mapped_layers_and_a_shared_pid_namespace() {
    let lab = Lab::new();
    let pod = lab.pod_with(&with_user());
    let mut lowers = Vec::new();
    for n in 0..120 {
        let dir = lab.path(&format!("layers/{n:064}"));
        std::fs::create_dir_all(dir.join("l")).unwrap();
        std::fs::write(dir.join("l").join(n.to_string()), "").unwrap();
        lowers.push(dir);
    }
    lowers.push(lab.path("image"));
    let mut spec = lab.spec(&pod, "ls /l | wc -l; stat -c %u /l/7; cat /proc/1/comm");
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "pid");
    list.push(json!({"type": "pid", "path": "pod:"}));
    let running = lab
        .try_create_on(&pod, &spec, Some(lab.layered("many", lowers)))
        .unwrap();
    running.release().unwrap();
    assert_eq!(running.wait(&lab).ok(), "120\n0\npause\n");
    pod.stop();
    lab.finish();
}

/// What an image like nginx does, whose logs are links to /dev/stdout and /dev/stderr.
#[test]
fn standard_output_can_be_opened_and_given_on() {
    let lab = Lab::new();
    let pod = lab.pod_with(&with_user());
    let script =
        "stat -c '%u %g' /proc/self/fd/1 /proc/self/fd/2; echo out > /dev/stdout; echo err > /dev/stderr";
    let chown = "; chown 7 /proc/self/fd/1 && stat -L -c %u /proc/self/fd/1";
    let mut spec = lab.spec(&pod, "sleep 60");
    let running = lab.create(&pod, &spec);
    running.release().unwrap();
    for user in [0, 1000] {
        let more = if user == 0 { chown } else { "" };
        spec["process"]["args"] = json!(["sh", "-c", script.replace("stat", "stat -L") + more]);
        spec["process"]["user"] = json!({"uid": user, "gid": user});
        let own = format!("{user} 0\n{user} 0\nout\n");
        let want = if user == 0 { own + "7\n" } else { own };
        let container = lab.run(&pod, &spec);
        assert_eq!(
            (container.out.as_str(), container.err.as_str()),
            (&*want, "err\n")
        );
        let exec = lab.try_exec(&running, &spec["process"], "exec-1").unwrap();
        exec.release().unwrap();
        let exec = exec.wait(&lab);
        assert_eq!((exec.out.as_str(), exec.err.as_str()), (&*want, "err\n"));
    }
    running.kill();
    running.wait(&lab);
    pod.stop();
    lab.finish();
}

/// As on NFS with root_squash: the container's root may not enter, but its user may.
#[test]
fn a_working_directory_that_only_the_user_may_enter() {
    let lab = Lab::new();
    let pod = lab.pod_with(&with_user());
    let data = lab.path("data");
    std::fs::create_dir_all(data.join("deep")).unwrap();
    std::os::unix::fs::chown(&data, Some(0), Some(MAP.host_id + 1000)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o750)).unwrap();
    let mut spec = lab.spec(&pod, "sleep 60");
    let mount = json!({"destination": "/d", "type": "bind", "source": data, "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    let running = lab.create(&pod, &spec);
    running.release().unwrap();
    for cwd in ["/d", "/d/deep"] {
        spec["process"]["cwd"] = json!(cwd);
        spec["process"]["args"] = json!(["sh", "-c", "pwd; id -u; id -G; grep CapEff /proc/self/status"]);
        spec["process"]["user"] = json!({"uid": 0, "gid": 0});
        let error = common::refused(lab.try_create(&pod, &spec));
        assert_eq!(
            error.to_string(),
            format!("change to the working directory {cwd}: permission denied")
        );
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000]});
        let want = format!("{cwd}\n1000\n1000 2000\nCapEff:\t0000000000000000\n");
        assert_eq!(lab.run(&pod, &spec).ok(), want);
        let exec = lab.try_exec(&running, &spec["process"], "exec-1").unwrap();
        exec.release().unwrap();
        assert_eq!(exec.wait(&lab).ok(), want);
    }
    running.kill();
    running.wait(&lab);
    pod.stop();
    lab.finish();
}
