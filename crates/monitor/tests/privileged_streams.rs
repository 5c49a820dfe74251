//! Exec, attach and port-forward: streams between the daemon and a container's processes.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use holdfast_monitor_api::message::{Attach, ContainerEntry, ExecStream, FailureKind, Phase};
use holdfast_monitor_api::{AdoptPlan, AdoptedContainer, Error, RunningExec, Stdio};
use rustix::pipe::{PipeFlags, pipe_with};
use support::{Pod, Started, lines, monitor_program, privileged, until, with_spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};

const MB: usize = 1 << 20;

/// Our ends of an exec's streams.
struct Ends {
    stdin: Sender,
    stdout: Receiver,
    stderr: Receiver,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn reader(fd: OwnedFd) -> Receiver {
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    Receiver::from_owned_fd_unchecked(fd).unwrap()
}

fn writer(fd: OwnedFd) -> Sender {
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    Sender::from_owned_fd_unchecked(fd).unwrap()
}

fn request(container: &str, script: &str) -> ExecStream {
    let sync = support::exec_request(container, script, Duration::ZERO);
    ExecStream {
        container_id: sync.container_id,
        exec_id: sync.exec_id,
        process: sync.process,
        clamp_privileges: true,
        ..ExecStream::default()
    }
}

async fn exec(pod: &Pod, container: &str, script: &str) -> (Ends, RunningExec) {
    let ((stdin, ours_in), (ours_out, stdout), (ours_err, stderr)) = (pipe(), pipe(), pipe());
    let request = ExecStream {
        stdin: true,
        stdout: true,
        stderr: true,
        ..request(container, script)
    };
    let running = pod.client().exec_stream(request, vec![stdin, stdout, stderr]);
    let running = running.await.unwrap();
    let ends = Ends {
        stdin: writer(ours_in),
        stdout: reader(ours_out),
        stderr: reader(ours_err),
    };
    (ends, running)
}

async fn exec_tty(pod: &Pod, container: &str, script: &str) -> (OwnedFd, RunningExec) {
    let request = ExecStream {
        tty: true,
        stdin: true,
        stdout: true,
        ..request(container, script)
    };
    let mut running = pod.client().exec_stream(request, Vec::new()).await.unwrap();
    (running.terminal.take().unwrap(), running)
}

/// Until its end, which with a terminal is EIO.
async fn read_all(mut from: Receiver) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return all,
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
                return all;
            }
        }
    }
}

/// Until `wanted` has come.
async fn read_until(from: &mut Receiver, wanted: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while !all.contains(wanted) {
            let read = from.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the end came after {all:?}");
            all.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    };
    let came = tokio::time::timeout(Duration::from_secs(30), reading).await;
    assert!(came.is_ok(), "no {wanted:?} in {all:?}");
    all
}

/// Attaches to both streams.
async fn attach(pod: &Pod, container: &Started, release_stdin: bool) -> (Receiver, Receiver) {
    let (stdout, out) = pipe();
    let (stderr, err) = pipe();
    let request = Attach {
        container_id: container.id.clone(),
        stdout: true,
        stderr: true,
        release_stdin,
    };
    pod.client().attach(request, vec![out, err]).await.unwrap();
    (reader(stdout), reader(stderr))
}

fn resize(master: &OwnedFd, rows: u16, columns: u16) {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master, size).unwrap();
}

fn descriptors(pod: &Pod) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", pod.monitor.pid))
        .unwrap()
        .count()
}

fn leaves(pod: &Pod, container: &Started) -> Vec<String> {
    let hierarchy = holdfast_cgroups::Hierarchy::detect().unwrap();
    let path = container.create.cgroup.as_ref().unwrap().path.clone();
    let _ = pod;
    hierarchy.children(&path).unwrap()
}

