#![allow(clippy::unwrap_used)]

use holdfast_model::{
    Capabilities, ContainerMetadata, EnvVar, GroupsPolicy, HugepageLimit, IdMapping, Mount, Namespaces,
    Propagation, Resources, SandboxId, SandboxSpec, SandboxState, SecurityProfile, SelinuxLabels,
    SelinuxOptions, UserNamespace,
};
use oci_spec::runtime::Capability;
use serde_json::Value;

mod volumes;

use super::*;
use crate::lsm::{AppArmor, Selinux};

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\n\nweb:x:1000:1000::/home/web:/bin/sh\n\
    1234:x:77:78::/:/bin/sh\nbroken line\nbig:x:4294967296:1::/:\n";
const GROUP: &[u8] = b"root:x:0:\nweb:x:1000:\nextra:x:50:root,web\nother:x:51:webby\ndata:x:52:web\n";

/// Everything that [`Inputs`] borrows.
struct Case {
    sandbox: SandboxRecord,
    container: ContainerSpec,
    image: ImageDefaults,
    passwd: Option<&'static [u8]>,
    host: HostFacts,
    devices: Vec<GrantedDevice>,
    host_devices: Vec<HostDevice>,
    seccomp: Seccomp,
    target_pid: Option<i32>,
    rlimits: Vec<crate::Rlimit>,
    image_sources: Vec<Option<holdfast_images::Volume>>,
    image_volumes: Vec<holdfast_images::DeclaredVolume>,
}

fn case() -> Case {
    let names = [
        "CHOWN",
        "DAC_OVERRIDE",
        "KILL",
        "NET_RAW",
        "SYS_ADMIN",
        "SYS_TIME",
    ];
    Case {
        sandbox: SandboxRecord {
            id: SandboxId::from_bytes([0xaa; 32]),
            spec: SandboxSpec::default(),
            state: SandboxState::Ready,
            created_at: 0,
            handler: String::new(),
            runtime: None,
            cgroup: "/holdfast".into(),
            cgroup_driver: holdfast_model::CgroupDriver::Cgroupfs,
            cgroup_made: false,
            undo: None,
            hostname: "web-0".into(),
            pause_pid: Some(7),
            monitor_pid: Some(6),
            boot_id: String::new(),
            netns_path: String::new(),
            network_owed: true,
            network: None,
            ips: Vec::new(),
            selinux: SelinuxLabels::default(),
        },
        container: ContainerSpec {
            metadata: ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            },
            ..ContainerSpec::default()
        },
        image: ImageDefaults {
            cmd: vec!["/bin/server".into()],
            ..ImageDefaults::default()
        },
        passwd: Some(PASSWD),
        host: HostFacts {
            cgroup_v2: true,
            capabilities: names.iter().map(|name| format!("CAP_{name}")).collect(),
            ..HostFacts::default()
        },
        devices: Vec::new(),
        host_devices: Vec::new(),
        seccomp: Seccomp::Unconfined,
        target_pid: None,
        rlimits: Vec::new(),
        image_sources: Vec::new(),
        image_volumes: Vec::new(),
    }
}

impl Case {
    fn build(&self) -> Result<Built, Invalid> {
        let files = PodFiles {
            resolv_conf: "/run/holdfast/pods/x/resolv.conf".into(),
            hostname: "/run/holdfast/pods/x/hostname".into(),
            hosts: Some("/run/holdfast/pods/x/hosts".into()),
        };
        build(&Inputs {
            sandbox: &self.sandbox,
            id: &ContainerId::from_bytes([0xbb; 32]),
            container: &self.container,
            image: &self.image,
            passwd: self.passwd,
            group: Some(GROUP),
            host: &self.host,
            files: &files,
            devices: &self.devices,
            host_devices: &self.host_devices,
            seccomp: self.seccomp.clone(),
            cgroup: "/holdfast/bb",
            target_pid: self.target_pid,
            image_sources: &self.image_sources,
            image_volumes: &self.image_volumes,
            rlimits: &self.rlimits,
        })
    }

