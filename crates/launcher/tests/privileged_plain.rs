//! A plain pod and its containers: namespaces, /dev, working directory, environment, programs that cannot be run.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{Lab, PodOptions, refused};
use holdfast_launcher::{Kind, unbind_namespace};
use holdfast_sys::pidfd;
use serde_json::json;

#[test]
fn a_container_runs_and_ends() {
    let lab = Lab::new();
    let pod = lab.pod();
    let out = lab.sh(&pod, "echo out; echo err >&2; exit 7");
    assert_eq!(
        (out.out.as_str(), out.err.as_str(), out.code),
        ("out\n", "err\n", 7)
    );
    assert_eq!(pod.stop(), Some(0), "pause ends by itself on SIGTERM");
    lab.finish();
}

#[test]
fn it_has_the_pods_namespaces_and_its_own() {
    let lab = Lab::new();
    let pod = lab.pod();
    let script = "echo pid=$$; hostname; ls /sys/class/net; ip link show lo | grep -o LOWER_UP; \
                  for n in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$n; done; \
                  cut -d: -f3 /proc/self/cgroup | sort -u; ls -d /proc/[0-9]* | wc -l";
    let out = lab.sh(&pod, script).ok();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..4], ["pid=1", "pod-host", "lo", "LOWER_UP"]);
    let of = |pid: &str, name: &str| {
        let link = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        link.to_string_lossy().into_owned()
    };
    let pause = pod.built.pid.to_string();
    for (line, name) in lines[4..7].iter().zip(["net", "ipc", "uts"]) {
        assert_eq!(*line, of(&pause, name));
        assert_ne!(*line, of("self", name));
    }
    for (line, name) in lines[7..10].iter().zip(["pid", "mnt", "cgroup"]) {
        assert_ne!(*line, of(&pause, name));
        assert_ne!(*line, of("self", name));
    }
    assert_eq!(
        lines[10], "/",
        "the cgroup namespace's root is the container's cgroup: {out}"
    );
    pod.stop();
    lab.finish();
}

#[test]
fn a_shared_pid_namespace_shows_pause_but_not_its_root() {
    let lab = Lab::new();
    let pod = lab.pod();
    let script = "cat /proc/1/comm; ls /proc/1/root 2>&1; ls -l /proc/1/exe 2>&1; echo x >/proc/1/mem; \
                  sleep 0 & wait; readlink /proc/self/ns/pid; cut -d' ' -f3 /proc/1/stat";
    let mut spec = lab.spec(&pod, script);
    spec["linux"]["namespaces"].as_array_mut().unwrap().pop();
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "pid", "path": "pod:"}));
    let out = lab.run(&pod, &spec);
    assert!(out.out.starts_with("pause\n"), "{}", out.out);
    assert_eq!(out.out.matches("ermission denied").count(), 2, "{}", out.out);
    // Orphans of the container become pause's, and it reaps them.
    spec["process"]["args"] = json!([
        "sh",
        "-c",
        "(sleep 0.1 &) ; sleep 0.4; ps -o stat,comm | grep '^Z'"
    ]);
    assert_eq!(lab.run(&pod, &spec).out, "");
    pod.stop();
    lab.finish();
}

#[test]
fn the_host_s_namespaces_where_the_pod_has_none() {
    let lab = Lab::new();
    let pod = lab.pod_with(&PodOptions {
        host: true,
        ..PodOptions::default()
    });
    let mut spec = lab.spec(
        &pod,
        "for n in net ipc uts pid; do readlink /proc/self/ns/$n; done",
    );
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "pid");
    let out = lab.run(&pod, &spec).ok();
    for (line, name) in out.lines().zip(["net", "ipc", "uts", "pid"]) {
        let link = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(line, link.to_str().unwrap());
    }
    pod.stop();
    lab.finish();
}

#[test]
fn the_pid_namespace_of_another_container_can_be_joined() {
    let lab = Lab::new();
    let pod = lab.pod();
    let first = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    first.release().unwrap();
    let mut spec = lab.spec(&pod, "cat /proc/1/cmdline | tr '\\0' ' '");
    let list = spec["linux"]["namespaces"].as_array_mut().unwrap();
    list.retain(|n| n["type"] != "pid");
    list.push(json!({"type": "pid", "path": format!("pid:{}", first.built.pid)}));
    // A process of nobody's, or one whose number has been given out again since.
    let refusal = || lab.try_create(&pod, &spec).err().unwrap();
    assert_eq!(
        refusal().to_string(),
        format!(
            "open the pid namespace of process {}: no running container of the pod has it",
            first.built.pid
        )
    );
    let gone = holdfast_sys::clone::fork(|| 0).unwrap();
    holdfast_sys::pidfd::reap(gone.pidfd.as_fd()).unwrap();
    lab.targets.replace(vec![(first.built.pid, gone.pidfd)]);
    assert!(refusal().to_string().ends_with(": no such process"));
    let held = first.built.pidfd.try_clone().unwrap();
    lab.targets.replace(vec![(first.built.pid, held)]);
    assert_eq!(lab.run(&pod, &spec).ok().trim(), "sleep 60");
    first.kill();
    assert_eq!(first.wait(&lab).code, 137);
    pod.stop();
    lab.finish();
}