#[test]
fn an_exec_echoes_what_it_is_given_and_tells_its_exit_code() {
    privileged(|| async {
        let pod = Pod::start().await;
        let main = pod.run("main", "sleep 1000").await;
        let before = descriptors(&pod);
        let (ends, running) = exec(&pod, &main.id, "cat; echo end >&2; exit 7").await;
        let input: Vec<u8> = (0..20 * MB).map(|n| (n % 251) as u8).collect();
        let mut stdin = ends.stdin;
        let (sent, stdout, stderr) = tokio::join!(
            async {
                stdin.write_all(&input).await.unwrap();
                // Half-close: the other direction goes on.
                drop(stdin);
                input.len()
            },
            read_all(ends.stdout),
            read_all(ends.stderr)
        );
        assert_eq!(sent, stdout.len());
        assert!(stdout == input, "what came back is not what was sent");
        assert_eq!(stderr, b"end\n");
        assert_eq!(running.finished().await.unwrap().exit_code, 7);
        until("the leaf is gone", || leaves(&pod, &main).is_empty()).await;
        until("no descriptor is left", || descriptors(&pod) <= before).await;

        // A signal; a program that is not there; one whose client has gone.
        let (_ends, running) = exec(&pod, &main.id, "kill -9 $$").await;
        assert_eq!(running.finished().await.unwrap().exit_code, 137);
        let mut missing = request(&main.id, "x");
        let mut process: serde_json::Value = serde_json::from_slice(&missing.process).unwrap();
        process["args"] = serde_json::json!(["/bin/nothing"]);
        missing.process = serde_json::to_vec(&process).unwrap();
        let error = pod.client().exec_stream(missing, Vec::new()).await.err().unwrap();
        let kind = FailureKind::NotFound;
        assert!(
            matches!(&error, Error::Refused { kind: k, .. } if *k == kind),
            "{error}"
        );
        let (ends, running) = exec(&pod, &main.id, "while echo x; do usleep 1000; done; exit 3").await;
        drop(ends);
        assert_ne!(running.finished().await.unwrap().exit_code, 0);
        let error = pod
            .client()
            .exec_stream(request("nobody", "true"), Vec::new())
            .await
            .err()
            .unwrap();
        assert!(error.to_string().contains("nobody"), "{error}");
        until("the leaves are gone", || leaves(&pod, &main).is_empty()).await;
        until("no descriptor is left", || descriptors(&pod) <= before).await;
        pod.stop().await;
    });
}

#[test]
fn an_exec_with_a_terminal_is_resized_and_hung_up() {
    privileged(|| async {
        let pod = Pod::start().await;
        let main = pod.run("main", "sleep 1000").await;
        let script = "test -t 0 && test -t 1 && test -t 2 && echo all; read x; stty size; \
                      trap 'echo signalled' WINCH; echo armed; read y; stty size; exit 5";
        let (master, running) = exec_tty(&pod, &main.id, script).await;
        let mut screen = reader(master.try_clone().unwrap());
        let mut keys = writer(master.try_clone().unwrap());
        read_until(&mut screen, "all").await;
        resize(&master, 40, 132);
        keys.write_all(b"go\n").await.unwrap();
        let text = read_until(&mut screen, "armed").await;
        assert!(text.contains("40 132"), "{text}");
        resize(&master, 24, 80);
        keys.write_all(b"bye\n").await.unwrap();
        let text = read_until(&mut screen, "24 80").await;
        assert!(text.contains("signalled"), "{text}");
        assert_eq!(running.finished().await.unwrap().exit_code, 5);
        drop((screen, keys, master));

        let (master, running) = exec_tty(&pod, &main.id, "sleep 1000").await;
        drop(master);
        assert_eq!(running.finished().await.unwrap().exit_code, 129, "not hung up");
        pod.stop().await;
    });
}

