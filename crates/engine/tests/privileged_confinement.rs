//! AppArmor's profiles and SELinux's labels, as pods ask for them; and the clear no of a kernel that has not got them.
#![allow(clippy::unwrap_used)]

mod node;

use std::path::Path;
use std::process::Command;

use holdfast_engine::{AppArmor, Kind};
use holdfast_model::{ContainerSpec, Mount, SecurityProfile, SelinuxOptions};
use node::Node;

fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn profiles() -> String {
    std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap()
}

/// The error of a create that must be refused.
#[track_caller]
fn refused(node: &Node, pod: &str, spec: ContainerSpec) -> String {
    let error = node
        .block_on(node.engine().create_container(pod, spec))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid, "{}", error.chain());
    error.chain()
}

/// What confines the container's first process (process 1 is pause) and an exec.
fn confined(node: &Node, pod: &str, spec: ContainerSpec) -> [String; 2] {
    let id = node.run(pod, spec);
    let exec = node.sh(&id, "cat /proc/self/attr/current");
    [current(node, &id), exec.trim_end_matches(['\n', '\0']).to_owned()]
}

fn current(node: &Node, container: &str) -> String {
    let pid = node.status(container).pid.unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/attr/current")).unwrap();
    text.trim_end_matches(['\n', '\0']).to_owned()
}

#[test]
fn apparmor_profiles() {
    let mut node = Node::new("apparmor");
    let mut spec = node.host_pod("one");
    spec.security.privileged = true;
    let pod = node.run_pod(spec);
    let with = |name: &str, asked: Option<SecurityProfile>| {
        let mut spec = node.script(name, "sleep 1000");
        spec.security.apparmor = asked;
        spec
    };
    let localhost = |name: &str| Some(SecurityProfile::Localhost(name.into()));
    let text = refused(&node, &pod, with("missing", localhost("no-such-profile")));
    assert!(
        text.contains("apparmor") && text.contains("no-such-profile"),
        "{text}"
    );
    if !has_apparmor() {
        let text = refused(
            &node,
            &pod,
            with("default", Some(SecurityProfile::RuntimeDefault)),
        );
        assert!(text.contains("this kernel has no AppArmor"), "{text}");
        let mut spec = node.pod("two");
        spec.security.apparmor = Some(SecurityProfile::RuntimeDefault);
        let error = node
            .block_on(node.engine().run_pod_sandbox(spec, ""))
            .unwrap_err();
        assert!(
            error.chain().contains("this kernel has no AppArmor"),
            "{}",
            error.chain()
        );
        node.run(&pod, with("unconfined", Some(SecurityProfile::Unconfined)));
        node.remove_pod(&pod);
        return node.assert_clean();
    }
    assert_eq!(node.engine().facts().apparmor, AppArmor::Ready);
    let default = ["holdfast-default (enforce)", "holdfast-default (enforce)"];
    assert_eq!(confined(&node, &pod, with("nothing", None)), default);
    assert_eq!(
        confined(
            &node,
            &pod,
            with("default", Some(SecurityProfile::RuntimeDefault))
        ),
        default
    );
    let unconfined = ["unconfined", "unconfined"];
    assert_eq!(
        confined(&node, &pod, with("unconfined", Some(SecurityProfile::Unconfined))),
        unconfined
    );
    let mut spec = with("privileged", None);
    spec.security.privileged = true;
    assert_eq!(confined(&node, &pod, spec.clone()), unconfined);
    spec.metadata.name = "privileged-by-name".into();
    spec.security.apparmor = localhost("holdfast-default");
    assert_eq!(confined(&node, &pod, spec), default);
    let mut spec = with("deprecated", None);
    spec.security.apparmor_profile = "localhost/holdfast-default".into();
    assert_eq!(confined(&node, &pod, spec), default);
    node.remove_pod(&pod);
    node.assert_clean();
}

