//! ImageService, one file per call.

mod image_fs_info;
mod image_status;
mod list_images;
mod pull_image;
mod remove_image;

use holdfast_cri_api::v1;
use holdfast_cri_api::v1::image_service_server::ImageService;
use holdfast_images::{Image, User};
use tonic::{Request, Response, Status};

pub use pull_image::{give_memory_back, pull_request};

use crate::batches::Batches;
use crate::{Services, call, error};

pub struct ImageCalls(pub Services);

#[tonic::async_trait]
impl ImageService for ImageCalls {
    type StreamImagesStream = Batches<v1::StreamImagesResponse>;

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Reply<v1::PullImageResponse> {
        let request = request.into_inner();
        let subject = name(request.image.as_ref());
        call::run("PullImage", &subject, None, pull_image::call(&self.0, request)).await
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Reply<v1::ImageStatusResponse> {
        let request = request.into_inner();
        let subject = name(request.image.as_ref());
        let work = async { image_status::call(&self.0, request) };
        call::run("ImageStatus", &subject, Some(call::READ), work).await
    }

    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Reply<v1::ListImagesResponse> {
        let work = async { Ok(list_images::call(&self.0, request.into_inner())) };
        call::run("ListImages", "", Some(call::READ), work).await
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Reply<Self::StreamImagesStream> {
        let work = async { Ok(list_images::stream(&self.0, request.into_inner())) };
        call::run("StreamImages", "", Some(call::READ), work).await
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Reply<v1::RemoveImageResponse> {
        let request = request.into_inner();
        let subject = name(request.image.as_ref());
        call::run(
            "RemoveImage",
            &subject,
            Some(call::CHANGE),
            remove_image::call(&self.0, request),
        )
        .await
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Reply<v1::ImageFsInfoResponse> {
        let work = async { Ok(image_fs_info::call(&self.0)) };
        call::run("ImageFsInfo", "", Some(call::READ), work).await
    }
}

type Reply<T> = Result<Response<T>, Status>;

fn name(image: Option<&v1::ImageSpec>) -> String {
    image.map(|image| image.image.clone()).unwrap_or_default()
}

/// The reference of a request; every call but a list needs one.
fn reference(image: Option<v1::ImageSpec>) -> Result<String, Status> {
    let image = image.ok_or_else(|| error::missing("image"))?.image;
    if image.is_empty() {
        return Err(error::missing("image.image"));
    }
    Ok(image)
}

fn wire_image(image: &Image) -> v1::Image {
    let (uid, username) = match &image.user {
        Some(User::Uid(uid)) => (Some(v1::Int64Value { value: *uid }), String::new()),
        Some(User::Name(name)) => (None, name.clone()),
        None => (None, String::new()),
    };
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(v1::ImageSpec {
            image: image.id.to_string(),
            ..Default::default()
        }),
        pinned: image.pinned,
    }
}