#[test]
fn who_reads_slowly_holds_up_neither_the_container_nor_its_log() {
    const LINE: usize = 1000;
    const COUNT: usize = 50_000;
    privileged(|| async {
        let mut pod = Pod::start().await;
        let line = "x".repeat(LINE - 1);
        let script = format!("read go; yes {line} | head -n {COUNT}; echo last >&2");
        let mut create = pod.container("flood", &script);
        create.stdin = true;
        let flood = pod.create(create).await;
        pod.client().start(&flood.id).await.unwrap();
        let (stalled, _stalled_err) = attach(&pod, &flood, false).await;
        let (reading, errors) = attach(&pod, &flood, false).await;
        let Stdio::Pipes {
            stdin: Some(stdin), ..
        } = &flood.container.descriptors.stdio
        else {
            panic!("no stdin");
        };
        let start = Instant::now();
        rustix::io::write(stdin, b"go\n").unwrap();
        let readers = tokio::spawn(async move { tokio::join!(read_all(reading), read_all(errors)) });
        assert_eq!(pod.exit_of(&flood.id).await.exit_code, 0);
        println!("50 MB with one reader who does not read: {:?}", start.elapsed());
        let logged = lines(&flood.log, "stdout");
        assert_eq!(logged.len(), COUNT);
        assert!(logged.iter().all(|logged| *logged == line));
        // Both ends come; nothing is lost without a word.
        let (read, errors) = readers.await.unwrap();
        assert_eq!(errors, b"last\n");
        let (kept, missing) = account(&read);
        println!("the reader got {kept} bytes and was told of {missing} missing");
        assert!(kept + missing <= LINE * COUNT && kept > 0);
        let some = read_all(stalled).await;
        assert!(
            some.len() >= 64 * 1024 && some.len() < LINE * COUNT,
            "{}",
            some.len()
        );
        pod.stop().await;
    });
}

/// Bytes of output, and of those that are said to be missing.
fn account(read: &[u8]) -> (usize, usize) {
    let text = String::from_utf8_lossy(read);
    let (mut kept, mut missing) = (0, 0);
    for line in text.split_inclusive('\n') {
        match line.strip_prefix("[holdfast] ") {
            Some(told) => {
                missing += told.split(' ').next().unwrap().parse::<usize>().unwrap();
                // The line that it begins.
                kept -= 1;
            }
            None => kept += line.len(),
        }
    }
    (kept, missing)
}

#[test]
fn stdin_stays_open_and_with_stdin_once_ends_with_the_first_client() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        for once in [false, true] {
            let name = if once { "once" } else { "stays" };
            let mut create = pod.container(name, "cat; exit 4");
            (create.stdin, create.stdin_once) = (true, once);
            let Started {
                id,
                container,
                create,
                log,
            } = pod.create(create).await;
            pod.client().start(&id).await.unwrap();
            let Stdio::Pipes {
                stdin: Some(stdin), ..
            } = container.descriptors.stdio
            else {
                panic!("no stdin");
            };
            assert!(
                rustix::fs::fcntl_getfl(&stdin)
                    .unwrap()
                    .contains(rustix::fs::OFlags::NONBLOCK),
                "a full stdin would hold up the daemon"
            );
            let (stdout, out) = pipe();
            let request = Attach {
                container_id: id.clone(),
                stdout: true,
                stderr: false,
                release_stdin: once,
            };
            pod.client().attach(request, vec![out]).await.unwrap();
            let mut stdout = reader(stdout);
            rustix::io::write(&stdin, b"hello\n").unwrap();
            read_until(&mut stdout, "hello\n").await;
            drop(stdin);
            if once {
                assert_eq!(pod.exit_of(&id).await.exit_code, 4);
                assert_eq!(stdout.read(&mut [0; 10]).await.unwrap(), 0);
                assert_eq!(lines(&log, "stdout"), ["hello"]);
            } else {
                tokio::time::sleep(Duration::from_millis(300)).await;
                // The monitor still has it, for the next one.
                let inventory = pod.client().inventory().await.unwrap();
                let entry = inventory
                    .containers
                    .iter()
                    .find(|it| it.entry.container_id == id)
                    .unwrap();
                assert!(entry.entry.has_stdin && entry.entry.exit.is_none());
                assert_eq!(entry.entry.phase, i32::from(Phase::Running));
                let _ = create;
            }
        }
        pod.stop().await;
    });
}