#[test]
fn dev_has_what_it_must() {
    let lab = Lab::new();
    let pod = lab.pod();
    let script = "cd /dev; stat -c '%n %F %t,%T %a' null zero full random urandom tty; \
                  for l in fd stdin stdout stderr ptmx; do readlink $l; done; \
                  df /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; echo x > /dev/null; stat -c %a /dev/shm; \
                  grep -c ' /dev/mqueue mqueue' /proc/mounts; stat -c '%n %F' /dev/extra";
    let mut spec = lab.spec(&pod, script);
    spec["linux"]["devices"] =
        json!([{"path": "/dev/extra", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640}]);
    let out = lab.run(&pod, &spec).ok();
    let want = "null character special file 1,3 666\nzero character special file 1,5 666\nfull character special file 1,7 666\n\
                random character special file 1,8 666\nurandom character special file 1,9 666\ntty character special file 5,0 666\n\
                /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n1024\n1777\n1\n/dev/extra character special file\n";
    assert_eq!(out, want);
    // The pod's /dev/shm is one.
    lab.sh(&pod, "echo shared > /dev/shm/file").ok();
    assert_eq!(lab.sh(&pod, "cat /dev/shm/file").ok(), "shared\n");
    pod.stop();
    lab.finish();
}

#[test]
fn user_home_directory_and_working_directory() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut spec = lab.spec(
        &pod,
        "umask; id -u; id -g; id -G; pwd; echo $HOME; stat -c %u /proc/self/fd/1; echo again > /dev/stdout",
    );
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 2000]});
    spec["process"]["cwd"] = json!("/work/dir");
    let out = lab.run(&pod, &spec).ok();
    assert_eq!(
        out,
        "0022\n1000\n1000\n1000 2000\n/work/dir\n/home/u\n1000\nagain\n"
    );
    spec["process"]["user"] = json!({"uid": 4321, "gid": 0, "umask": 0o27});
    spec["process"]["args"] = json!(["sh", "-c", "echo $HOME; umask"]);
    assert_eq!(lab.run(&pod, &spec).ok(), "/\n0027\n");
    spec["process"]["cwd"] = json!("relative");
    let error = refused(lab.try_create(&pod, &spec));
    assert!(
        error.to_string().contains("working directory \"relative\""),
        "{error}"
    );
    spec["process"]["cwd"] = json!("/bin/busybox");
    let error = refused(lab.try_create(&pod, &spec));
    assert!(
        error.to_string().contains("working directory /bin/busybox"),
        "{error}"
    );
    spec["process"]["user"] = json!({"uid": 0x8000_0000u32, "gid": 0});
    let error = refused(lab.try_create(&pod, &spec));
    assert_eq!(
        error.to_string(),
        "the user or group id 2147483648 is out of range"
    );
    assert_eq!(error.kind(), Kind::Invalid);
    pod.stop();
    lab.finish();
}

