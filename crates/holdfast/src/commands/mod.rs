//! The operator's commands: one file each.

mod exec;
mod image;
mod images;
mod inspect;
mod logs;
mod pods;
mod ps;
mod pull;
mod rm;
mod run;
mod run_spec;
mod status;
mod stop;
mod upgrade_monitors;
mod version;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::args::{Command, Format, Global};
use crate::client::Client;

pub fn run(global: &Global, command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    runtime.block_on(async {
        // Of all commands only this one has something to say when there is no server.
        if matches!(command, Command::Version) {
            return version::run(global).await;
        }
        let client = Client::connect(&global.runtime_endpoint, global.timeout).await?;
        dispatch(client, global.output, command).await
    })
}

async fn dispatch(client: Client, output: Format, command: Command) -> Result<ExitCode> {
    match command {
        Command::Pods(options) => pods::run(client, output, options).await?,
        Command::Ps(options) => ps::run(client, output, options).await?,
        Command::Images(options) => images::run(client, output, options).await?,
        Command::Pull(options) => pull::run(client, output, options).await?,
        Command::Image(options) => image::run(client, output, options).await?,
        Command::Run(options) => run::run(client, output, *options).await?,
        Command::Exec(options) => return exec::run(client, options).await,
        Command::Logs(options) => logs::run(client, options).await?,
        Command::Stop(options) => return stop::run(client, options).await,
        Command::Rm(options) => return rm::run(client, options).await,
        Command::Inspect(options) => inspect::run(client, options).await?,
        Command::Status => status::run(client, output).await?,
        Command::UpgradeMonitors => return upgrade_monitors::run(client, output).await,
        // Before there was a client.
        Command::Serve(_)
        | Command::HoldUserNamespace
        | Command::Version
        | Command::Config(_)
        | Command::Doctor(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Labels of the command line; the last of one key wins.
fn labels(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}

/// Does `act` for each, tells what failed, and goes on.
async fn each<F>(ids: Vec<String>, mut act: impl FnMut(String) -> F) -> ExitCode
where
    F: Future<Output = Result<String>>,
{
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match act(id).await.and_then(crate::output::line) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("holdfast: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