#[test]
fn a_terminal_is_attached_to_and_output_of_old_is_not_replayed() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let script = "echo old; while read x; do echo got $x; stty size; done; exit 6";
        let mut create = with_spec(pod.container("tty", script), |spec| {
            spec["process"]["terminal"] = serde_json::json!(true);
        });
        (create.stdin, create.tty) = (true, true);
        let tty = pod.create(create).await;
        pod.client().start(&tty.id).await.unwrap();
        until("the log has begun", || !lines(&tty.log, "stdout").is_empty()).await;
        let Stdio::Tty { master } = &tty.container.descriptors.stdio else {
            panic!("no terminal");
        };
        let (mut one, no_errors) = attach(&pod, &tty, false).await;
        let (mut two, _) = attach(&pod, &tty, false).await;
        assert!(read_all(no_errors).await.is_empty());
        resize(master, 33, 99);
        rustix::io::write(master, b"abc\n").unwrap();
        let text = read_until(&mut one, "33 99").await;
        assert!(text.contains("got abc") && !text.contains("old"), "{text}");
        read_until(&mut two, "33 99").await;
        drop(two);
        let before = descriptors(&pod);
        // ^D
        rustix::io::write(master, b"\x04").unwrap();
        assert_eq!(pod.exit_of(&tty.id).await.exit_code, 6);
        read_all(one).await;
        assert!(descriptors(&pod) < before);
        assert!(
            lines(&tty.log, "stdout")
                .iter()
                .any(|line| line.trim_end() == "got abc")
        );
        pod.stop().await;
    });
}

#[test]
fn readers_that_come_and_go_leave_nothing() {
    privileged(|| async {
        let pod = Pod::start().await;
        let silent = pod.run("silent", "sleep 1000").await;
        let noisy = pod.run("noisy", "while :; do echo x; usleep 1000; done").await;
        let before = descriptors(&pod);
        for _ in 0..100 {
            drop(attach(&pod, &silent, false).await);
            let (mut out, _err) = attach(&pod, &noisy, false).await;
            read_until(&mut out, "x").await;
        }
        // The pump's own socket comes and goes with the output.
        until("the taps are closed", || descriptors(&pod) <= before + 1).await;
        let mut kept = Vec::new();
        let refused = loop {
            let (stdout, out) = pipe();
            let request = Attach {
                container_id: silent.id.clone(),
                stdout: true,
                ..Attach::default()
            };
            match pod.client().attach(request, vec![out]).await {
                Ok(()) => kept.push(stdout),
                Err(error) => break error,
            }
            assert!(kept.len() < 1000, "no bound");
        };
        assert!(
            matches!(
                refused,
                Error::Refused {
                    kind: FailureKind::Exhausted,
                    ..
                }
            ),
            "{refused}"
        );
        drop(kept);
        until("the taps are closed", || descriptors(&pod) <= before + 1).await;
        let created = pod.create(pod.container("created", "true")).await;
        let request = Attach {
            container_id: created.id.clone(),
            ..Attach::default()
        };
        let error = pod.client().attach(request, Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("was not started"), "{error}");
        pod.stop().await;
    });
}

#[test]
fn a_new_program_keeps_those_who_are_attached_and_execs() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let mut create = pod.container("main", "while read x; do echo got $x; done; exit 2");
        (create.stdin, create.stdin_once) = (true, true);
        let main = pod.create(create).await;
        pod.client().start(&main.id).await.unwrap();
        let (mut out, _err) = attach(&pod, &main, true).await;
        let Stdio::Pipes {
            stdin: Some(stdin), ..
        } = &main.container.descriptors.stdio
        else {
            panic!("no stdin");
        };
        rustix::io::write(stdin, b"one\n").unwrap();
        read_until(&mut out, "got one").await;
        let (mut ends, running) = exec(&pod, &main.id, "read x; echo $x; exit 9").await;
        let (master, shell) = exec_tty(&pod, &main.id, "read x; exit 8").await;
        let program = std::fs::File::open(monitor_program()).unwrap();
        pod.client().reexec(program.as_fd()).await.unwrap();
        ends.stdin.write_all(b"still here\n").await.unwrap();
        assert_eq!(read_all(ends.stdout).await, b"still here\n");
        assert_eq!(running.finished().await.unwrap().exit_code, 9);
        rustix::io::write(&master, b"\n").unwrap();
        assert_eq!(shell.finished().await.unwrap().exit_code, 8);
        rustix::io::write(stdin, b"two\n").unwrap();
        read_until(&mut out, "got two").await;
        let (mut late, _) = attach(&pod, &main, false).await;
        rustix::io::write(stdin, b"three\n").unwrap();
        read_until(&mut out, "got three").await;
        let text = read_until(&mut late, "got three").await;
        assert!(!text.contains("two"), "{text}");
        let id = main.id.clone();
        drop(main);
        assert_eq!(pod.exit_of(&id).await.exit_code, 2);
        pod.stop().await;
    });
}