    fn json(&self) -> Value {
        let mut json = serde_json::to_value(self.build().unwrap().spec).unwrap();
        // Sets have no order of their own.
        for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
            if let Some(Value::Array(names)) = json.pointer_mut(&format!("/process/capabilities/{set}")) {
                names.sort_by_key(ToString::to_string);
            }
        }
        json
    }

    fn error(&self) -> String {
        self.build().unwrap_err().to_string()
    }

    /// Compares with `golden/<name>.json`; `UPDATE_GOLDEN=1` writes it.
    fn golden(&self, name: &str) {
        let path = format!("{}/src/spec/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let got = format!("{}\n", serde_json::to_string_pretty(&self.json()).unwrap());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &got).unwrap();
        }
        let wanted = std::fs::read_to_string(&path).unwrap();
        assert_eq!(got, wanted, "{name} differs; UPDATE_GOLDEN=1 accepts it");
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect()
}

#[test]
fn a_plain_container() {
    case().golden("plain");
}

#[test]
fn a_container_with_everything() {
    let mut case = case();
    case.image.env = vec!["A=image".into(), "B=image".into(), "PATH=/image".into()];
    case.image.user = "web".into();
    case.image.working_dir = "srv".into();
    case.container.tty = true;
    case.container.envs = vec![EnvVar::new("B", "pod\nwith lines"), EnvVar::new("C", "")];
    case.container.mounts = vec![
        Mount {
            container_path: "/data/inner/".into(),
            host_path: "/srv/inner".into(),
            readonly: true,
            recursive_read_only: true,
            ..Mount::default()
        },
        Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            propagation: Propagation::Bidirectional,
            ..Mount::default()
        },
        Mount {
            container_path: "/etc/hosts".into(),
            host_path: "/var/lib/kubelet/hosts".into(),
            options: vec!["noexec".into()],
            ..Mount::default()
        },
    ];
    case.container.resources = Resources {
        cpu_period: Some(100_000),
        cpu_quota: Some(50_000),
        cpu_shares: Some(512),
        memory_limit: Some(64 << 20),
        memory_swap_limit: Some(64 << 20),
        oom_score_adj: 900,
        cpuset_cpus: Some("0-1".into()),
        hugepages: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 4 << 20,
        }],
        unified: [("memory.high".to_owned(), "1000000".to_owned())].into(),
        ..Resources::default()
    };
    case.container.security.masked_paths = vec!["/proc/kcore".into()];
    case.container.security.readonly_paths = vec!["/proc/sys".into()];
    case.container.security.readonly_rootfs = true;
    case.container.security.no_new_privs = true;
    case.container.security.supplemental_groups = vec![99, 50];
    case.container.security.capabilities = Capabilities {
        add: vec!["SYS_TIME".into()],
        drop: vec!["cap_chown".into()],
        add_ambient: vec![],
    };
    case.devices = vec![GrantedDevice {
        container_path: "/dev/thing".into(),
        permissions: "rw".into(),
        device: HostDevice {
            path: "/dev/host-thing".into(),
            block: false,
            major: 10,
            minor: 200,
            mode: 0o660,
            uid: 0,
            gid: 5,
        },
    }];
    case.rlimits = vec![crate::Rlimit {
        kind: "RLIMIT_NOFILE".into(),
        soft: 1024,
        hard: 4096,
    }];
    case.golden("everything");
}

#[test]
fn a_privileged_container() {
    let mut case = case();
    case.sandbox.spec.security.privileged = true;
    case.container.security.privileged = true;
    case.container.security.masked_paths = vec!["/proc/kcore".into()];
    case.seccomp = Seccomp::RuntimeDefault(|_| LinuxSeccomp::default());
    case.host_devices = vec![HostDevice {
        path: "/dev/sda".into(),
        block: true,
        major: 8,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
    }];
    case.golden("privileged");
}

#[test]
fn commands_merge_as_kubernetes_defines_it() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (entrypoint, cmd, command, args, wanted) in [
        ("e1 e2", "c1", "", "", "e1 e2 c1"),
        ("e1 e2", "c1", "", "a1", "e1 e2 a1"),
        ("e1 e2", "c1", "k1", "", "k1"),
        ("e1 e2", "c1", "k1", "a1", "k1 a1"),
        ("", "c1 c2", "", "", "c1 c2"),
        ("", "c1", "", "a1 a2", "a1 a2"),
    ] {
        let mut case = case();
        (case.image.entrypoint, case.image.cmd) = (words(entrypoint), words(cmd));
        (case.container.command, case.container.args) = (words(command), words(args));
        assert_eq!(
            texts(&case.json()["process"]["args"]),
            wanted.split(' ').collect::<Vec<_>>()
        );
    }
    let mut case = case();
    case.image.cmd.clear();
    assert_eq!(
        case.error(),
        "command: is missing: neither the container nor its image names a program"
    );
}

