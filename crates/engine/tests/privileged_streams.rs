//! Exec, attach and port-forward through the engine, over restarts of everything.
#![allow(clippy::unwrap_used)]

mod node;

use std::io::{self, Read};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use holdfast_engine::{Error, Kind, StreamRequest, Streams, Wanted};
use holdfast_model::{ContainerSpec, ContainerState};
use holdfast_streaming::{AttachRequest, Backend, ExecRequest, TerminalSize};
use node::{Node, PATIENCE, kill9, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};

const ALL: Wanted = Wanted {
    stdin: true,
    stdout: true,
    stderr: true,
};

fn reader(fd: Option<OwnedFd>) -> Receiver {
    Receiver::from_owned_fd_unchecked(fd.unwrap()).unwrap()
}

fn writer(fd: Option<OwnedFd>) -> Sender {
    Sender::from_owned_fd_unchecked(fd.unwrap()).unwrap()
}

async fn read_all(mut from: Receiver) -> Vec<u8> {
    let mut all = Vec::new();
    let reading = async {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match from.read(&mut buffer).await {
                Ok(0) => return,
                Ok(read) => all.extend_from_slice(&buffer[..read]),
                Err(error) => return assert_eq!(error.raw_os_error(), Some(5), "{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("no end of a stream");
    all
}

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
    let came = tokio::time::timeout(PATIENCE, reading).await;
    assert!(came.is_ok(), "no {wanted:?} in {all:?}");
    all
}

async fn ended(streams: holdfast_engine::Ended) -> Result<i32, Error> {
    tokio::time::timeout(PATIENCE, streams)
        .await
        .expect("it does not end")
}

fn shell(script: &str, streams: Wanted) -> StreamRequest {
    StreamRequest {
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        tty: false,
        size: None,
        streams,
    }
}

impl Node {
    fn stream(&self, container: &str, script: &str) -> Streams {
        let started = self.block_on(self.engine().exec_stream(container, shell(script, ALL)));
        started.unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    fn attach(&self, container: &str, wanted: Wanted) -> Streams {
        let attached = self.block_on(self.engine().attach(container, wanted));
        attached.unwrap_or_else(|e| panic!("{}", e.chain()))
    }

    fn reexec(&self) {
        for reexec in self.block_on(self.engine().reexec_monitors()) {
            reexec.outcome.unwrap_or_else(|e| panic!("{}", e.chain()));
        }
    }

    /// Kills the pod's monitor and waits for its replacement.
    fn replace_monitor(&self, pod: &str) {
        let old = self.engine().sandbox(pod).unwrap().monitor_pid;
        kill9(old.unwrap());
        wait("another monitor", || {
            Some(self.engine().sandbox(pod).unwrap()).filter(|record| record.monitor_pid != old)
        });
    }
}

fn interactive(mut spec: ContainerSpec) -> ContainerSpec {
    (spec.stdin, spec.tty) = (true, true);
    spec
}

#[test]
fn a_command_has_its_streams_and_its_exit_code() {
    let mut node = Node::new("exec");
    let pod = node.run_pod(node.host_pod("one"));
    let main = node.run(&pod, node.script("main", "sleep 1000"));
    let echo = |node: &Node| {
        let streams = node.stream(&main, "cat; echo end >&2; exit 7");
        let input: Vec<u8> = (0..20usize << 20).map(|n| (n % 253) as u8).collect();
        node.block_on(async {
            let mut stdin = writer(streams.stdin);
            let ((), stdout, stderr) = tokio::join!(
                async {
                    stdin.write_all(&input).await.unwrap();
                    drop(stdin);
                },
                read_all(reader(streams.stdout)),
                read_all(reader(streams.stderr))
            );
            assert!(stdout == input, "{} bytes came back", stdout.len());
            assert_eq!(stderr, b"end\n");
            assert_eq!(ended(streams.ended).await.unwrap(), 7);
        });
    };
    echo(&node);
    node.reexec();
    echo(&node);
    node.crash();
    node.open();
    echo(&node);

    // One in flight when the monitor dies is lost, and says so; the next finds the new monitor.
    let streams = node.stream(&main, "sleep 1000");
    node.replace_monitor(&pod);
    let error = node.block_on(ended(streams.ended)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("cut off"), "{error}");
    let streams = node.stream(&main, "exit 3");
    assert_eq!(node.block_on(ended(streams.ended)).unwrap(), 3);

    let none = Wanted::default();
    let mut missing = shell("", none);
    missing.command = vec!["/bin/nothing".into()];
    let error = node
        .block_on(node.engine().exec_stream(&main, missing))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
    assert!(error.chain().contains("/bin/nothing"), "{}", error.chain());
    let waiting = node.create(&pod, node.script("waiting", "true"));
    let error = node
        .block_on(node.engine().exec_stream(&waiting, shell("", none)))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(error.to_string().contains("created"), "{error}");
    let error = node
        .block_on(node.engine().exec_stream("feed", shell("", none)))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_terminal_follows_its_window() {
    let mut node = Node::new("tty");
    let pod = node.run_pod(node.host_pod("one"));
    let main = node.run(&pod, node.script("main", "sleep 1000"));
    let script = "echo $TERM; stty size; read x; stty size; exit 5";
    let size = |columns, rows| TerminalSize { columns, rows };
    let request = ExecRequest {
        container: main.clone(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        tty: true,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let process = node
        .block_on(Backend::exec(node.engine(), request.clone(), Some(size(101, 33))))
        .unwrap();
    node.block_on(async {
        let mut screen = reader(process.stdout);
        read_until(&mut screen, "xterm\r\n33 101\r\n").await;
        process.resize.as_ref().unwrap()(size(132, 40));
        writer(process.stdin).write_all(b"\n").await.unwrap();
        read_until(&mut screen, "40 132").await;
        assert_eq!(process.exit.await.unwrap(), 5);
    });
    // A client that goes away hangs up.
    let request = ExecRequest {
        command: vec![
            "/bin/sh".into(),
            "-c".into(),
            "echo $$ > /tmp/pid; sleep 1000".into(),
        ],
        ..request
    };
    let process = node
        .block_on(Backend::exec(node.engine(), request, None))
        .unwrap();
    let pid = "test -s /tmp/pid && kill -0 $(cat /tmp/pid) && echo yes || echo no";
    wait("the command to run", || {
        (node.sh(&main, pid) == "yes\n").then_some(())
    });
    drop(process);
    wait("the command to end", || {
        (node.sh(&main, pid) == "no\n").then_some(())
    });
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn a_container_with_a_terminal_outlives_its_clients_and_its_keepers() {
    let mut node = Node::new("attach");
    let pod = node.run_pod(node.host_pod("one"));
    let script = "echo old; while read x; do echo got $x; stty size; done; exit 6";
    let main = node.run(&pod, interactive(node.script("main", script)));
    wait("the first line", || node.log(&main).contains("old").then_some(()));
    let talk = |node: &Node, word: &str| {
        let request = AttachRequest {
            container: main.clone(),
            tty: true,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let process = node.block_on(Backend::attach(node.engine(), request)).unwrap();
        assert!(process.stderr.is_none());
        let (rows, columns) = (20 + word.len() as u16, 70 + word.len() as u16);
        process.resize.as_ref().unwrap()(TerminalSize { columns, rows });
        let (screen, keys) = node.block_on(async {
            let (mut screen, mut keys) = (reader(process.stdout), writer(process.stdin));
            keys.write_all(format!("{word}\n").as_bytes()).await.unwrap();
            let text = read_until(&mut screen, &format!("{rows} {columns}")).await;
            assert!(
                text.contains(&format!("got {word}")) && !text.contains("old"),
                "{text}"
            );
            (screen, keys)
        });
        (screen, keys, process.exit)
    };
    drop(talk(&node, "a"));
    let (mut screen, _, exit) = talk(&node, "ab");
    node.reexec();
    drop(talk(&node, "abc"));
    // Who was attached before is still.
    node.block_on(read_until(&mut screen, "got abc"));
    drop((screen, exit));
    node.crash();
    node.open();
    let (screen, _, exit) = talk(&node, "abcd");
    node.replace_monitor(&pod);
    let error = node.block_on(exit).unwrap_err().to_string();
    assert!(error.contains("cut off"), "{error}");
    node.block_on(read_all(screen));
    let (screen, mut keys, exit) = talk(&node, "abcde");
    node.block_on(async {
        keys.write_all(b"\x04").await.unwrap();
        assert!(exit.await.is_ok());
        read_all(screen).await;
    });
    assert_eq!(node.status(&main).state, ContainerState::Exited);
    let error = node.block_on(node.engine().attach(&main, ALL)).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    assert!(error.to_string().contains("exited"), "{error}");
    for word in ["old", "got a", "got abcde"] {
        assert!(
            node.log(&main).contains(&format!("stdout F {word}\n")),
            "{word}: {}",
            node.log(&main)
        );
    }
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn standard_input_stays_open_or_ends_with_its_first_client() {
    let mut node = Node::new("stdin");
    let pod = node.run_pod(node.host_pod("one"));
    let cat = |name: &str, once: bool| {
        let mut spec = node.script(name, "cat; exit 4");
        (spec.stdin, spec.stdin_once) = (true, once);
        node.run(&pod, spec)
    };
    let (stays, once, crashed) = (cat("stays", false), cat("once", true), cat("crashed", true));
    let none = node.run(&pod, node.script("none", "cat; echo no input; sleep 1000"));
    let say = |node: &Node, container: &str, word: &str| {
        let streams = node.attach(container, ALL);
        let (stdin, stdout) = node.block_on(async {
            let (mut stdin, mut stdout) = (writer(streams.stdin), reader(streams.stdout));
            stdin.write_all(word.as_bytes()).await.unwrap();
            read_until(&mut stdout, word).await;
            (stdin, stdout)
        });
        (stdin, stdout, streams.ended)
    };
    drop(say(&node, &stays, "one\n"));
    let (stdin, stdout, exit) = say(&node, &once, "first\n");
    let late = node.attach(&once, ALL);
    assert!(late.stdin.is_none(), "the first one has it");
    node.reexec();
    assert_eq!(node.status(&once).state, ContainerState::Running);
    drop(stdin);
    assert_eq!(node.block_on(ended(exit)).unwrap(), 4);
    assert_eq!(node.block_on(ended(late.ended)).unwrap(), 4);
    node.block_on(async {
        assert!(read_all(stdout).await.is_empty());
        assert!(read_all(reader(late.stdout)).await.is_empty());
    });
    assert!(node.attach(&none, ALL).stdin.is_none());

    // Nobody has attached yet: a daemon's end closes nothing. With a client, it is the client's end.
    node.crash();
    node.open();
    for container in [&stays, &crashed] {
        assert_eq!(node.status(container).state, ContainerState::Running);
    }
    drop(say(&node, &stays, "two\n"));
    let held = say(&node, &crashed, "three\n");
    node.crash();
    drop(held);
    node.open();
    assert_eq!(node.wait_exit(&crashed).exit.as_ref().unwrap().code, 4);
    node.replace_monitor(&pod);
    drop(say(&node, &stays, "four\n"));
    assert_eq!(node.status(&stays).state, ContainerState::Running);
    // A client may have it a little before the log.
    wait("the last word", || {
        node.log(&stays).contains("four").then_some(())
    });
    assert_eq!(node.log(&stays), "stdout F one\nstdout F two\nstdout F four\n");
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn the_log_is_whole_whoever_does_not_read() {
    let mut node = Node::new("flood");
    let pod = node.run_pod(node.host_pod("one"));
    let line = "x".repeat(999);
    let mut spec = node.script("flood", &format!("read go; yes {line} | head -n 20000"));
    spec.stdin = true;
    let flood = node.run(&pod, spec);
    let outputs = Wanted { stdin: false, ..ALL };
    let stalled = node.attach(&flood, outputs);
    let reading = node.attach(&flood, ALL);
    let reader_task = node.spawn(async move { read_all(reader(reading.stdout)).await });
    node.block_on(async {
        writer(reading.stdin).write_all(b"go\n").await.unwrap();
        assert_eq!(ended(reading.ended).await.unwrap(), 0);
        assert_eq!(ended(stalled.ended).await.unwrap(), 0);
    });
    let log = node.log(&flood);
    assert_eq!(log.lines().count(), 20_000);
    assert!(log.lines().all(|logged| logged == format!("stdout F {line}")));
    let read = node.block_on(reader_task).unwrap();
    println!("the reader got {} bytes of 20 MB", read.len());
    assert!(read.len() > 1 << 20);
    let some = node.block_on(async { read_all(reader(stalled.stdout)).await });
    assert!((1 << 16..2 << 20).contains(&some.len()), "{}", some.len());
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn streams_that_are_dropped_leave_nothing() {
    let mut node = Node::new("drop");
    let pod = node.run_pod(node.host_pod("one"));
    let mut spec = node.script("main", "while :; do echo x; sleep 0.01; done");
    spec.stdin = true;
    let main = node.run(&pod, spec);
    let monitor = node.engine().sandbox(&pod).unwrap().monitor_pid.unwrap();
    // The daemon holds descriptors of the monitor that waits, and those through which figures are read.
    node.spare();
    node.block_on(node.engine().container_usage(&main)).unwrap();
    node.block_on(node.engine().pod_usage(&pod)).unwrap();
    let open = |pid: &str| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = (open("self"), open(&monitor.to_string()));
    for _ in 0..100 {
        drop(node.attach(&main, ALL));
        drop(node.stream(&main, "exec cat"));
        // Given up before it is there.
        node.block_on(async {
            let attach = node.engine().attach(&main, ALL);
            let _ = tokio::time::timeout(Duration::from_micros(50), attach).await;
        });
    }
    wait("descriptors to be closed", || {
        let now = (open("self"), open(&monitor.to_string()));
        // The pump's socket comes and goes with the output.
        (now.0 <= before.0 && now.1 <= before.1 + 1).then_some(())
    });
    node.remove_pod(&pod);
    node.assert_clean();
}

#[test]
fn ports_of_pods_are_reached_on_both_loopback_addresses() {
    let mut node = Node::new("ports");
    // The test's own network namespace is the node's here, and new ones have their loopback down.
    let mut up = std::process::Command::new(holdfast_testkit::BUSYBOX);
    assert!(
        up.args(["ip", "link", "set", "lo", "up"])
            .status()
            .unwrap()
            .success()
    );
    let own = node.run_pod(node.pod("own"));
    let host = node.run_pod(node.host_pod("host"));
    for pod in [&own, &host] {
        let pause = node.engine().sandbox(pod).unwrap().pause_pid.unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (port, heard) = listen(pause, address);
            let mut connection = node
                .block_on(Backend::port_forward(node.engine(), pod, port))
                .unwrap_or_else(|e| panic!("{e}"));
            node.block_on(connection.write_all(address.as_bytes())).unwrap();
            drop(connection);
            assert_eq!(heard.join().unwrap().unwrap(), address);
        }
    }
    // What listens in one pod is not found in another.
    let (port, heard) = listen(
        node.engine().sandbox(&own).unwrap().pause_pid.unwrap(),
        "127.0.0.1:0",
    );
    let error = node
        .block_on(node.engine().port_forward(&host, port))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&format!("[::1]:{port}")), "{error}");
    node.reexec();
    drop(node.block_on(node.engine().port_forward(&own, port)).unwrap());
    assert_eq!(heard.join().unwrap().unwrap(), "");
    node.stop_pod(&own);
    let error = node.block_on(node.engine().port_forward(&own, port)).unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition, "{error}");
    node.remove_pod(&own);
    node.remove_pod(&host);
    node.assert_clean();
}

/// Hears one connection in the network namespace of `pid`.
fn listen(pid: i32, address: &'static str) -> (u16, std::thread::JoinHandle<io::Result<String>>) {
    let (tell, port) = std::sync::mpsc::channel();
    let heard = std::thread::spawn(move || {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        let listener = TcpListener::bind(address)?;
        tell.send(listener.local_addr()?.port()).unwrap();
        let (mut connection, _) = listener.accept()?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        Ok(text)
    });
    (port.recv_timeout(PATIENCE).unwrap(), heard)
}