#[test]
fn a_replacement_serves_new_clients_and_lost_execs_are_told() {
    privileged(|| async {
        let mut pod = Pod::start().await;
        let mut create = with_spec(
            pod.container("tty", "while read x; do echo got $x; done"),
            |spec| {
                spec["process"]["terminal"] = serde_json::json!(true);
            },
        );
        (create.stdin, create.tty) = (true, true);
        let tty = pod.create(create).await;
        pod.client().start(&tty.id).await.unwrap();
        let (_ends, running) = exec(&pod, &tty.id, "sleep 1000").await;
        let old = rustix::process::Pid::from_raw(pod.monitor.pid).unwrap();
        rustix::process::kill_process(old, rustix::process::Signal::KILL).unwrap();
        assert!(matches!(running.finished().await, Err(Error::Gone)));
        holdfast_monitor_api::ended(pod.monitor.pidfd.as_fd())
            .await
            .unwrap();
        std::fs::remove_file(pod.path("state/monitor.sock")).unwrap();
        pod.monitor = support::spawn().await;
        let entry = ContainerEntry {
            container_id: tty.id.clone(),
            phase: Phase::Running.into(),
            pid: tty.container.pid,
            ..ContainerEntry::default()
        };
        let plan = AdoptPlan {
            init: pod.init(),
            create_sandbox: pod.create_sandbox(),
            pause_pid: pod.sandbox.pause_pid,
            sandbox: &pod.sandbox.descriptors,
            containers: vec![AdoptedContainer {
                create: tty.create.clone(),
                entry,
                descriptors: Some(&tty.container.descriptors),
            }],
        };
        pod.client().adopt(plan).await.unwrap();
        let (mut out, _) = attach(&pod, &tty, false).await;
        let Stdio::Tty { master } = &tty.container.descriptors.stdio else {
            panic!("no terminal");
        };
        rustix::io::write(master, b"abc\n").unwrap();
        read_until(&mut out, "got abc").await;
        let (ends, running) = exec(&pod, &tty.id, "echo fine; exit 3").await;
        assert_eq!(read_all(ends.stdout).await, b"fine\n");
        assert_eq!(running.finished().await.unwrap().exit_code, 3);
        pod.stop().await;
    });
}

#[test]
fn sockets_are_the_pods_own() {
    privileged(|| async {
        let pod = Pod::start().await;
        // A thread of ours that listens inside.
        let net = pod.sandbox.descriptors.net.as_ref().unwrap().try_clone().unwrap();
        let (ready, go) = tokio::sync::oneshot::channel();
        let inside = std::thread::spawn(move || {
            holdfast_sys::namespace::join(net.as_fd(), holdfast_sys::clone::NEWNET).unwrap();
            let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| std::net::TcpListener::bind(at).unwrap());
            ready
                .send(listeners.each_ref().map(|it| it.local_addr().unwrap()))
                .unwrap();
            listeners.map(|listener| {
                let mut text = String::new();
                let (mut connection, _) = listener.accept()?;
                connection.read_to_string(&mut text)?;
                Ok::<_, io::Error>(text)
            })
        });
        let addresses = go.await.unwrap();
        let before = descriptors(&pod);
        let sockets = pod.client().pod_sockets().await.unwrap();
        for (socket, address) in [sockets.ipv4, sockets.ipv6].into_iter().zip(addresses) {
            let socket = std::net::TcpStream::from(socket.unwrap());
            let socket = tokio::net::TcpSocket::from_std_stream(socket);
            let mut connection = socket.connect(address).await.unwrap();
            connection
                .write_all(address.to_string().as_bytes())
                .await
                .unwrap();
        }
        let heard = inside.join().unwrap().map(Result::unwrap);
        assert_eq!(heard, addresses.map(|address| address.to_string()));
        until("no descriptor is left", || descriptors(&pod) <= before).await;
        pod.stop().await;
    });
}
