//! ImageService.ListImages and StreamImages

use std::sync::Arc;

use holdfast_cri_api::v1;
use holdfast_images::Image;

use super::wire_image;
use crate::Services;
use crate::batches::{self, Batches};

pub fn call(services: &Services, request: v1::ListImagesRequest) -> v1::ListImagesResponse {
    let images = find(services, request.filter);
    v1::ListImagesResponse {
        images: images.iter().map(|image| wire_image(image)).collect(),
    }
}

pub fn stream(services: &Services, request: v1::StreamImagesRequest) -> Batches<v1::StreamImagesResponse> {
    batches::stream(
        find(services, request.filter),
        |image| wire_image(image),
        |images| v1::StreamImagesResponse { images },
    )
}

fn find(services: &Services, filter: Option<v1::ImageFilter>) -> Vec<Arc<Image>> {
    let wanted = filter.and_then(|f| f.image).map(|image| image.image);
    services.images.list(wanted.as_deref())
}
