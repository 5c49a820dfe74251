//! AppArmor's profiles and SELinux's labels, on kernels that have them, and what is said on those that have not.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{Lab, PodOptions, Running, refused};
use holdfast_launcher::Kind;
use serde_json::{Value, json};

const PROCESS: &str = "system_u:system_r:container_t:s0:c1,c2";
const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The label of a file of the container, as the kernel sees it from outside.
fn label_of(running: &Running, path: &str) -> String {
    label(Path::new(&format!("/proc/{}/root{path}", running.built.pid)))
}

fn label(path: &Path) -> String {
    let mut buffer = [0; 256];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut buffer[..]).unwrap();
    String::from_utf8_lossy(&buffer[..length])
        .trim_end_matches('\0')
        .to_owned()
}

fn current(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
    text.trim_end_matches(['\0', '\n']).to_owned()
}

#[test]
fn an_apparmor_profile_that_is_not_loaded_is_named() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut spec = lab.spec(&pod, "true");
    spec["process"]["apparmorProfile"] = json!("nobody-s-profile");
    let running = lab.create(&pod, &spec);
    let failure = running.release().unwrap_err();
    assert_eq!(failure.kind, Kind::NotFound, "{failure:?}");
    for word in ["nobody-s-profile", "not loaded"] {
        assert!(failure.message.contains(word), "{failure:?}");
    }
    assert_eq!(running.wait(&lab).code, 127);
    // `unconfined` is a profile that AppArmor always has.
    spec["process"]["apparmorProfile"] = json!("unconfined");
    let running = lab.create(&pod, &spec);
    assert_eq!(running.release().is_ok(), has_apparmor());
    running.wait(&lab);
    pod.stop();
    lab.finish();
}

fn labelled(lab: &Lab, pod: &common::Pod, script: &str) -> Value {
    let mut spec = lab.spec(pod, script);
    spec["process"]["selinuxLabel"] = json!(PROCESS);
    spec["linux"]["mountLabel"] = json!(FILES);
    spec
}

#[test]
fn selinux_labels_of_processes_and_file_systems() {
    let lab = Lab::new();
    if !has_selinux() {
        let pod = lab.pod();
        let text = refused(lab.try_create(&pod, &labelled(&lab, &pod, "true"))).to_string();
        assert!(text.contains("SELinux"), "{text}");
        let mut spec = labelled(&lab, &pod, "true");
        spec["linux"]["mountLabel"] = json!(null);
        let running = lab.create(&pod, &spec);
        let failure = running.release().unwrap_err();
        assert!(failure.message.contains(PROCESS), "{failure:?}");
        running.wait(&lab);
        pod.stop();
        return lab.finish();
    }
    for user in [false, true] {
        let pod = lab.pod_with(&PodOptions {
            user,
            labels: (PROCESS.into(), FILES.into()),
            ..PodOptions::default()
        });
        assert_eq!(current(pod.built.pid), PROCESS);
        let running = lab.create(&pod, &labelled(&lab, &pod, "sleep 1000"));
        running.release().unwrap();
        assert_eq!(current(running.built.pid), PROCESS);
        for path in ["/", "/bin/busybox", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
            assert_eq!(label_of(&running, path), FILES, "{path} (user namespace: {user})");
        }
        let process = labelled(&lab, &pod, "cat /proc/self/attr/current")["process"].clone();
        let exec = lab.try_exec(&running, &process, "exec").unwrap();
        exec.release().unwrap();
        assert_eq!(exec.wait(&lab).ok().trim_end_matches('\0'), PROCESS);
        running.kill();
        running.wait(&lab);
        pod.stop();
    }
    lab.finish();
}

#[test]
fn a_label_that_the_policy_does_not_know_is_named() {
    if !has_selinux() {
        // The message is the same one; see above for where it is told.
        let text = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
        assert!(
            !text.contains("selinux"),
            "SELinux runs, but its file system is not mounted: {text}"
        );
        return;
    }
    let lab = Lab::new();
    let pod = lab.pod();
    let mut spec = lab.spec(&pod, "true");
    spec["process"]["selinuxLabel"] = json!("u:r:nonsense_t:s0");
    let running = lab.create(&pod, &spec);
    let failure = running.release().unwrap_err();
    assert!(failure.message.contains("u:r:nonsense_t:s0"), "{failure:?}");
    assert!(failure.message.contains("policy"), "{failure:?}");
    running.wait(&lab);
    pod.stop();
    lab.finish();
}

#[test]
fn selinux_volumes_are_relabelled_once() {
    let lab = Lab::new();
    let volume = lab.path("volume");
    std::fs::create_dir_all(volume.join("a/b")).unwrap();
    std::fs::write(volume.join("a/b/file"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", volume.join("a/link")).unwrap();
    let pod = lab.pod();
    let mut spec = lab.spec(&pod, "sleep 1000");
    let bind =
        json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "ro"]});
    spec["mounts"].as_array_mut().unwrap().push(bind);
    spec["linux"]["mountLabel"] = json!(if has_selinux() { FILES } else { "" });
    lab.relabel.replace(vec![volume.clone()]);
    let before = has_selinux().then(|| label(Path::new("/etc/passwd")));
    let stop = |running: Running| {
        running.kill();
        running.wait(&lab);
    };
    stop(lab.create(&pod, &spec));
    if let Some(before) = before {
        for path in ["", "a", "a/b", "a/b/file"] {
            assert_eq!(label(&volume.join(path)), FILES, "{path:?}");
        }
        let mut buffer = [0; 256];
        let length =
            rustix::fs::lgetxattr(volume.join("a/link"), "security.selinux", &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..length - 1], FILES.as_bytes());
        assert_eq!(label(Path::new("/etc/passwd")), before);
        // The root has the label: what is below is left alone.
        let file = volume.join("a/b/file");
        let other = b"system_u:object_r:container_file_t:s0:c9,c10\0";
        rustix::fs::setxattr(&file, "security.selinux", other, rustix::fs::XattrFlags::empty()).unwrap();
        stop(lab.create(&pod, &spec));
        assert!(label(&file).ends_with(":c9,c10"));
        // The host's own directories are nobody's volume.
        spec["mounts"].as_array_mut().unwrap().last_mut().unwrap()["source"] = json!("/etc");
        lab.relabel.replace(vec!["/etc".into()]);
        let text = refused(lab.try_create(&pod, &spec)).to_string();
        assert!(text.contains("/etc may not be relabelled"), "{text}");
        assert_eq!(label(Path::new("/etc/passwd")), before);
    } else {
        // Without a label there is nothing to give.
        assert!(rustix::fs::getxattr(&volume, "security.selinux", &mut [0_u8; 256][..]).is_err());
    }
    pod.stop();
    lab.finish();
}
