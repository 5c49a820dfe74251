//! OCI hooks of containers that the built-in launcher makes.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Lab, Pod, PodOptions, Running};
use holdfast_launcher::{Handler, Kind, Made};
use holdfast_sys::pidfd;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use serde_json::{Value, json};

/// A laboratory with a private mount for bundles, and a directory in which hooks leave what they saw.
struct Case {
    lab: Lab,
    pod: Pod,
    seen: PathBuf,
    bundles: PathBuf,
}

/// What every hook leaves in the file `$SEEN/$0`, the name of its kind.
const RECORD: &str = r#"
echo $0 >>$SEEN/order
{ cat; echo; } >$SEEN/$0.state
pwd >$SEEN/$0.cwd
id -u >$SEEN/$0.id
for kind in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$kind; done >$SEEN/$0.ns
tr '\0' '\n' </proc/self/environ >$SEEN/$0.env
for fd in /proc/self/fd/*; do readlink $fd; done >$SEEN/$0.fds
exit 0
"#;

const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

impl Case {
    fn new(options: &PodOptions) -> Self {
        let lab = Lab::new();
        let pod = lab.pod_with(options);
        let (seen, bundles) = (lab.path("seen"), lab.path("bundles"));
        for dir in [&seen, &bundles] {
            std::fs::create_dir(dir).unwrap();
        }
        mount_bind(&bundles, &bundles).unwrap();
        mount_change(&bundles, MountPropagationFlags::PRIVATE).unwrap();
        *lab.bundles.borrow_mut() = Some(bundles.clone());
        Self {
            lab,
            pod,
            seen,
            bundles,
        }
    }

    fn hook(&self, name: &str, script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script, name],
            "env": [format!("SEEN={}", self.seen.display()), "PATH=/usr/bin:/bin"]})
    }

    /// A spec whose container sees what hooks leave.
    fn spec(&self, script: &str, hooks: Value) -> Value {
        let mut spec = self.lab.spec(&self.pod, script);
        spec["mounts"].as_array_mut().unwrap().push(
            json!({"destination": self.seen, "type": "bind", "source": self.seen, "options": ["rbind"]}),
        );
        spec["annotations"] = json!({"of": "the container"});
        spec["hooks"] = hooks;
        spec
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.seen.join(name)).unwrap_or_default()
    }

    fn lines(&self, name: &str) -> Vec<String> {
        self.read(name).lines().map(str::to_owned).collect()
    }

    fn state(&self, point: &str) -> Value {
        serde_json::from_str(&self.read(&format!("{point}.state"))).unwrap()
    }

    fn made<'a>(running: &'a Running) -> Made<'a> {
        Made {
            id: &running.id,
            pid: running.built.pid,
            init: Some(running.built.pidfd.as_fd()),
            mounts: running.built.namespaces.mnt.as_ref().map(AsFd::as_fd),
        }
    }

    fn start(&self, running: &Running) -> Result<(), holdfast_launcher::ExecFailure> {
        let hooked = self.lab.hooked(&running.id).unwrap();
        let barrier = hooked.start(Self::made(running), running.built.barrier.as_ref());
        barrier.unwrap().unwrap().wait()
    }

    fn delete(&self, running: &Running) {
        let hooked = self.lab.hooked(&running.id).unwrap();
        hooked.delete(Self::made(running)).unwrap();
        assert!(!hooked.bundle.exists());
    }

    /// What a monitor does of a creation that failed.
    fn delete_failed(&self, id: &str) {
        let hooked = self.lab.hooked(id).unwrap();
        let made = Made {
            id,
            pid: 0,
            init: None,
            mounts: None,
        };
        hooked.delete(made).unwrap();
        assert!(!hooked.bundle.exists());
    }

    fn finish(self) {
        assert_eq!(
            std::fs::read_dir(&self.bundles).unwrap().count(),
            0,
            "a bundle is left"
        );
        unmount(&self.bundles, UnmountFlags::empty()).unwrap();
        let _code = self.pod.stop();
        self.lab.finish();
    }
}

fn namespaces_of(pid: i32) -> Vec<String> {
    let of = |kind: &&str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        link.to_string_lossy().into_owned()
    };
    ["mnt", "pid", "net", "ipc", "uts", "cgroup"]
        .iter()
        .map(of)
        .collect()
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with(['Z', 'X']))
    })
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn each_kind_runs_when_and_where_it_should() {
    let case = Case::new(&PodOptions::default());
    let hooks: serde_json::Map<_, _> = POINTS
        .iter()
        .map(|point| ((*point).to_owned(), json!([case.hook(point, RECORD)])))
        .collect();
    let script = format!("echo main >>{}/order; echo main; sleep 1000", case.seen.display());
    let running = case
        .lab
        .create(&case.pod, &case.spec(&script, Value::Object(hooks)));
    assert_eq!(
        case.lines("order"),
        ["prestart", "createRuntime", "createContainer"]
    );
    case.start(&running).unwrap();
    let pid = running.built.pid;
    eventually("the program has not run", || case.read("order").contains("main"));
    assert!(
        case.read("order").contains("poststart\n"),
        "before the start is answered"
    );
    let (own, inits) = (namespaces_of(std::process::id() as i32), namespaces_of(pid));
    running.kill();
    pidfd::reap(running.built.pidfd.as_fd()).unwrap();
    case.delete(&running);
    let order = case.lines("order");
    assert_eq!(order[3], "startContainer");
    assert_eq!(order[6], "poststop");

    let bundle = case.bundles.join(&running.id);
    for (point, status, pid) in [
        ("prestart", "creating", json!(pid)),
        ("createRuntime", "creating", json!(pid)),
        ("createContainer", "creating", json!(1)),
        ("startContainer", "created", json!(1)),
        ("poststart", "running", json!(pid)),
        ("poststop", "stopped", Value::Null),
    ] {
        let state = case.state(point);
        assert_eq!(
            (&state["status"], &state["pid"]),
            (&json!(status), &pid),
            "{point}"
        );
        assert_eq!(
            (&state["id"], &state["bundle"]),
            (&json!(running.id), &json!(bundle)),
            "{point}"
        );
        assert_eq!(state["annotations"], json!({"of": "the container"}), "{point}");
        let env = case.lines(&format!("{point}.env"));
        let env: Vec<_> = env
            .iter()
            .filter(|one| {
                !["PWD=", "SHLVL=", "OLDPWD=", "_="]
                    .iter()
                    .any(|own| one.starts_with(own))
            })
            .collect();
        assert_eq!(
            env,
            [&format!("SEEN={}", case.seen.display()), "PATH=/usr/bin:/bin"],
            "{point}"
        );
        for fd in case.lines(&format!("{point}.fds")) {
            let known = ["/memfd:holdfast-state", "pipe:", "/proc/"]
                .iter()
                .any(|known| fd.starts_with(known))
                || fd.ends_with(".fds");
            assert!(known, "{point}: {fd}");
        }
        let namespaces = case.lines(&format!("{point}.ns"));
        match point {
            "createContainer" | "startContainer" => assert_eq!(namespaces, inits, "{point}"),
            _ => {
                assert_eq!(namespaces[1..], own[1..], "{point}");
                assert!(namespaces[0] != own[0] && namespaces[0] != inits[0], "{point}");
            }
        }
        let cwd = case.read(&format!("{point}.cwd"));
        match point {
            "startContainer" => assert_eq!(cwd, "/\n"),
            _ => assert_eq!(cwd.trim(), bundle.to_string_lossy(), "{point}"),
        }
    }
    case.lab.remove_cgroup(&running.cgroup);
    drop(running);
    case.finish();
}

/// What has its pid by then may be another's.
#[test]
fn poststart_hooks_do_not_run_for_a_program_that_has_ended() {
    let case = Case::new(&PodOptions::default());
    let hooks = json!({
        "startContainer": [case.hook("startContainer", "echo here >>$SEEN/order; sleep 1000")],
        "poststart": [case.hook("poststart", RECORD)],
        "poststop": [case.hook("poststop", RECORD)],
    });
    let running = case.lab.create(&case.pod, &case.spec("sleep 1000", hooks));
    let hooked = case.lab.hooked(&running.id).unwrap();
    let starter = hooked.start(Case::made(&running), running.built.barrier.as_ref());
    eventually("the hook has not run", || case.read("order").contains("here"));
    running.kill();
    pidfd::reap(running.built.pidfd.as_fd()).unwrap();
    let _either = starter.unwrap().unwrap().wait();
    case.delete(&running);
    assert_eq!(case.lines("order"), ["here", "poststop"]);
    case.lab.remove_cgroup(&running.cgroup);
    drop(running);
    case.finish();
}

/// As vendors' hooks do: from the bundle of the state to its configuration, from there to the root.
const EDIT: &str = r#"
bundle=$(tr ',' '\n' | grep '"bundle"' | cut -d'"' -f4)
root=$(tr ',{}' '\n\n\n' <$bundle/config.json | grep "\"path\":\"$bundle/" | cut -d'"' -f4)
[ -n "$root" ] || { echo "no root in the configuration" >&2; exit 1; }
ln -s libthing.so.1 $root/lib/libthing.so
echo more >>$root/etc/conf
mount --bind $SEEN/params $root/proc/uptime
ls $root/proc/1/comm $root/dev/null $root/sys/kernel >/dev/null || exit 2
wc -c <$root/proc/version >$SEEN/version
"#;

#[test]
fn a_container_sees_what_a_hook_has_made_of_its_root() {
    let case = Case::new(&PodOptions::default());
    std::fs::create_dir_all(case.lab.path("image/lib")).unwrap();
    std::fs::write(case.lab.path("image/etc/conf"), "one\n").unwrap();
    std::fs::write(case.seen.join("params"), "modified\n").unwrap();
    let script = "readlink /lib/libthing.so; cat /etc/conf /proc/uptime; touch /x 2>/dev/null && echo writable; \
                  head -c1 /proc/kcore | wc -c; ls -d /..; grep -c . /proc/self/mountinfo; \
                  cut -d' ' -f5 /proc/self/mountinfo | head -1; exit 0";
    let mut spec = case.spec(script, json!({"createContainer": [case.hook("edit", EDIT)]}));
    spec["root"]["readonly"] = json!(true);
    let running = case.lab.create(&case.pod, &spec);
    let bundle = case.bundles.join(&running.id);
    // The host sees nothing of it: neither the root nor what the hook mounted.
    assert_eq!(std::fs::read_dir(bundle.join("rootfs")).unwrap().count(), 0);
    let config: Value = serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        config["root"],
        json!({"path": bundle.join("rootfs"), "readonly": true})
    );
    assert_eq!(config["process"]["args"][0], "sh");
    assert!(!config.to_string().contains("pod:"), "{config}");
    case.start(&running).unwrap();
    case.delete(&running);
    let out = running.wait(&case.lab).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines[..6],
        ["libthing.so.1", "one", "more", "modified", "0", "/.."],
        "{out}"
    );
    // The same number of mounts as without hooks, and what the hook mounted: nothing of the host's is left.
    *case.lab.bundles.borrow_mut() = None;
    let mut plain = case.spec(script, json!({}));
    plain["root"]["readonly"] = json!(true);
    let out = case.lab.run(&case.pod, &plain).ok();
    let count = |lines: &[&str]| lines[lines.len() - 2].parse::<usize>().unwrap();
    assert_eq!(count(&lines), count(&out.lines().collect::<Vec<_>>()) + 1);
    assert_eq!((lines[lines.len() - 1], out.lines().last()), ("/", Some("/")));
    assert!(case.read("version").trim().parse::<usize>().unwrap() > 10);
    case.finish();
}

#[test]
fn a_hook_of_the_image_is_never_run_for_one_of_the_host() {
    let case = Case::new(&PodOptions::default());
    std::fs::create_dir_all(case.lab.path("image/opt")).unwrap();
    let evil = case.lab.path("image/opt/hook");
    std::fs::write(&evil, "#!/bin/sh\nexit 0\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&evil, std::fs::Permissions::from_mode(0o755)).unwrap();
    for point in ["prestart", "createRuntime", "createContainer"] {
        let id = format!("c{}", POINTS.iter().position(|one| *one == point).unwrap());
        let spec = case.spec("true", json!({point: [{"path": "/opt/hook"}]}));
        let refused = case.lab.try_create(&case.pod, &spec).err().unwrap();
        assert_eq!((refused.kind(), refused.errno()), (Kind::NotFound, libc::ENOENT));
        assert!(
            refused.to_string().contains(&format!("{point} hook /opt/hook")),
            "{refused}"
        );
        case.delete_failed(&id);
    }
    // In the container it is the container's, with no more rights than its program.
    let mut spec = case.spec("true", json!({"startContainer": [case.hook("start", "id -u >$SEEN/id; cat /proc/self/status >$SEEN/status; : </dev/kmsg")]}));
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    spec["process"]["capabilities"] = json!({});
    std::fs::set_permissions(&case.seen, std::fs::Permissions::from_mode(0o777)).unwrap();
    let running = case.lab.create(&case.pod, &spec);
    let failure = case.start(&running).unwrap_err();
    assert!(
        failure
            .message
            .contains("default/pod/c: startContainer hook /bin/sh: exit code"),
        "{failure}"
    );
    assert_eq!(case.read("id"), "1000\n");
    let status = case.read("status");
    assert!(
        status.contains("CapEff:\t0000000000000000") && status.contains("NoNewPrivs:\t1"),
        "{status}"
    );
    pidfd::reap(running.built.pidfd.as_fd()).unwrap();
    case.delete(&running);
    case.lab.remove_cgroup(&running.cgroup);
    drop(running);
    case.finish();
}

#[test]
fn what_fails_or_hangs_ends_the_creation_and_leaves_nothing() {
    let case = Case::new(&PodOptions::default());
    let stop = case.hook("stop", "echo $0 >>$SEEN/order");
    let hanging =
        "echo $$ >$SEEN/hook; (setsid sleep 1000 & echo $! >$SEEN/orphan) & echo busy >&2; sleep 1000";
    let mut hang = case.hook("hang", hanging);
    hang["timeout"] = json!(1);
    let mut n = 0;
    for point in ["prestart", "createRuntime", "createContainer"] {
        for (hook, words) in [
            (
                case.hook("fail", "echo because >&2; exit 3"),
                "exit code 3: because",
            ),
            (
                case.hook("flood", "yes x | head -c 30000000 >&2; echo end >&2; exit 1"),
                "x\nend",
            ),
            (
                hang.clone(),
                "killed after 1 s (its timeout) with all that it had started: busy",
            ),
        ] {
            let spec = case.spec(
                "true",
                json!({point: [hook, case.hook("never", "echo $0 >>$SEEN/order")], "poststop": [stop]}),
            );
            let failed = case.lab.try_create(&case.pod, &spec).err().unwrap();
            let text = failed.to_string();
            assert!(
                text.starts_with(&format!("default/pod/c: {point} hook /bin/sh: ")),
                "{text}"
            );
            assert!(text.contains(words), "{text}");
            assert_eq!(failed.kind(), Kind::Internal);
            case.delete_failed(&format!("c{n}"));
            n += 1;
        }
        for name in ["hook", "orphan"] {
            let pid = case.read(name);
            // In the container's PID namespace the number says nothing here: then its parent's death is what counts.
            if point != "createContainer" {
                eventually("the hook lives", || !is_alive(&pid));
            }
        }
    }
    // The lifecycle goes on at its end.
    assert_eq!(case.lines("order"), vec!["stop"; 9]);
    case.finish();
}

#[test]
fn what_hangs_is_killed_with_a_builder_that_is_given_up() {
    for shared in [false, true] {
        let case = Case::new(&PodOptions::default());
        // A length that nobody else sleeps.
        let length = format!("9{}{}", std::process::id(), u8::from(shared));
        let script = format!("(setsid sleep {length} &) ; echo x >$SEEN/running; sleep {length}");
        let mut spec = case.spec("true", json!({"createContainer": [case.hook("hang", &script)]}));
        if shared {
            let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
            list.retain(|one| one["type"] != "pid");
            list.push(json!({"type": "pid", "path": "pod:"}));
        }
        let sleeping = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
                .filter(|line| {
                    line.starts_with(b"sleep\0")
                        && line.windows(length.len()).any(|part| part == length.as_bytes())
                })
                .count()
        };
        let bytes = serde_json::to_vec(&spec).unwrap();
        let hooked = case.lab.hooked("c0").unwrap();
        let cgroup = format!("{}/c0", case.lab.cgroup);
        let building = case.lab.begin(&case.pod, &hooked, (&bytes, "c0", &cgroup));
        eventually("the hook does not run", || {
            case.read("running") == "x\n" && sleeping() == 2
        });
        let builder = building.builder().try_clone_to_owned().unwrap();
        // As the monitor gives a build up.
        let _ended = pidfd::signal(builder.as_fd(), libc::SIGKILL);
        drop(building);
        // Where it has ended at once, that is done already.
        let _reaped = pidfd::reap(builder.as_fd());
        eventually("the hook lives", || sleeping() == 0);
        drop(builder);
        case.lab.remove_cgroup(&cgroup);
        // Pause is left, and nobody else.
        eventually("a process is left", || {
            while pidfd::reap_any().unwrap().is_some() {}
            let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
            children.split_ascii_whitespace().count() == 1
        });
        case.delete_failed("c0");
        case.finish();
    }
}

#[test]
fn a_container_that_runs_is_not_ended_by_what_comes_after_its_start() {
    let case = Case::new(&PodOptions::default());
    let spec = case.spec(
        "echo out; exec sleep 60",
        json!({"poststart": [case.hook("a", "exit 1"), case.hook("b", "echo $0 >>$SEEN/order")],
            "poststop": [case.hook("c", "exit 1"), case.hook("d", "echo $0 >>$SEEN/order")]}),
    );
    let running = case.lab.create(&case.pod, &spec);
    case.start(&running).unwrap();
    let mut said = [0; 4];
    let out = running.out.as_ref().unwrap();
    std::io::Read::read_exact(&mut &*out, &mut said).unwrap();
    assert_eq!(&said, b"out\n");
    running.kill();
    case.delete(&running);
    // Once only.
    case.delete(&running);
    assert_eq!(case.lines("order"), ["b", "d"]);
    assert_eq!(running.wait(&case.lab).code, 137);
    case.finish();
}

#[test]
fn what_cannot_be_done_rightly_is_refused() {
    let case = Case::new(&PodOptions {
        user: true,
        ..PodOptions::default()
    });
    let hooks = json!({"createContainer": [case.hook("x", "true")]});
    let refused = case
        .lab
        .try_create(&case.pod, &case.spec("true", hooks.clone()))
        .err()
        .unwrap();
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.to_string().contains("user namespace"), "{refused}");
    *case.lab.bundles.borrow_mut() = None;
    let refused = case
        .lab
        .try_create(&case.pod, &case.spec("true", hooks))
        .err()
        .unwrap();
    assert_eq!(refused.kind(), Kind::Unsupported);
    assert!(refused.to_string().contains("no bundle"), "{refused}");
    case.finish();
}

#[test]
fn a_terminal_a_working_directory_and_the_hosts_namespaces() {
    let case = Case::new(&PodOptions {
        host: true,
        ..PodOptions::default()
    });
    let mut spec = case.spec(
        "tty; pwd; test -c /dev/console && echo console",
        json!({"createContainer": [case.hook("createContainer", RECORD)]}),
    );
    spec["process"]["terminal"] = json!(true);
    spec["process"]["cwd"] = json!("/made/here");
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|one| one["destination"] != "/sys/fs/cgroup");
    let running = case.lab.create(&case.pod, &spec);
    assert_eq!(case.state("createContainer")["pid"], json!(running.built.pid));
    case.start(&running).unwrap();
    let mut master = std::fs::File::from(running.built.pty_master.as_ref().unwrap().try_clone().unwrap());
    let mut text = Vec::new();
    let _ended = std::io::Read::read_to_end(&mut master, &mut text);
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    assert_eq!(text, "/dev/pts/0\n/made/here\nconsole\n");
    pidfd::reap(running.built.pidfd.as_fd()).unwrap();
    case.delete(&running);
    case.lab.remove_cgroup(&running.cgroup);
    drop((running, master));
    case.finish();
}

#[test]
fn volumes_propagate_in_both_directions_and_stay_with_their_peers() {
    let case = Case::new(&PodOptions::default());
    let volume = case.lab.path("volume");
    std::fs::create_dir_all(&volume).unwrap();
    mount_bind(&volume, &volume).unwrap();
    mount_change(&volume, MountPropagationFlags::SHARED).unwrap();
    for dir in ["below", "made"] {
        std::fs::create_dir(volume.join(dir)).unwrap();
    }
    let below = case.lab.path("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("file"), "there\n").unwrap();
    mount_bind(&below, volume.join("below")).unwrap();
    let script =
        "cat /volume/below/file; mount -t tmpfs made /volume/made && echo x >/volume/made/x; sleep 1000";
    let mut spec = case.spec(script, json!({"createContainer": [case.hook("x", "exit 0")]}));
    spec["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "rshared"]}),
    );
    let caps = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    spec["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
    let running = case.lab.create(&case.pod, &spec);
    let there = || std::fs::read_to_string(volume.join("below/file")).unwrap_or_default();
    assert_eq!(there(), "there\n", "taken off with the old root");
    case.start(&running).unwrap();
    eventually("what the container mounts does not show", || {
        volume.join("made/x").exists()
    });
    running.kill();
    case.delete(&running);
    assert!(running.wait(&case.lab).out.starts_with("there\n"));
    assert_eq!(there(), "there\n");
    for dir in ["made", "below", ""] {
        unmount(volume.join(dir), UnmountFlags::DETACH).unwrap();
    }
    case.finish();
}
