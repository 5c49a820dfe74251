//! ImageService.ListImages

use holdfast_cri_api::v1;

use super::wire_image;
use crate::Services;

pub fn call(services: &Services, request: v1::ListImagesRequest) -> v1::ListImagesResponse {
    let wanted = request.filter.and_then(|f| f.image).map(|image| image.image);
    let images = services.images.list(wanted.as_deref());
    v1::ListImagesResponse {
        images: images.iter().map(|image| wire_image(image)).collect(),
    }
}