#[test]
fn users_by_name_and_number() {
    // image user, run_as_user, run_as_group, run_as_username, policy → uid, gid, groups, home
    type Row = (
        &'static str,
        Option<i64>,
        Option<i64>,
        &'static str,
        GroupsPolicy,
        (u32, u32, &'static [u32], &'static str),
    );
    let rows: &[Row] = &[
        ("", None, None, "", GroupsPolicy::Merge, (0, 0, &[0, 50], "/root")),
        (
            "web",
            None,
            None,
            "",
            GroupsPolicy::Merge,
            (1000, 1000, &[1000, 50, 52], "/home/web"),
        ),
        (
            "web:extra",
            None,
            None,
            "",
            GroupsPolicy::Merge,
            (1000, 50, &[50, 52], "/home/web"),
        ),
        (
            "1000",
            None,
            None,
            "",
            GroupsPolicy::Merge,
            (1000, 1000, &[1000, 50, 52], "/home/web"),
        ),
        (
            "2000:2001",
            None,
            None,
            "",
            GroupsPolicy::Merge,
            (2000, 2001, &[2001], "/"),
        ),
        ("1234", None, None, "", GroupsPolicy::Merge, (77, 78, &[78], "/")),
        (
            "web",
            None,
            None,
            "",
            GroupsPolicy::Strict,
            (1000, 1000, &[1000], "/home/web"),
        ),
        (
            "nobody",
            Some(1000),
            None,
            "",
            GroupsPolicy::Merge,
            (1000, 1000, &[1000, 50, 52], "/home/web"),
        ),
        (
            "web",
            Some(5),
            Some(6),
            "",
            GroupsPolicy::Merge,
            (5, 6, &[6], "/"),
        ),
        (
            "",
            None,
            None,
            "web",
            GroupsPolicy::Merge,
            (1000, 1000, &[1000, 50, 52], "/home/web"),
        ),
    ];
    for (user, run_as_user, run_as_group, username, policy, wanted) in rows {
        let mut case = case();
        case.image.user = (*user).into();
        case.container.security.run_as_user = *run_as_user;
        case.container.security.run_as_group = *run_as_group;
        case.container.security.run_as_username = (*username).into();
        case.container.security.groups_policy = *policy;
        let built = case.build().unwrap();
        let got = (built.user.uid, built.user.gid, built.user.groups.as_slice());
        assert_eq!(
            got,
            (wanted.0, wanted.1, wanted.2),
            "{user:?} {run_as_user:?} {username:?}"
        );
        let env = built.spec.process().as_ref().unwrap().env().clone().unwrap();
        assert!(env.contains(&format!("HOME={}", wanted.3)), "{user:?}: {env:?}");
    }
    for (user, wanted) in [
        (
            "nobody",
            "the image's user: the image's /etc/passwd has no user \"nobody\"",
        ),
        (
            "2147483648",
            "the image's user: 2147483648 is not an id from 0 to 2147483647",
        ),
        (
            "web:none",
            "the image's user: the image's /etc/group has no group \"none\"",
        ),
    ] {
        let mut case = case();
        case.image.user = user.into();
        assert_eq!(case.error(), wanted);
    }
    for (passwd, user, wanted) in [
        (
            &b"giant:x:3000000000:1::/:\n"[..],
            "giant",
            "the image's /etc/passwd or /etc/group: give the user id 3000000000 to \"giant\"; possible are ids from 0 to 2147483647",
        ),
        (
            b"odd:x:5:2147483648::/:\n",
            "odd",
            "the image's /etc/passwd or /etc/group: give a group id 2147483648 to \"odd\"; possible are ids from 0 to 2147483647",
        ),
        (
            b"odd:x:5:5::/home\x0b:\n",
            "5",
            "the image's /etc/passwd: the home directory of \"odd\", which becomes HOME, holds a control character: \"/home\\u{b}\"",
        ),
    ] {
        let mut case = case();
        case.passwd = Some(passwd);
        case.image.user = user.into();
        assert_eq!(case.error(), wanted);
    }
    let mut bare = case();
    bare.passwd = None;
    assert_eq!(bare.build().unwrap().user.uid, 0);
}