#[test]
fn programs_that_cannot_be_run_are_named() {
    let lab = Lab::new();
    std::fs::write(lab.path("image/bin/script"), "#!/no/such/interpreter\n").unwrap();
    std::fs::write(lab.path("image/bin/data"), "no program").unwrap();
    for name in ["script", "data"] {
        use std::os::unix::fs::PermissionsExt;
        let path = lab.path("image/bin").join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let pod = lab.pod();
    let cases = [
        ("foo", "exec \"foo\": no such file in $PATH", Kind::NotFound),
        (
            "/no/foo",
            "exec \"/no/foo\": no such file or directory",
            Kind::NotFound,
        ),
        (
            "/etc/passwd",
            "exec \"/etc/passwd\": permission denied",
            Kind::Invalid,
        ),
        ("/etc", "exec \"/etc\": permission denied", Kind::Invalid),
        ("data", "exec \"/bin/data\": exec format error", Kind::Invalid),
        (
            "script",
            "exec \"/bin/script\": its interpreter was not found",
            Kind::NotFound,
        ),
    ];
    for (program, message, kind) in cases {
        let mut spec = lab.spec(&pod, "");
        spec["process"]["args"] = json!([program]);
        let running = lab.create(&pod, &spec);
        let failure = running.release().unwrap_err();
        assert_eq!((failure.message.as_str(), failure.kind), (message, kind));
        running.wait(&lab);
    }
    for (args, message) in [
        (json!([]), "no program to run: args is empty"),
        (json!(["a\0b"]), "args contain a NUL"),
    ] {
        let mut spec = lab.spec(&pod, "");
        spec["process"]["args"] = args;
        assert_eq!(refused(lab.try_create(&pod, &spec)).to_string(), message);
    }
    pod.stop();
    lab.finish();
}

#[test]
fn an_overlay_of_many_layers() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut lowers = Vec::new();
    for n in 0..150 {
        let dir = lab.path(&format!(
            "a-directory-with-a-rather-long-name-as-chain-ids-have/{n:064}"
        ));
        std::fs::create_dir_all(dir.join("layers")).unwrap();
        std::fs::write(dir.join("layers").join(n.to_string()), "").unwrap();
        std::fs::write(dir.join("top"), n.to_string()).unwrap();
        lowers.push(dir);
    }
    lowers.push(lab.path("image"));
    let spec = lab.spec(&pod, "ls /layers | wc -l; cat /top");
    let running = lab
        .try_create_on(&pod, &spec, Some(lab.layered("many", lowers)))
        .unwrap();
    running.release().unwrap();
    assert_eq!(running.wait(&lab).ok(), "150\n0");
    pod.stop();
    lab.finish();
}

#[test]
fn an_init_whose_monitor_goes_away_ends() {
    let lab = Lab::new();
    let pod = lab.pod();
    let mut running = lab.create(&pod, &lab.spec(&pod, "echo never"));
    running.built.barrier = None;
    let out = running.wait(&lab);
    assert_eq!((out.out.as_str(), out.code), ("", 127));
    pod.stop();
    lab.finish();
}

#[test]
fn the_network_namespace_can_have_a_path() {
    let lab = Lab::new();
    let path = lab.path("netns/name");
    let pod = lab.pod_with(&PodOptions {
        netns_path: Some(path.clone()),
        ..PodOptions::default()
    });
    let bound = std::fs::File::open(&path).unwrap();
    let net = pod.namespaces().net.as_ref().unwrap();
    assert!(holdfast_sys::namespace::same(&bound, net.as_fd()).unwrap());
    assert!(pod.built.netlink.is_some());
    drop(bound);
    pod.stop();
    unbind_namespace(&path).unwrap();
    unbind_namespace(&path).unwrap();
    assert!(!path.exists());
    lab.finish();
}

#[test]
fn a_build_that_hangs_can_be_given_up() {
    let lab = Lab::new();
    let pod = lab.pod();
    // Its pipe for stdout is never read, but nothing is written; the hang is that nobody polls.
    let running = lab.create(&pod, &lab.spec(&pod, "sleep 60"));
    let start = Instant::now();
    running.kill();
    assert_eq!(running.wait(&lab).code, 137);
    assert!(start.elapsed() < Duration::from_secs(50));
    pidfd::signal(pod.built.pidfd.as_fd(), 0).unwrap();
    pod.stop();
    lab.finish();
}

#[test]
fn a_waiting_init_holds_nothing_of_its_neighbours() {
    let lab = Lab::new();
    let pod = lab.pod();
    let (read, write) = common::pipe();
    let waiting = lab.create(&pod, &lab.spec(&pod, "true"));
    drop(write);
    let mut fds = [rustix::event::PollFd::new(&read, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: 2,
        tv_nsec: 0,
    };
    assert_eq!(
        rustix::event::poll(&mut fds, Some(&limit)).unwrap(),
        1,
        "the pipe's write end lives on in init"
    );
    waiting.release().unwrap();
    waiting.wait(&lab);
    drop(read);
    pod.stop();
    lab.finish();
}

#[test]
fn sysctls_of_the_pod() {
    let lab = Lab::new();
    let options = |name: &str, value: &str| PodOptions {
        sysctls: vec![(name.into(), value.into())],
        ..PodOptions::default()
    };
    let pod = lab.pod_with(&options("net.ipv4.ip_unprivileged_port_start", "77"));
    assert_eq!(
        lab.sh(&pod, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
            .ok(),
        "77\n"
    );
    pod.stop();
    let pod = lab.pod_with(&options("kernel.shm_rmid_forced", "1"));
    assert_eq!(lab.sh(&pod, "cat /proc/sys/kernel/shm_rmid_forced").ok(), "1\n");
    pod.stop();
    for name in [
        "kernel.panic",
        "vm.swappiness",
        "net.ipv4.no_such",
        "net/../kernel/panic",
    ] {
        let error = lab.try_pod(&options(name, "1")).err().unwrap();
        assert!(error.to_string().contains(name), "{error}");
    }
    lab.finish();
}
