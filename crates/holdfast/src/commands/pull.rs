//! `holdfast pull`: with a bar where the runtime is holdfast, with the seconds that pass where it is another.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use holdfast_cri_api::{admin, v1};
use tonic::Code;

use crate::args::{Format, Pull};
use crate::client::{Client, told};
use crate::output;

const BAR: usize = 30;

pub async fn run(mut client: Client, format: Format, options: Pull) -> Result<()> {
    let request = v1::PullImageRequest {
        image: Some(v1::ImageSpec {
            image: options.image,
            runtime_handler: options.runtime,
            ..Default::default()
        }),
        auth: credentials(options.creds, options.creds_file.as_deref())?,
        sandbox_config: None,
    };
    let id = pull(&mut client, request, options.quiet).await?;
    match format {
        Format::Json => output::print(&serde_json::json!({ "imageRef": id })),
        Format::Table => output::line(id),
    }
}

/// Pulls and gives the image's id. Progress goes to standard error, and only to a terminal.
pub async fn pull(client: &mut Client, request: v1::PullImageRequest, quiet: bool) -> Result<String> {
    let show = !quiet && std::io::stderr().is_terminal();
    match client.admin.pull_image(request.clone()).await {
        Ok(stream) => follow(stream.into_inner(), show).await,
        Err(status) if status.code() == Code::Unimplemented => wait(client, request, show).await,
        Err(status) => Err(told(status)),
    }
}

async fn follow(mut stream: tonic::Streaming<admin::PullProgress>, show: bool) -> Result<String> {
    let start = Instant::now();
    loop {
        let progress = match stream.message().await {
            Ok(Some(progress)) => progress,
            end => {
                clear(show);
                end.map_err(told)?;
                bail!("the runtime ended the pull without a result");
            }
        };
        if !progress.image_ref.is_empty() {
            clear(show);
            return Ok(progress.image_ref);
        }
        if show {
            eprint!("\r\x1b[K{}", bar(&progress, start.elapsed()));
            let _ = std::io::stderr().flush();
        }
    }
}

async fn wait(client: &mut Client, request: v1::PullImageRequest, show: bool) -> Result<String> {
    let start = Instant::now();
    let name = request
        .image
        .as_ref()
        .map(|i| i.image.clone())
        .unwrap_or_default();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let call = client.image.pull_image(request);
    tokio::pin!(call);
    let reply = loop {
        tokio::select! {
            reply = &mut call => break reply,
            _ = tick.tick(), if show => {
                eprint!("\r\x1b[Kpulling {name} … {} s", start.elapsed().as_secs());
                let _ = std::io::stderr().flush();
            }
        }
    };
    clear(show);
    Ok(reply.map_err(told)?.into_inner().image_ref)
}

fn clear(show: bool) {
    if show {
        eprint!("\r\x1b[K");
    }
}

fn bar(progress: &admin::PullProgress, elapsed: Duration) -> String {
    if progress.bytes == 0 {
        return "resolving …".to_owned();
    }
    let done = progress.bytes_done.min(progress.bytes);
    let part = done as f64 / progress.bytes as f64;
    let filled = (part * BAR as f64) as usize;
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    format!(
        "[{}{}] {:3.0}%  {}/{}  {} of {} layers  {}/s",
        "█".repeat(filled),
        "·".repeat(BAR - filled.min(BAR)),
        part * 100.0,
        output::size(done),
        output::size(progress.bytes),
        progress.layers_done,
        progress.layers,
        output::size(rate as u64),
    )
}

/// `USER:PASSWORD`, given or in a file.
fn credentials(given: Option<String>, file: Option<&std::path::Path>) -> Result<Option<v1::AuthConfig>> {
    let text = match (given, file) {
        (Some(text), _) => text,
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        (None, None) => return Ok(None),
    };
    let Some((username, password)) = text.trim_end_matches(['\r', '\n']).split_once(':') else {
        bail!("credentials are written USER:PASSWORD");
    };
    Ok(Some(v1::AuthConfig {
        username: username.to_owned(),
        password: password.to_owned(),
        ..Default::default()
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bar() {
        let progress = admin::PullProgress {
            layers: 4,
            layers_done: 1,
            bytes: 2_000_000,
            bytes_done: 1_000_000,
            image_ref: String::new(),
        };
        assert_eq!(
            bar(&progress, Duration::from_secs(2)),
            "[███████████████···············]  50%  1.00MB/2.00MB  1 of 4 layers  500kB/s"
        );
        assert_eq!(
            bar(&admin::PullProgress::default(), Duration::ZERO),
            "resolving …"
        );
    }

    #[test]
    fn passwords_may_hold_colons() {
        let auth = credentials(Some("me:a:b".into()), None).unwrap().unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "a:b"));
        assert!(credentials(Some("nobody".into()), None).is_err());
    }
}
