//! `holdfast status`

use anyhow::Result;
use holdfast_cri_api::v1;

use crate::args::Format;
use crate::client::{Client, told};
use crate::output::{self, Table};

pub async fn run(mut client: Client, format: Format) -> Result<()> {
    let request = client.request(v1::StatusRequest { verbose: true });
    let reply = client.runtime.status(request).await.map_err(told)?.into_inner();
    if format == Format::Json {
        return output::print(&output::message("StatusResponse", &reply)?);
    }
    let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for condition in reply.status.unwrap_or_default().conditions {
        table.row([
            condition.r#type,
            if condition.status { "yes" } else { "NO" }.to_owned(),
            condition.reason,
            condition.message,
        ]);
    }
    table.print()?;
    output::line("")?;
    let mut table = Table::new(&["RUNTIME HANDLER", "RECURSIVE READ-ONLY", "USER NAMESPACES"]);
    for handler in reply.runtime_handlers {
        let features = handler.features.unwrap_or_default();
        let yes = |has: bool| if has { "yes" } else { "no" }.to_owned();
        table.row([
            if handler.name.is_empty() {
                "(default)".to_owned()
            } else {
                handler.name
            },
            yes(features.recursive_read_only_mounts),
            yes(features.user_namespaces),
        ]);
    }
    table.print()?;
    Ok(())
}
