//! Admin.LoadImage

use std::path::Path;

use holdfast_cri_api::admin::{LoadImageRequest, LoadImageResponse, LoadedImage};
use holdfast_model::Invalid;
use tonic::Status;

use crate::{Services, error};

pub async fn call(services: &Services, request: LoadImageRequest) -> Result<LoadImageResponse, Status> {
    let path = Path::new(&request.path);
    if !path.is_absolute() || request.path.contains('\0') {
        return Err(error::invalid(Invalid::new("path", "an absolute path is wanted")));
    }
    let tag = Some(request.tag.as_str()).filter(|tag| !tag.is_empty());
    let ids = services
        .images
        .load_archive(path, tag)
        .await
        .map_err(error::images)?;
    let images = ids
        .into_iter()
        .map(|id| {
            let id = id.to_string();
            let tags = services.images.get(&id).map(|image| image.repo_tags.clone());
            LoadedImage {
                id,
                tags: tags.unwrap_or_default(),
            }
        })
        .collect();
    Ok(LoadImageResponse { images })
}
