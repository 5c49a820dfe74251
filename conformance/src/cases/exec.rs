//! ExecSync.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tonic::Code;

use super::{Pod, cases};
use crate::Context;
use crate::cri::{container_config, must_fail};
use crate::expect;

/// One gRPC message, less what its frame may need.
const OUTPUT_LIMIT: usize = (16 << 20) - (64 << 10);

cases!["exec";
    streams_and_exit_code,
    a_signal_is_128_and_more,
    what_is_not_there,
    a_timeout_kills_the_whole_tree within 15 => "the specification wants the command stopped; the peer kills its first process alone",
    a_grandchild_holds_the_pipe => "the peer waits for the pipe to close, not for the command to exit",
    output_ends_at_one_message => "the specification asks for 16 MB of each stream; the peer sends one message that is larger than gRPC takes",
    in_a_container_that_is_gone,
    user_and_environment_are_the_containers,
    fifty_at_once within 30 => "fifty at once take the peer longer than a minute on two cores",
];

async fn streams_and_exit_code(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec").await?;
    let id = pod.sleeper(&c).await?;
    let reply = c
        .cri
        .exec(&id, &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], 10)
        .await?;
    expect!(
        (reply.exit_code, &reply.stdout[..], &reply.stderr[..]),
        (3, &b"out\n"[..], &b"err\n"[..]),
        "the reply"
    );
    pod.end().await
}

async fn a_signal_is_128_and_more(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-signal").await?;
    let id = pod.sleeper(&c).await?;
    expect!(
        c.cri
            .exec(&id, &["/bin/sh", "-c", "kill -9 $$"], 10)
            .await?
            .exit_code,
        137,
        "exit code of a kill"
    );
    pod.end().await
}

async fn what_is_not_there(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-missing").await?;
    let id = pod.sleeper(&c).await?;
    let missing = c.cri.exec(&id, &["/no/such/program"], 10).await;
    must_fail(
        missing,
        &[
            Code::Unknown,
            Code::Internal,
            Code::NotFound,
            Code::InvalidArgument,
        ],
        &["/no/such/program"],
    )?;
    expect!(
        c.cri.shell(&id, "echo still here").await?,
        "still here",
        "exec after a failed one"
    );
    pod.end().await
}

async fn a_timeout_kills_the_whole_tree(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-timeout").await?;
    let id = pod.sleeper(&c).await?;
    let start = Instant::now();
    let late = c
        .cri
        .exec(&id, &["/bin/sh", "-c", "setsid sleep 4242 & sleep 4243"], 1)
        .await;
    must_fail(late, &[Code::DeadlineExceeded, Code::Unknown], &["time"])?;
    ensure!(
        start.elapsed() < Duration::from_secs(5),
        "a timeout of one second took {:?}",
        start.elapsed()
    );
    tokio::time::sleep(Duration::from_millis(200)).await;
    expect!(
        c.cri.shell(&id, "ps | grep -c '[s]leep 424' || true").await?,
        "0",
        "processes that outlived the timeout"
    );
    pod.end().await
}

async fn a_grandchild_holds_the_pipe(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-grandchild").await?;
    let id = pod.sleeper(&c).await?;
    let start = Instant::now();
    let reply = c
        .cri
        .exec(&id, &["/bin/sh", "-c", "sleep 8 & echo done"], 20)
        .await?;
    expect!(&reply.stdout[..], &b"done\n"[..], "stdout");
    ensure!(
        start.elapsed() < Duration::from_secs(5),
        "waited {:?} for a grandchild",
        start.elapsed()
    );
    pod.end().await
}

async fn output_ends_at_one_message(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-output").await?;
    let id = pod.sleeper(&c).await?;
    let reply = c
        .cri
        .exec(
            &id,
            &[
                "/bin/sh",
                "-c",
                "head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2",
            ],
            30,
        )
        .await?;
    let total = reply.stdout.len() + reply.stderr.len();
    ensure!(
        reply.exit_code == 0 && total <= OUTPUT_LIMIT,
        "{total} bytes, exit code {}",
        reply.exit_code
    );
    ensure!(total >= OUTPUT_LIMIT / 2, "only {total} bytes");
    pod.end().await
}

async fn in_a_container_that_is_gone(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-gone").await?;
    let id = pod.sleeper(&c).await?;
    c.cri.stop(&id, 0).await?;
    ensure!(
        c.cri.exec(&id, &["/bin/true"], 10).await.is_err(),
        "exec in an exited container"
    );
    c.cri.remove(&id).await?;
    must_fail(
        c.cri.exec(&id, &["/bin/true"], 10).await,
        &[Code::NotFound],
        &[&id[..12]],
    )?;
    pod.end().await
}

async fn user_and_environment_are_the_containers(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("configured")).await?;
    let pod = Pod::run(&c, "exec-user").await?;
    let id = pod
        .start(&container_config("user", &image, &["/bin/sleep", "3600"]))
        .await?;
    expect!(
        c.cri.shell(&id, "id -u; pwd; echo $FROM_IMAGE").await?,
        "1000\n/home/work\nyes",
        "user, directory, environment"
    );
    pod.end().await
}

async fn fifty_at_once(c: Arc<Context>) -> anyhow::Result<()> {
    let pod = Pod::run(&c, "exec-many").await?;
    let id = pod.sleeper(&c).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..50 {
        let (cri, id) = (c.cri.clone(), id.clone());
        tasks.spawn(async move { (n.to_string(), cri.shell(&id, &format!("echo {n}")).await) });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, out) = done?;
        expect!(out?, n, "output of one exec among fifty");
    }
    pod.end().await
}
