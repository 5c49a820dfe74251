//! Bind mounts, propagation, read-only trees, masked paths, and images that try to lead a mount out of the root.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Lab, Pod, refused};
use holdfast_launcher::Kind;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::{Value, json};

fn with_mount(
    lab: &Lab,
    pod: &Pod,
    script: &str,
    source: &Path,
    destination: &str,
    options: &[&str],
) -> Value {
    let mut spec = lab.spec(pod, script);
    let entry = json!({"destination": destination, "type": "bind", "source": source, "options": options});
    spec["mounts"].as_array_mut().unwrap().push(entry);
    spec
}

/// A tmpfs at `dir`, with the given propagation.
fn tmpfs(dir: &Path, propagation: MountPropagationFlags) {
    std::fs::create_dir_all(dir).unwrap();
    mount(
        "tmpfs",
        dir,
        "tmpfs",
        MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .unwrap();
    mount_change(dir, propagation).unwrap();
}

#[test]
fn files_and_directories_are_bound() {
    let lab = Lab::new();
    let pod = lab.pod();
    let data = lab.path("data");
    std::fs::create_dir_all(data.join("sub")).unwrap();
    std::fs::write(data.join("file"), "content\n").unwrap();
    let spec = with_mount(
        &lab,
        &pod,
        "cat /new/dir/file; echo more >> /new/dir/file; ls /new/dir",
        &data,
        "/new/dir",
        &["rbind"],
    );
    assert_eq!(lab.run(&pod, &spec).ok(), "content\nfile\nsub\n");
    assert_eq!(
        std::fs::read_to_string(data.join("file")).unwrap(),
        "content\nmore\n"
    );
    // A file over a file that is not there.
    let spec = with_mount(
        &lab,
        &pod,
        "cat /etc/new/hosts; stat -c %F /etc/new/hosts",
        &data.join("file"),
        "/etc/new/hosts",
        &["rbind"],
    );
    assert!(lab.run(&pod, &spec).ok().ends_with("regular file\n"));
    let spec = with_mount(
        &lab,
        &pod,
        "echo x > /d/file || echo refused; mount | grep -c ' /d .*ro,'",
        &data,
        "/d",
        &["rbind", "ro"],
    );
    assert_eq!(lab.run(&pod, &spec).ok(), "refused\n1\n");
    let spec = with_mount(&lab, &pod, "", &data.join("missing"), "/d", &["rbind"]);
    let error = refused(lab.try_create(&pod, &spec));
    let want = format!(
        "mount source {} (for /d): no such file or directory",
        data.join("missing").display()
    );
    assert_eq!((error.to_string(), error.kind()), (want, Kind::NotFound));
    let spec = with_mount(&lab, &pod, "", &data.join("file"), "/etc", &["rbind"]);
    assert!(
        refused(lab.try_create(&pod, &spec))
            .to_string()
            .contains("is a directory, but a file")
    );
    let spec = with_mount(&lab, &pod, "", &data, "/etc/passwd", &["rbind"]);
    assert!(
        refused(lab.try_create(&pod, &spec))
            .to_string()
            .contains("is not a directory, but")
    );
    let spec = with_mount(&lab, &pod, "", &data, "/", &["rbind"]);
    assert!(
        refused(lab.try_create(&pod, &spec))
            .to_string()
            .contains("is the container's root")
    );
    pod.stop();
    lab.finish();
}

#[test]
fn read_only_reaches_below_only_where_asked() {
    let lab = Lab::new();
    let pod = lab.pod();
    let data = lab.path("data");
    let below = data.join("below");
    std::fs::create_dir_all(&below).unwrap();
    tmpfs(&below, MountPropagationFlags::PRIVATE);
    let script = "echo x > /d/below/file && echo written || echo refused";
    let spec = with_mount(&lab, &pod, script, &data, "/d", &["rbind", "ro"]);
    assert_eq!(lab.run(&pod, &spec).ok(), "written\n");
    let spec = with_mount(&lab, &pod, script, &data, "/d", &["rbind", "rro"]);
    assert_eq!(lab.run(&pod, &spec).ok(), "refused\n");
    let spec = with_mount(&lab, &pod, "ls /d/below", &data, "/d", &["bind"]);
    assert_eq!(
        lab.run(&pod, &spec).ok(),
        "",
        "bind without recursion leaves out what is mounted below"
    );
    unmount(&below, UnmountFlags::empty()).unwrap();
    pod.stop();
    lab.finish();
}

#[test]
fn propagation_is_as_asked() {
    let lab = Lab::new();
    let pod = lab.pod();
    let volume = lab.path("volume");
    tmpfs(&volume, MountPropagationFlags::SHARED);
    for name in ["host", "container"] {
        std::fs::create_dir_all(volume.join(name)).unwrap();
    }
    for (option, sees_hosts, host_sees) in [
        ("rprivate", false, false),
        ("rslave", true, false),
        ("rshared", true, true),
    ] {
        let script = "mount -t tmpfs tmpfs /v/container && echo mine > /v/container/file; touch /v/ready; \
                      while ! test -e /v/go; do usleep 10000; done; cat /v/host/file";
        let mut spec = with_mount(&lab, &pod, script, &volume, "/v", &["rbind", option]);
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap()
                .push(json!("CAP_SYS_ADMIN"));
        }
        let running = lab.create(&pod, &spec);
        running.release().unwrap();
        while !volume.join("ready").exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(volume.join("container/file").exists(), host_sees, "{option}");
        tmpfs(&volume.join("host"), MountPropagationFlags::PRIVATE);
        std::fs::write(volume.join("host/file"), "hosts\n").unwrap();
        std::fs::write(volume.join("go"), "").unwrap();
        let out = running.wait(&lab);
        assert_eq!(
            out.out == "hosts\n",
            sees_hosts,
            "{option}: {} {}",
            out.out,
            out.err
        );
        unmount(volume.join("host"), UnmountFlags::empty()).unwrap();
        if host_sees {
            unmount(volume.join("container"), UnmountFlags::empty()).unwrap();
        }
        for name in ["ready", "go"] {
            std::fs::remove_file(volume.join(name)).unwrap();
        }
    }
    mount_change(&volume, MountPropagationFlags::PRIVATE).unwrap();
    for option in ["rshared", "rslave"] {
        let spec = with_mount(&lab, &pod, "", &volume, "/v", &["rbind", option]);
        let error = refused(lab.try_create(&pod, &spec)).to_string();
        assert!(error.contains("is not on a shared"), "{error}");
    }
    unmount(&volume, UnmountFlags::empty()).unwrap();
    pod.stop();
    lab.finish();
}