#[test]
fn capabilities_add_and_drop() {
    let set = |add: &[&str], drop: &[&str], ambient: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut case = case();
        case.container.security.capabilities = Capabilities {
            add: list(add),
            drop: list(drop),
            add_ambient: list(ambient),
        };
        let built = case.build()?;
        let process = built.spec.process().clone().unwrap();
        let capabilities = process.capabilities().clone().unwrap();
        let mut names: Vec<Capability> = capabilities.bounding().clone().unwrap().into_iter().collect();
        names.sort_by_key(ToString::to_string);
        Ok::<_, Invalid>((
            names,
            capabilities.ambient().clone().unwrap(),
            capabilities.inheritable().clone().unwrap(),
        ))
    };
    use Capability::{Chown, DacOverride, Kill, NetRaw, SysAdmin, SysTime};
    assert_eq!(set(&[], &[], &[]).unwrap().0, [Chown, DacOverride, Kill, NetRaw]);
    assert_eq!(set(&["KILL"], &["ALL"], &[]).unwrap().0, [Kill]);
    assert_eq!(
        set(&["all"], &["SYS_ADMIN"], &[]).unwrap().0,
        [Chown, DacOverride, Kill, NetRaw, SysTime]
    );
    assert_eq!(
        set(&["CAP_SYS_ADMIN"], &[], &[]).unwrap().0,
        [Chown, DacOverride, Kill, NetRaw, SysAdmin]
    );
    let (_, ambient, inheritable) = set(&[], &[], &["KILL"]).unwrap();
    assert_eq!((ambient.len(), inheritable.len()), (1, 1));
    assert!(set(&[], &[], &[]).unwrap().2.is_empty());
    assert_eq!(
        set(&["FLY"], &[], &[]).unwrap_err().to_string(),
        "linux.security_context.capabilities.add_capabilities[0]: this kernel knows no capability \"FLY\""
    );
}

