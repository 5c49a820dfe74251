//! ImageService.ImageStatus. What is not here is an empty answer.

use std::collections::BTreeMap;

use holdfast_cri_api::v1;
use holdfast_images::Image;
use tonic::Status;

use super::{reference, wire_image};
use crate::Services;

pub fn call(services: &Services, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, Status> {
    let found = services.images.get(&reference(request.image)?);
    Ok(v1::ImageStatusResponse {
        image: found.as_ref().map(|image| wire_image(image)),
        info: match found {
            Some(image) if request.verbose => info(&image),
            _ => BTreeMap::new(),
        },
    })
}

/// `imageSpec` is the OCI configuration, `chainID` that of the top layer: the names that crictl's users know.
fn info(image: &Image) -> BTreeMap<String, String> {
    let info = serde_json::json!({
        "chainID": image.layers.last().map(ToString::to_string),
        "imageSpec": image.config,
        "labels": image.config.config().as_ref().and_then(|config| config.labels().clone()),
        "layers": image.layers.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    BTreeMap::from([("info".to_owned(), info.to_string())])
}
