//! `holdfast exec`: one command to its end, without a terminal.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use holdfast_cri_api::v1;
use tonic::{Code, Request};

use crate::args::Exec;
use crate::client::{Client, told};
use crate::find;

/// What timeout(1) answers.
const TIMED_OUT: u8 = 124;

pub async fn run(mut client: Client, options: Exec) -> Result<ExitCode> {
    let container = find::container(&mut client, &options.container).await?;
    let limit = options.time_limit.unwrap_or_default();
    let seconds = limit.as_secs() + u64::from(limit.subsec_nanos() > 0);
    let message = v1::ExecSyncRequest {
        container_id: container.id,
        cmd: options.command,
        timeout: i64::try_from(seconds).context("the time limit is too long")?,
    };
    let request = match options.time_limit {
        Some(limit) => client.request_with(message, limit),
        None => Request::new(message),
    };
    let reply = match client.runtime.exec_sync(request).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if status.code() == Code::DeadlineExceeded && options.time_limit.is_some() => {
            eprintln!("holdfast: the command was killed: it ran longer than {limit:?}");
            return Ok(ExitCode::from(TIMED_OUT));
        }
        Err(status) => return Err(told(status)),
    };
    std::io::stdout().write_all(&reply.stdout)?;
    std::io::stdout().flush()?;
    std::io::stderr().write_all(&reply.stderr)?;
    Ok(ExitCode::from(u8::try_from(reply.exit_code).unwrap_or(u8::MAX)))
}
