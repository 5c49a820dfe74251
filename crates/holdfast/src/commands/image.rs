//! `holdfast image load` and `holdfast image rm`

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use holdfast_cri_api::{admin, v1};
use tonic::Code;

use crate::args::{Format, Image};
use crate::client::{Client, told};
use crate::output;

pub async fn run(client: Client, format: Format, options: Image) -> Result<()> {
    match options {
        Image::Load { path, tag } => load(client, format, &path, tag).await,
        Image::Rm { images } => remove(client, images).await,
    }
}

async fn load(mut client: Client, format: Format, path: &Path, tag: Option<String>) -> Result<()> {
    // The server opens the file: it wants a path that means the same to it.
    let spooled;
    let path = if path == Path::new("-") {
        spooled = spool()?;
        spooled.path().to_owned()
    } else {
        std::fs::canonicalize(path).with_context(|| format!("cannot find {}", path.display()))?
    };
    let request = admin::LoadImageRequest {
        path: text(path)?,
        tag: tag.unwrap_or_default(),
    };
    let reply = client.admin.load_image(request).await.map_err(|status| {
        if status.code() == Code::Unimplemented {
            anyhow::anyhow!("this runtime is not holdfast and cannot load archives through its socket")
        } else {
            told(status)
        }
    })?;
    let images = reply.into_inner().images;
    match format {
        Format::Json => {
            let list: Vec<_> = images
                .iter()
                .map(|image| serde_json::json!({ "id": image.id, "repoTags": image.tags }))
                .collect();
            output::print(&serde_json::json!({ "images": list }))
        }
        Format::Table => {
            for image in images {
                output::line(format_args!("{}  {}", image.id, image.tags.join(" ")))?;
            }
            Ok(())
        }
    }
}

/// Standard input as a file, gone when dropped.
fn spool() -> Result<tempfile::NamedTempFile> {
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        bail!("an archive is wanted on standard input, and that is a terminal");
    }
    // Not /tmp: it is often memory, and images are large.
    let mut file = tempfile::NamedTempFile::new_in("/var/tmp").context("cannot make a file in /var/tmp")?;
    std::io::copy(&mut input, &mut file).context("cannot copy standard input to a file")?;
    Ok(file)
}

fn text(path: PathBuf) -> Result<String> {
    path.into_os_string()
        .into_string()
        .map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

async fn remove(mut client: Client, images: Vec<String>) -> Result<()> {
    for image in images {
        let spec = Some(v1::ImageSpec {
            image: image.clone(),
            ..Default::default()
        });
        let request = client.request(v1::ImageStatusRequest {
            image: spec.clone(),
            verbose: false,
        });
        let status = client
            .image
            .image_status(request)
            .await
            .map_err(told)?
            .into_inner();
        if status.image.is_none() {
            bail!("there is no image {image:?}");
        }
        let request = client.request(v1::RemoveImageRequest { image: spec });
        client.image.remove_image(request).await.map_err(told)?;
        output::line(image)?;
    }
    Ok(())
}