#[test]
fn masked_and_read_only_paths() {
    let lab = Lab::new();
    let pod = lab.pod();
    let script = "wc -c < /proc/version; ls -A /proc/fs /sys/kernel | grep -v : ; \
                  echo 1 > /proc/sys/kernel/domainname || echo refused; echo h > /proc/sysrq-trigger || echo refused; \
                  touch /sys/x || echo refused; touch /proc/fs/x || echo refused; test -c /proc/version && echo null";
    let mut spec = lab.spec(&pod, script);
    spec["linux"]["maskedPaths"] = json!([
        "/proc/version",
        "/proc/fs",
        "/sys/kernel",
        "/proc/not-there",
        "/bin/busybox/x"
    ]);
    let out = lab.run(&pod, &spec).out;
    let out: Vec<&str> = out.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(out, ["0", "refused", "refused", "refused", "refused", "null"]);
    let mut spec = lab.spec(
        &pod,
        "touch /x || echo refused; echo ok > /dev/null; touch /dev/shm/x && echo shm",
    );
    spec["root"]["readonly"] = json!(true);
    spec["process"]["cwd"] = json!("/made/first");
    assert_eq!(lab.run(&pod, &spec).ok(), "refused\nshm\n");
    pod.stop();
    lab.finish();
}

#[test]
fn links_in_the_image_do_not_lead_out() {
    let lab = Lab::new();
    let pod = lab.pod();
    let outside = lab.path("outside");
    std::fs::create_dir_all(&outside).unwrap();
    let data = lab.path("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("file"), "volume\n").unwrap();
    let image = lab.path("image");
    symlink(&outside, image.join("absolute")).unwrap();
    symlink("../../../../../../..", image.join("up")).unwrap();
    symlink("../run/stub/resolv.conf", image.join("etc/resolv.conf")).unwrap();
    symlink("loop", image.join("loop")).unwrap();
    // Followed inside the root, as if it were the whole world.
    let spec = with_mount(
        &lab,
        &pod,
        "cat /absolute/x/file",
        &data,
        "/absolute/x",
        &["rbind"],
    );
    assert_eq!(lab.run(&pod, &spec).ok(), "volume\n");
    let spec = with_mount(
        &lab,
        &pod,
        "cat /up/y/file; cat /y/file",
        &data,
        "/up/y",
        &["rbind"],
    );
    assert_eq!(lab.run(&pod, &spec).ok(), "volume\nvolume\n");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    // A link to nowhere is completed inside the root.
    let spec = with_mount(
        &lab,
        &pod,
        "cat /etc/resolv.conf; cat /run/stub/resolv.conf",
        &data.join("file"),
        "/etc/resolv.conf",
        &["rbind"],
    );
    assert_eq!(lab.run(&pod, &spec).ok(), "volume\nvolume\n");
    let spec = with_mount(&lab, &pod, "", &data, "/loop/x", &["rbind"]);
    assert!(
        refused(lab.try_create(&pod, &spec))
            .to_string()
            .contains("too many levels"),
        "a loop ends"
    );
    pod.stop();
    lab.finish();
}

#[test]
fn proc_and_sys_cannot_be_redirected() {
    let lab = Lab::new();
    let pod = lab.pod();
    for name in ["proc", "sys"] {
        let image = lab.path(&format!("evil-{name}"));
        std::fs::create_dir_all(image.join("elsewhere")).unwrap();
        symlink("/elsewhere", image.join(name)).unwrap();
        let mut lowers = vec![image];
        // Opaque over the good image's directory: the link is what the merged tree has.
        lowers.push(lab.path("image"));
        let rootfs = lab.layered(&format!("evil-{name}-top"), lowers);
        let error = refused(lab.try_create_on(&pod, &lab.spec(&pod, "true"), Some(rootfs)));
        assert!(error.to_string().contains("symbolic link"), "{error}");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    let data = lab.path("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("meminfo"), "mine\n").unwrap();
    for (source, destination) in [
        (data.clone(), "/proc/sys"),
        (data.join("meminfo"), "/proc/self/attr/exec"),
        (data.clone(), "/proc"),
    ] {
        let spec = with_mount(&lab, &pod, "", &source, destination, &["rbind"]);
        let error = refused(lab.try_create(&pod, &spec)).to_string();
        assert!(error.contains("lies inside /proc"), "{error}");
    }
    let spec = with_mount(
        &lab,
        &pod,
        "cat /proc/meminfo",
        &data.join("meminfo"),
        "/proc/meminfo",
        &["rbind"],
    );
    assert_eq!(lab.run(&pod, &spec).ok(), "mine\n");
    pod.stop();
    lab.finish();
}

#[test]
fn the_working_directory_cannot_be_a_leaked_descriptor() {
    let lab = Lab::new();
    let pod = lab.pod();
    for number in 3..20 {
        let mut spec = lab.spec(&pod, "cat /proc/self/cwd/../../etc/shadow");
        spec["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let error = refused(lab.try_create(&pod, &spec)).to_string();
        assert!(error.contains("/proc/self/fd"), "{error}");
    }
    // Through a link in the image, too.
    symlink("/proc/self/fd/9", lab.path("image/link")).unwrap();
    let mut spec = lab.spec(&pod, "pwd");
    spec["process"]["cwd"] = json!("/link");
    let error = refused(lab.try_create(&pod, &spec)).to_string();
    assert!(error.contains("/link"), "{error}");
    pod.stop();
    lab.finish();
}

#[test]
fn a_null_device_that_is_none_is_noticed() {
    let lab = Lab::new();
    let pod = lab.pod();
    let fake = lab.path("fake-dev");
    std::fs::create_dir_all(&fake).unwrap();
    std::fs::write(fake.join("null"), "").unwrap();
    let mut spec = lab.spec(&pod, "true");
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
    mounts.push(json!({"destination": "/dev", "type": "bind", "source": fake, "options": ["rbind"]}));
    let error = refused(lab.try_create(&pod, &spec)).to_string();
    assert!(error.contains("is not the null device"), "{error}");
    assert_eq!(
        std::fs::read_dir(&fake).unwrap().count(),
        1,
        "nothing was made in the volume"
    );
    pod.stop();
    lab.finish();
}

#[test]
fn cgroups_are_the_container_s_own() {
    let lab = Lab::new();
    let pod = lab.pod();
    let script = "cd /sys/fs/cgroup; if test -e cgroup.procs; then cat cgroup.procs; else cat pids/cgroup.procs; fi | head -1; \
                  mkdir x 2>/dev/null || mkdir pids/x 2>/dev/null || echo refused";
    assert_eq!(lab.sh(&pod, script).ok(), "1\nrefused\n");
    pod.stop();
    lab.finish();
}
