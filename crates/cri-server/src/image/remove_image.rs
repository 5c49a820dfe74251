//! ImageService.RemoveImage. What is not here is removed already.

use holdfast_cri_api::v1;
use tonic::Status;

use super::reference;
use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, Status> {
    let reference = reference(request.image)?;
    services.images.remove(&reference).await.map_err(error::images)?;
    Ok(v1::RemoveImageResponse {})
}
