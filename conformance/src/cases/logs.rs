//! The log file that kubelet reads.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use k8s_cri::v1 as cri;

use super::{Pod, cases};
use crate::Context;
use crate::cri::container_config;
use crate::expect;

cases!["logs"; format, long_lines, no_last_newline, many_lines => "the peer reports the exit before all of the log is in the file", rotation, deep_log_path];

async fn format(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "log-format").await?;
    let script = "echo out; sleep 0.2; echo err >&2";
    let ended = pod
        .once(
            &c,
            &container_config("format", &image, &["/bin/sh", "-c", script]),
        )
        .await?;
    let lines: Vec<Vec<&str>> = ended.log.lines().map(|l| l.splitn(4, ' ').collect()).collect();
    expect!(lines.len(), 2, "lines");
    for (line, (stream, text)) in lines.iter().zip([("stdout", "out"), ("stderr", "err")]) {
        expect!(line[1..], [stream, "F", text], "stream, tag and text");
        // RFC 3339 with nanoseconds, 2026-01-02T03:04:05.123456789Z or with an offset; Go leaves zeros at the end out.
        let time = line[0].as_bytes();
        let digits = time
            .get(20..)
            .map_or(0, |rest| rest.iter().take_while(|b| b.is_ascii_digit()).count());
        ensure!(
            time[10] == b'T' && time[19] == b'.' && (1..=9).contains(&digits) && time.len() > 20 + digits,
            "time stamp {}",
            line[0]
        );
    }
    pod.end().await
}

async fn long_lines(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "log-long").await?;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo";
    let ended = pod
        .once(&c, &container_config("long", &image, &["/bin/sh", "-c", script]))
        .await?;
    let parts: Vec<(&str, usize)> = ended
        .log
        .lines()
        .map(|l| {
            (
                l.split(' ').nth(2).unwrap_or_default(),
                l.splitn(4, ' ').nth(3).map_or(0, str::len),
            )
        })
        .collect();
    expect!(
        parts.iter().map(|p| p.1).sum::<usize>(),
        40000,
        "bytes in all parts"
    );
    let (last, before) = parts.split_last().context("no log line")?;
    expect!(last.0, "F", "tag of the last part");
    ensure!(
        before.len() >= 2 && before.iter().all(|p| p.0 == "P"),
        "tags of the parts before: {parts:?}"
    );
    ensure!(
        parts.iter().all(|p| p.1 <= 16384),
        "a part is longer than 16 KiB: {parts:?}"
    );
    pod.end().await
}

async fn no_last_newline(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "log-partial").await?;
    let ended = pod
        .once(
            &c,
            &container_config("partial", &image, &["/bin/printf", "one\\ntwo"]),
        )
        .await?;
    expect!(ended.text, "one\ntwo\n", "text of a log without a last newline");
    pod.end().await
}

async fn many_lines(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "log-many").await?;
    let ended = pod
        .once(
            &c,
            &container_config("many", &image, &["/bin/seq", "1", "200000"]),
        )
        .await?;
    let mut expected = 0u64;
    for line in ended.text.lines() {
        expected += 1;
        expect!(line.parse::<u64>().ok(), Some(expected), "line {expected}");
    }
    expect!(expected, 200_000, "lines");
    pod.end().await
}

async fn rotation(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "log-rotation").await?;
    let script = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.005; done";
    let id = pod
        .start(&container_config("rotation", &image, &["/bin/sh", "-c", script]))
        .await?;
    let path = std::path::Path::new(&pod.config.log_directory).join("rotation.log");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let rotated = path.with_extension("log.1");
    std::fs::rename(&path, &rotated)?;
    let reopen = cri::ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    c.cri.runtime.clone().reopen_container_log(reopen).await?;
    c.cri.exited(&id, Duration::from_secs(20)).await?;
    let (before, after) = (
        std::fs::read_to_string(&rotated)?,
        std::fs::read_to_string(&path)?,
    );
    ensure!(
        !before.is_empty() && !after.is_empty(),
        "{} and {} bytes",
        before.len(),
        after.len()
    );
    let numbers: Vec<u32> = (before + &after)
        .lines()
        .filter_map(|l| l.rsplit(' ').next()?.parse().ok())
        .collect();
    expect!(numbers, (0..400).collect::<Vec<u32>>(), "lines over the rotation");
    pod.end().await
}

async fn deep_log_path(c: Arc<Context>) -> anyhow::Result<()> {
    let image = c.cri.pull(c.image("busybox")).await?;
    let pod = Pod::run(&c, "log-deep").await?;
    // Kubelet makes this directory before it creates the container.
    std::fs::create_dir_all(std::path::Path::new(&pod.config.log_directory).join("deep"))?;
    let mut config = container_config("deep", &image, &["/bin/echo", "deep"]);
    config.log_path = "deep/0.log".to_owned();
    expect!(pod.once(&c, &config).await?.text, "deep\n", "text");
    pod.end().await
}
