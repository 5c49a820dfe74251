//! `kubectl logs`: the runtime's log file without its prefixes, as kubelet serves it.

use std::time::Duration;

use anyhow::Context as _;
use k8s_cri::v1 as cri;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::http::Request;
use super::{Failure, answers, reply};
use crate::cri::Cri;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(50);

pub async fn send(
    mut connection: TcpStream,
    cri: &Cri,
    request: &Request,
    namespace: &str,
    pod: &str,
) -> anyhow::Result<()> {
    let status = match status(cri, request, namespace, pod).await {
        Ok(status) => status,
        Err(failure) => return reply(&mut connection, Err(failure)).await,
    };
    let file = tokio::fs::File::open(&status.log_path)
        .await
        .with_context(|| format!("open the log {}", status.log_path))?;
    // Without a length: the end of the connection is the end of the log.
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n";
    connection.write_all(head.as_bytes()).await?;
    let (mut lines, mut line) = (BufReader::new(file), Vec::new());
    loop {
        // Asked before the file is read: what an ended container wrote is all there.
        let ended = !request.flag("follow")
            || cri.status(&status.id).await?.state() != cri::ContainerState::ContainerRunning;
        while lines.read_until(b'\n', &mut line).await? > 0 && line.ends_with(b"\n") {
            connection.write_all(&text(&line)).await?;
            line.clear();
        }
        if ended {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn status(
    cri: &Cri,
    request: &Request,
    namespace: &str,
    pod: &str,
) -> Result<cri::ContainerStatus, Failure> {
    let sandbox = answers::sandbox(cri, namespace, pod).await?;
    let container = answers::container(cri, &sandbox, request.first("container")).await?;
    Ok(cri.status(&container.id).await?)
}

/// `time stream tag text`; a line tagged P goes on in the next.
fn text(line: &[u8]) -> Vec<u8> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (tag, text) = (parts.nth(2).unwrap_or_default(), parts.next().unwrap_or_default());
    match text.strip_suffix(b"\n") {
        Some(part) if tag == b"P" => part.to_vec(),
        _ => text.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_go_and_partial_lines_join() {
        assert_eq!(text(b"2026-01-01T00:00:00Z stdout F a line\n"), b"a line\n");
        assert_eq!(text(b"2026-01-01T00:00:00Z stderr P half\n"), b"half");
        assert_eq!(text(b"2026-01-01T00:00:00Z stdout F \n"), b"\n");
    }
}
