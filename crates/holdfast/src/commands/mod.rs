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
use tokio::task::JoinSet;

use crate::args::{Command, Format, Global};
use crate::client::Client;
use crate::find::{Thing, Things};

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

/// How many pods or containers are acted on at once: each may take as long as its program takes to end.
const AT_ONCE: usize = 16;

/// What was typed, and what it means.
type Wanted = (String, Result<Thing>);

fn named(things: Vec<Thing>) -> Vec<Wanted> {
    let one = |thing: Thing| (thing.id().to_owned(), Ok(thing));
    things.into_iter().map(one).collect()
}

fn look_up(things: &Things, ids: Vec<String>) -> Vec<Wanted> {
    let one = |id: String| {
        let found = things.find(&id);
        (id, found)
    };
    ids.into_iter().map(one).collect()
}

/// Acts on every one of them, several at a time, and says which it was as soon as it is done. One that fails keeps nobody from the rest.
async fn each<F>(wanted: Vec<Wanted>, mut act: impl FnMut(Thing) -> F) -> ExitCode
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (mut code, mut running) = (ExitCode::SUCCESS, JoinSet::new());
    let mut told = |done: Result<String>| {
        if let Err(error) = done.and_then(crate::output::line) {
            eprintln!("holdfast: {error:#}");
            code = ExitCode::FAILURE;
        }
    };
    for (text, found) in wanted {
        if running.len() >= AT_ONCE
            && let Some(done) = running.join_next().await
        {
            told(done.unwrap_or_else(|error| Err(error.into())));
        }
        match found {
            Ok(thing) => {
                let acting = act(thing);
                running.spawn(async move { acting.await.map(|()| text) });
            }
            Err(error) => told(Err(error)),
        }
    }
    while let Some(done) = running.join_next().await {
        told(done.unwrap_or_else(|error| Err(error.into())));
    }
    code
}
