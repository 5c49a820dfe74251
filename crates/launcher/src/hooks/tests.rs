#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::run::Circumstances;
use super::*;

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn parse(&self, hooks: Value) -> Result<Hooks> {
        let spec = json!({"ociVersion": "1.0.2", "annotations": {"a.b/c": "d \"e\""}, "hooks": hooks});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        Hooks::parse(&spec, "id1", "ns/pod/main", self.dir.path().to_owned())
    }

    fn shell(&self, script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["OUT=".to_owned() + self.dir.path().to_str().unwrap()]})
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// Runs one poststart hook, as in the runtime's namespaces.
    fn run(&self, hook: Value, limit: Duration) -> Result<()> {
        let hooks = self.parse(json!({"poststart": [hook]})).unwrap();
        let with = Circumstances {
            pid: Some(7),
            ..Circumstances::default()
        };
        hooks.run(Point::Poststart, &with, Instant::now() + limit)
    }
}

const LONG: Duration = Duration::from_secs(30);

#[test]
fn hooks_are_ordered_by_the_life_of_a_container() {
    let case = Case::new();
    let of = |path: &str| json!({"path": path});
    let hooks = case
        .parse(
            json!({"poststop": [of("/6")], "createContainer": [of("/3"), of("/4")],
            "prestart": [of("/1")], "startContainer": [of("/5")], "createRuntime": [of("/2")]}),
        )
        .unwrap();
    let all: Vec<_> = hooks
        .list
        .iter()
        .map(|hook| (hook.point.name(), hook.path.to_str().unwrap()))
        .collect();
    let expected = [
        ("prestart", "/1"),
        ("createRuntime", "/2"),
        ("createContainer", "/3"),
        ("createContainer", "/4"),
        ("startContainer", "/5"),
        ("poststop", "/6"),
    ];
    assert_eq!(all, expected);
    assert!(hooks.has(Point::StartContainer) && !hooks.has(Point::Poststart));
}

#[test]
fn what_cannot_be_run_is_refused() {
    let case = Case::new();
    for (hook, why) in [
        (json!({"path": "bin/x"}), "not absolute"),
        (json!({"path": "/x", "timeout": 0}), "greater than zero"),
        (json!({"path": "/x", "timeout": -1}), "greater than zero"),
        (json!({"path": "/x", "env": ["A"]}), "NAME=value"),
        (json!({"path": "/x", "args": ["a\u{0}b"]}), "NUL"),
    ] {
        let fault = case.parse(json!({"createRuntime": [hook]})).unwrap_err();
        assert!(fault.message.contains(why), "{}", fault.message);
        assert!(
            fault.message.starts_with("ns/pod/main: createRuntime hook"),
            "{}",
            fault.message
        );
    }
    let many = vec![json!({"path": "/x"}); LIMIT + 1];
    let fault = case.parse(json!({"prestart": many})).unwrap_err();
    assert!(fault.message.contains("more than 256"), "{}", fault.message);
}

#[test]
fn a_hook_is_told_the_state() {
    let case = Case::new();
    let hooks = case.parse(json!({})).unwrap();
    let state = |point, pid| serde_json::from_str::<Value>(&hooks.state_text(point, pid)).unwrap();
    let bundle = case.dir.path().to_str().unwrap();
    assert_eq!(
        state(Point::CreateContainer, Some(1)),
        json!({"ociVersion": "1.0.2", "id": "id1", "status": "creating", "pid": 1, "bundle": bundle,
            "annotations": {"a.b/c": "d \"e\""}})
    );
    let stopped = state(Point::Poststop, None);
    assert_eq!(
        (&stopped["status"], stopped.get("pid")),
        (&json!("stopped"), None)
    );
    for (point, status) in [
        (Point::Prestart, "creating"),
        (Point::CreateRuntime, "creating"),
        (Point::StartContainer, "created"),
        (Point::Poststart, "running"),
    ] {
        assert_eq!(state(point, Some(7))["status"], status);
    }
}

#[test]
fn a_hook_gets_what_the_specification_says_and_nothing_else() {
    let case = Case::new();
    let script = "cat >state; pwd >cwd; cat /proc/self/environ | tr '\\0' '\\n' >env; \
                  for fd in /proc/$$/fd/*; do readlink $fd; done >fds; echo $1 $2 >args; umask >umask";
    let mut hook = case.shell(script);
    hook["args"] = json!(["zero", "-c", script, "name", "first", "second"]);
    case.run(hook, LONG).unwrap();
    let state: Value = serde_json::from_str(&case.read("state")).unwrap();
    assert_eq!((&state["pid"], &state["id"]), (&json!(7), &json!("id1")));
    let bundle = case.dir.path().to_str().unwrap();
    assert_eq!(case.read("cwd").trim(), bundle);
    assert_eq!(case.read("args").trim(), "first second");
    assert_eq!(case.read("umask").trim(), "0022");
    // A shell adds its own working directory for what it starts.
    let env = case.read("env");
    let ours: Vec<_> = env.lines().filter(|line| !line.starts_with("PWD=")).collect();
    assert_eq!(ours, [format!("OUT={bundle}")]);
    // The shell's own 1 is the file by then, and what was there before is kept under another number.
    let fds = case.read("fds");
    for fd in fds.lines() {
        let known =
            fd.starts_with("/memfd:holdfast-state") || fd.starts_with("pipe:") || fd.ends_with("/fds");
        assert!(known, "{fds}");
    }
}

