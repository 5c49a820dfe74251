//! `holdfast version`

use std::process::ExitCode;

use anyhow::Result;
use holdfast_cri_api::v1;

use crate::args::{Format, Global};
use crate::client::{Client, told};
use crate::output;

pub async fn run(global: &Global) -> Result<ExitCode> {
    let server = server(global).await;
    if global.output == Format::Json {
        let value = match &server {
            Ok(reply) => output::message("VersionResponse", reply)?,
            Err(_) => serde_json::Value::Null,
        };
        output::print(&serde_json::json!({ "client": env!("CARGO_PKG_VERSION"), "server": value }))?;
    } else {
        output::line(concat!("holdfast ", env!("CARGO_PKG_VERSION")))?;
        if let Ok(reply) = &server {
            output::line(format_args!(
                "runtime  {} {}, CRI {}",
                reply.runtime_name, reply.runtime_version, reply.runtime_api_version
            ))?;
        }
    }
    // Our own version was asked for and told; that there is no server is worth a word and a code.
    if let Err(error) = server {
        eprintln!("holdfast: {error:#}");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

async fn server(global: &Global) -> Result<v1::VersionResponse> {
    let mut client = Client::connect(&global.runtime_endpoint, global.timeout).await?;
    let request = client.request(v1::VersionRequest {
        version: "v1".to_owned(),
    });
    Ok(client.runtime.version(request).await.map_err(told)?.into_inner())
}
