//! `holdfast upgrade-monitors`: what a package's post-installation script calls after the daemon's restart.

use std::process::ExitCode;

use anyhow::Result;
use holdfast_cri_api::admin;
use tonic::Code;

use crate::args::Format;
use crate::client::{Client, told};
use crate::output::{self, Table};

pub async fn run(mut client: Client, format: Format) -> Result<ExitCode> {
    let request = admin::UpgradeMonitorsRequest {};
    let reply = client.admin.upgrade_monitors(request).await.map_err(|status| {
        if status.code() == Code::Unimplemented {
            anyhow::anyhow!("this runtime is not holdfast and has no monitors")
        } else {
            told(status)
        }
    })?;
    let monitors = reply.into_inner().monitors;
    let all = monitors.iter().all(|monitor| monitor.error.is_empty());
    if format == Format::Json {
        let list: Vec<_> = monitors
            .iter()
            .map(|monitor| serde_json::json!({ "podSandboxId": monitor.pod_sandbox_id, "error": monitor.error }))
            .collect();
        output::print(&serde_json::json!({ "monitors": list }))?;
    } else {
        let mut table = Table::new(&["POD", "MONITOR"]);
        for monitor in monitors {
            let outcome = if monitor.error.is_empty() {
                "upgraded".to_owned()
            } else {
                format!("as it was: {}", monitor.error)
            };
            table.row([monitor.pod_sandbox_id.chars().take(13).collect(), outcome]);
        }
        table.print()?;
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