#[test]
fn namespaces_by_mode() {
    let list = |case: &Case| -> Vec<String> {
        let json = case.json();
        let name = |ns: &Value| match ns["path"].as_str() {
            Some(path) => format!("{}={path}", ns["type"].as_str().unwrap()),
            None => ns["type"].as_str().unwrap().to_owned(),
        };
        json["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(name)
            .collect()
    };
    let mut case = case();
    assert_eq!(
        list(&case),
        [
            "mount",
            "pid=pod:",
            "ipc=pod:",
            "network=pod:",
            "uts=pod:",
            "cgroup"
        ]
    );
    case.sandbox.spec.security.namespaces.pid = NamespaceMode::Container;
    assert_eq!(
        list(&case),
        ["mount", "pid", "ipc=pod:", "network=pod:", "uts=pod:", "cgroup"]
    );
    case.host.cgroup_v2 = false;
    case.sandbox.spec.security.namespaces = Namespaces {
        network: NamespaceMode::Node,
        pid: NamespaceMode::Node,
        ipc: NamespaceMode::Node,
        user: None,
    };
    assert_eq!(list(&case), ["mount"]);
    // The container's defaults follow the pod.
    case.container.security.namespaces = Some(Namespaces::default());
    assert_eq!(list(&case), ["mount"]);
    let target = ContainerId::from_bytes([1; 32]);
    case.container.security.namespaces = Some(Namespaces {
        pid: NamespaceMode::Target(target),
        ..Namespaces::default()
    });
    assert!(case.error().contains("target_id: container 0101"));
    case.target_pid = Some(99);
    assert_eq!(list(&case), ["mount", "pid=pid:99"]);
}

#[test]
fn a_user_namespace_brings_its_maps() {
    let mut case = case();
    let map = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    };
    case.sandbox.spec.security.namespaces.user = Some(UserNamespace {
        mode: NamespaceMode::Pod,
        uids: vec![map],
        gids: vec![map],
    });
    let json = case.json();
    assert_eq!(json["linux"]["uidMappings"][0]["hostID"], 100_000);
    let has_user = |json: &Value| {
        json["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .any(|ns| ns["type"] == "user" && ns["path"] == "pod:")
    };
    assert!(has_user(&json));
    case.sandbox.spec.security.namespaces.network = NamespaceMode::Node;
    let json = case.json();
    let sys = json["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|mount| mount["destination"] == "/sys")
        .unwrap();
    assert_eq!(sys["type"], "bind");
}

#[test]
fn what_the_kernel_lacks_is_refused() {
    let mut case = case();
    case.container.security.apparmor = Some(SecurityProfile::Localhost("mine".into()));
    assert!(case.error().contains("this kernel has no AppArmor"));
    case.host.apparmor = AppArmor::NoDefault("no parser".into());
    assert_eq!(case.json()["process"]["apparmorProfile"], "mine");
    case.container.security.apparmor = Some(SecurityProfile::RuntimeDefault);
    assert!(
        case.error()
            .contains("the default profile cannot be enforced: no parser")
    );
    case.container.security.apparmor = None;
    assert!(case.json()["process"]["apparmorProfile"].is_null());
    case.container.security.selinux = Some(SelinuxOptions {
        level: "s0:c1".into(),
        ..SelinuxOptions::default()
    });
    assert!(case.error().contains("this kernel has no SELinux"));
}

#[test]
fn apparmor_profiles() {
    let profile = |privileged, asked: Option<SecurityProfile>| {
        let mut case = case();
        case.host.apparmor = AppArmor::Ready;
        case.sandbox.spec.security.privileged = privileged;
        case.container.security.privileged = privileged;
        case.container.security.apparmor = asked;
        case.json()["process"]["apparmorProfile"]
            .as_str()
            .map(str::to_owned)
    };
    let mine = || Some(SecurityProfile::Localhost("localhost/mine".into()));
    let default = Some("holdfast-default".to_owned());
    assert_eq!(profile(false, None), default);
    assert_eq!(profile(false, Some(SecurityProfile::RuntimeDefault)), default);
    assert_eq!(profile(false, Some(SecurityProfile::Unconfined)), None);
    assert_eq!(profile(false, mine()).as_deref(), Some("mine"));
    assert_eq!(profile(true, None), None);
    assert_eq!(profile(true, Some(SecurityProfile::RuntimeDefault)), None);
    assert_eq!(profile(true, mine()).as_deref(), Some("mine"));
    let mut case = case();
    case.host.apparmor = AppArmor::Ready;
    case.container.security.apparmor_profile = "localhost/theirs".into();
    assert_eq!(case.json()["process"]["apparmorProfile"], "theirs");
    case.container.security.apparmor_profile = "runtime/default".into();
    assert_eq!(case.json()["process"]["apparmorProfile"], "holdfast-default");
}

#[test]
fn selinux_labels() {
    let mut case = case();
    case.host.selinux = Selinux::On { defaults: None };
    case.sandbox.selinux = SelinuxLabels {
        process: "u:r:container_t:s0:c1,c2".into(),
        mount: "u:o:container_file_t:s0:c1,c2".into(),
    };
    assert_eq!(case.json()["process"]["selinuxLabel"], "u:r:container_t:s0:c1,c2");
    case.container.security.selinux = Some(SelinuxOptions {
        kind: "other_t".into(),
        ..SelinuxOptions::default()
    });
    let json = case.json();
    assert_eq!(json["process"]["selinuxLabel"], "u:r:other_t:s0:c1,c2");
    assert_eq!(json["linux"]["mountLabel"], "u:o:container_file_t:s0:c1,c2");
    case.sandbox.spec.security.privileged = true;
    case.container.security.privileged = true;
    let json = case.json();
    assert!(json["process"]["selinuxLabel"].is_null());
    assert_eq!(json["linux"]["mountLabel"], "u:o:container_file_t:s0:c1,c2");
}

#[test]
fn environments_that_are_refused() {
    let mut case = case();
    case.image.env = vec!["HOME=/a\nb".into()];
    assert_eq!(case.error(), "the image's environment: HOME contains a newline");
    case.image.env.clear();
    case.container.envs = vec![EnvVar::new("A", vec![0xff])];
    assert_eq!(
        case.error(),
        "envs[0].value: (A) is not UTF-8, which an OCI runtime spec cannot carry"
    );
}

#[test]
fn stop_signals() {
    let mut case = case();
    assert_eq!(case.build().unwrap().stop_signal, Signal::TERM);
    case.image.stop_signal = "SIGQUIT".into();
    assert_eq!(case.build().unwrap().stop_signal.number(), 3);
    case.container.stop_signal = Some(Signal::KILL);
    assert_eq!(case.build().unwrap().stop_signal, Signal::KILL);
    case.container.stop_signal = None;
    case.image.stop_signal = "SIGNONE".into();
    assert!(
        case.error()
            .starts_with("the image's stop signal: \"SIGNONE\" is no signal")
    );
}

#[test]
fn the_default_seccomp_profile_knows_the_capabilities() {
    let mut case = case();
    case.seccomp = Seccomp::RuntimeDefault(|names| {
        assert!(names.contains(&"CAP_KILL") && !names.contains(&"CAP_SYS_ADMIN"));
        LinuxSeccomp::default()
    });
    assert!(
        case.build()
            .unwrap()
            .spec
            .linux()
            .as_ref()
            .unwrap()
            .seccomp()
            .is_some()
    );
}

#[test]
fn an_exec_is_the_container_with_other_arguments() {
    let spec = case().build().unwrap().spec;
    let process = exec_process(&spec, &["ls".into(), "-l".into()], false, None).unwrap();
    assert_eq!(process.args().clone().unwrap(), ["ls", "-l"]);
    assert_eq!(process.cwd(), spec.process().as_ref().unwrap().cwd());
    assert_eq!(exec_process(&spec, &[], false, None).unwrap_err().field, "cmd");
    assert_eq!(
        exec_process(&spec, &["a\0".into()], false, None)
            .unwrap_err()
            .field,
        "cmd[0]"
    );
}

#[test]
fn images_and_declared_volumes_become_overlays() {
    let mut case = case();
    case.container.mounts = vec![Mount {
        container_path: "/data".into(),
        image: Some(holdfast_model::MountImage::default()),
        readonly: true,
        options: vec!["noexec".into()],
        ..Mount::default()
    }];
    case.image_sources = vec![Some(holdfast_images::Volume::Directory {
        lowers: vec!["/l/2".into(), "/odd:name".into()],
    })];
    case.image_volumes = vec![holdfast_images::DeclaredVolume {
        path: "/var/db".into(),
        lowers: vec!["/l/1/var/db".into()],
        upper: "/s/upper".into(),
        work: "/s/work".into(),
        options: vec!["volatile".into()],
    }];
    let json = case.json();
    let find = |place: &str| {
        let mounts = json["mounts"].as_array().unwrap();
        mounts
            .iter()
            .find(|mount| mount["destination"] == place)
            .unwrap()
            .clone()
    };
    assert_eq!(find("/data")["type"], "overlay");
    assert_eq!(
        find("/data")["options"],
        serde_json::json!(["rprivate", "ro", "noexec", "lowerdir=/l/2:/odd\\:name"])
    );
    assert_eq!(
        find("/var/db")["options"],
        serde_json::json!([
            "rprivate",
            "rw",
            "lowerdir=/l/1/var/db",
            "upperdir=/s/upper",
            "workdir=/s/work",
            "volatile"
        ])
    );
    // Not pulled.
    case.image_sources = vec![None];
    assert_eq!(case.build().unwrap_err().field, "mounts[0].image");
    let volumes = ["/var/db/", "/", "/proc/x", "data", "/var/db"].map(str::to_owned);
    let volumes = super::declared_volumes(&volumes);
    assert_eq!(volumes, ["/data", "/var/db"]);
    // The client's own mount replaces what the image declares at that path.
    assert_eq!(super::remaining_volumes(&volumes, &case.container), ["/var/db"]);
}

#[test]
fn annotations_are_the_containers() {
    let mut case = case();
    let given = [("example.com/a".to_owned(), "b".to_owned())];
    case.container.annotations = given.into();
    assert_eq!(
        case.json()["annotations"],
        serde_json::json!({"example.com/a": "b"})
    );
}