/// The profile keeps what it says, and nothing that ordinary programs need.
#[test]
fn the_default_apparmor_profile() {
    let mut node = Node::new("apparmor-default");
    let mut spec = node.host_pod("one");
    spec.security.privileged = true;
    let pod = node.run_pod(spec);
    let mut spec = node.script("strong", "sleep 1000");
    spec.security.capabilities.add = vec!["SYS_ADMIN".into()];
    let id = node.run(&pod, spec);
    // With the capability, and nothing masked or read-only, the profile alone is in the way.
    let forbidden = [
        "mount -t tmpfs x /mnt",
        "cat /proc/kcore >/dev/null",
        "echo h >/proc/sysrq-trigger",
        "echo 1 >/proc/sys/vm/drop_caches",
        "echo x >/proc/sys/kernel/core_pattern",
    ];
    let allowed = [
        "mkdir -p /mnt && echo x >/mnt/file && ln /mnt/file /mnt/other && mv /mnt/other /mnt/third && rm /mnt/third",
        "sleep 100 & kill $!; wait $!; [ $? = 143 ]",
        "cat /proc/meminfo /proc/1/status /sys/class/net/lo/mtu >/dev/null",
        "unshare -U true",
        "unshare -u hostname other",
    ];
    let works = |script: &str| node.exec(&id, &["/bin/sh", "-c", script]).exit_code == 0;
    for script in allowed {
        assert!(works(script), "{script}");
    }
    if has_apparmor() {
        for script in forbidden {
            assert!(!works(script), "{script}");
        }
        // Whoever takes all profiles away, the next container has its own again.
        let mut parser = Command::new("/usr/sbin/apparmor_parser");
        parser
            .args(["--remove", "--quiet"])
            .stdin(std::process::Stdio::piped());
        let mut child = parser.spawn().unwrap();
        let text = b"profile holdfast-default {}\n";
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!profiles().contains("holdfast-default"));
        let again = node.run(&pod, node.script("again", "sleep 1000"));
        assert_eq!(current(&node, &again), "holdfast-default (enforce)");
    } else {
        assert!(
            works(forbidden[0]),
            "without the profile the capability is enough"
        );
    }
    // Stopping needs the runtime's signals to arrive.
    node.remove_pod(&pod);
    node.assert_clean();
}

fn level(level: &str) -> Option<SelinuxOptions> {
    Some(SelinuxOptions {
        level: level.into(),
        ..SelinuxOptions::default()
    })
}

fn label(path: &str) -> String {
    let mut buffer = [0; 256];
    let length = rustix::fs::getxattr(path, "security.selinux", &mut buffer[..]).unwrap();
    String::from_utf8_lossy(&buffer[..length])
        .trim_end_matches('\0')
        .to_owned()
}

#[test]
fn selinux_labels() {
    let mut node = Node::new("selinux");
    let volume = node.path("volume");
    std::fs::create_dir_all(volume.join("below")).unwrap();
    let mut asks = node.pod("asks");
    asks.security.selinux = level("s0:c7,c9");
    if !has_selinux() {
        let error = node
            .block_on(node.engine().run_pod_sandbox(asks, ""))
            .unwrap_err();
        assert!(
            error.chain().contains("this kernel has no SELinux"),
            "{}",
            error.chain()
        );
        let pod = node.run_pod(node.host_pod("one"));
        let mut spec = node.script("asks", "sleep 1000");
        spec.security.selinux = level("s0:c7,c9");
        let text = refused(&node, &pod, spec);
        assert!(text.contains("this kernel has no SELinux"), "{text}");
        node.remove_pod(&pod);
        return node.assert_clean();
    }
    let (one, two, asks) = (
        node.run_pod(node.pod("one")),
        node.run_pod(node.pod("two")),
        node.run_pod(asks),
    );
    let plain = |pod: &str| confined(&node, pod, node.script("plain", "sleep 1000"));
    let [first, exec] = plain(&one);
    assert!(first.starts_with("system_u:system_r:container_t:s0:c"), "{first}");
    assert_eq!(exec, first);
    assert_ne!(plain(&two)[0], first);
    assert_eq!(plain(&asks)[0], "system_u:system_r:container_t:s0:c7,c9");
    let pause = node.engine().sandbox(&one).unwrap().pause_pid.unwrap();
    let pauses = std::fs::read_to_string(format!("/proc/{pause}/attr/current")).unwrap();
    assert_eq!(pauses.trim_end_matches('\0'), first);

    let mut spec = node.script("volume", "sleep 1000");
    spec.security.selinux = Some(SelinuxOptions {
        kind: "other_container_t".into(),
        ..SelinuxOptions::default()
    });
    spec.mounts = vec![Mount {
        container_path: "/volume".into(),
        host_path: volume.to_string_lossy().into_owned(),
        selinux_relabel: true,
        ..Mount::default()
    }];
    let id = node.run(&one, spec);
    let process = node.sh(&id, "cat /proc/self/attr/current");
    let own = first.rsplit_once("container_t:").unwrap().1;
    assert_eq!(
        process.trim_end_matches('\0'),
        format!("system_u:system_r:other_container_t:{own}")
    );
    let pid = node.status(&id).pid.unwrap();
    let files = format!("system_u:object_r:container_file_t:{own}");
    for path in [
        "/",
        "/bin/sh",
        "/dev",
        "/dev/shm",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/volume",
        "/volume/below",
    ] {
        assert_eq!(label(&format!("/proc/{pid}/root{path}")), files, "{path}");
    }
    // The host sees the volume's label, and of the image's layers nothing has changed.
    assert_eq!(label(volume.join("below").to_str().unwrap()), files);

    let mut spec = node.script("unknown", "true");
    spec.security.selinux = Some(SelinuxOptions {
        kind: "nonsense_t".into(),
        ..SelinuxOptions::default()
    });
    let text = refused(&node, &one, spec);
    assert!(text.contains("nonsense_t") && text.contains("policy"), "{text}");
    for pod in [one, two, asks] {
        node.remove_pod(&pod);
    }
    node.assert_clean();
}