#[test]
fn the_state_can_be_read_by_every_hook_and_changed_by_none() {
    let case = Case::new();
    let script =
        "cat >>$OUT/state; echo >>$OUT/state; (echo evil >/proc/self/fd/0) 2>/dev/null && exit 3; exit 0";
    let hook = case.shell(script);
    let hooks = case.parse(json!({"poststart": [hook.clone(), hook]})).unwrap();
    hooks
        .run(Point::Poststart, &Circumstances::default(), Instant::now() + LONG)
        .unwrap();
    let read = case.read("state");
    let lines: Vec<_> = read.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 2, "{read}");
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn a_failure_names_the_hook_and_repeats_its_words() {
    let case = Case::new();
    let fault = case
        .run(case.shell("echo out; echo why >&2; exit 3"), LONG)
        .unwrap_err();
    assert_eq!(
        fault.message,
        "ns/pod/main: poststart hook /bin/sh: exit code 3: out\nwhy"
    );
    let fault = case.run(case.shell("kill -9 $$"), LONG).unwrap_err();
    assert!(fault.message.ends_with("killed by signal 9"), "{}", fault.message);
    let fault = case.run(json!({"path": "/nowhere/hook"}), LONG).unwrap_err();
    assert_eq!((fault.kind, fault.errno), (crate::Kind::NotFound, libc::ENOENT));
    assert!(
        fault
            .message
            .contains("could not be run: execute it: no such file"),
        "{}",
        fault.message
    );
}

#[test]
fn one_that_floods_is_not_remembered_and_does_not_block() {
    let case = Case::new();
    let script = "head -c 100000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1";
    let fault = case.run(case.shell(script), LONG).unwrap_err();
    assert!(fault.message.ends_with("the end"), "{}", fault.message.len());
    assert!(fault.message.len() < 4096);
    // Whoever goes on writing after it has ended is not waited for.
    let start = Instant::now();
    case.run(case.shell("yes >&2 & exit 0"), LONG).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    let state = stat
        .ok()
        .and_then(|stat| stat.split(' ').nth(2).map(str::to_owned));
    state.is_some_and(|state| state != "Z")
}

#[test]
fn one_that_hangs_is_killed_with_all_that_it_started() {
    let case = Case::new();
    // A grandchild of its own session, whose parent has gone: it is found all the same.
    let script = "setsid sh -c 'echo $$ >$OUT/one; sleep 1000 & wait' & \
                  (setsid sh -c 'echo $$ >$OUT/two; exec sleep 1000' &) ; echo waiting >&2; sleep 1000";
    let mut hook = case.shell(script);
    hook["env"] = json!([hook["env"][0], "PATH=/usr/bin:/bin"]);
    hook["timeout"] = json!(1);
    let start = Instant::now();
    let fault = case.run(hook.clone(), LONG).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(
        fault
            .message
            .contains("killed after 1 s (its timeout) with all that it had started: waiting"),
        "{}",
        fault.message
    );
    for name in ["one", "two"] {
        let pid = case.read(name);
        // It has got its signal, and is dead when it has run once more.
        while is_alive(&pid) {
            assert!(start.elapsed() < Duration::from_secs(20), "{name} {pid} lives");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    hook.as_object_mut().unwrap().remove("timeout");
    let fault = case.run(hook, Duration::from_millis(800)).unwrap_err();
    assert!(fault.message.contains("may take together"), "{}", fault.message);
}

#[test]
fn one_that_nobody_wants_any_more_is_killed() {
    let case = Case::new();
    let hooks = case
        .parse(json!({"poststart": [case.shell("sleep 1000")]}))
        .unwrap();
    let (ours, theirs) = holdfast_sys::scm::pair().unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(ours);
    });
    let with = Circumstances {
        wanted: Some(theirs.as_fd()),
        ..Circumstances::default()
    };
    let start = Instant::now();
    let fault = hooks
        .run(Point::Poststart, &with, Instant::now() + LONG)
        .unwrap_err();
    closer.join().unwrap();
    assert!(fault.message.contains("given up"), "{}", fault.message);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_first_failure_ends_a_creation_and_not_the_rest() {
    let case = Case::new();
    let (good, bad) = (case.shell("echo x >>$OUT/ran"), case.shell("exit 1"));
    let list = json!([good.clone(), bad, good]);
    let hooks = case
        .parse(json!({"createRuntime": list, "poststop": list}))
        .unwrap();
    let with = Circumstances::default();
    hooks
        .run(Point::CreateRuntime, &with, Instant::now() + LONG)
        .unwrap_err();
    assert_eq!(case.read("ran"), "x\n");
    let faults = hooks.run_all(Point::Poststop, &with, Instant::now() + LONG);
    assert_eq!((faults.len(), case.read("ran").as_str()), (1, "x\nx\nx\n"));
}
