//! The operator's own calls.

mod load_image;
mod pull_image;
mod upgrade_monitors;

use holdfast_cri_api::admin::{
    LoadImageRequest, LoadImageResponse, UpgradeMonitorsRequest, UpgradeMonitorsResponse, admin_server,
};
use holdfast_cri_api::v1::PullImageRequest;
use tonic::{Request, Response, Status};

use crate::{Services, call};

pub struct Admin(pub Services);

#[tonic::async_trait]
impl admin_server::Admin for Admin {
    type PullImageStream = pull_image::Stream;

    async fn load_image(
        &self,
        request: Request<LoadImageRequest>,
    ) -> Result<Response<LoadImageResponse>, Status> {
        let request = request.into_inner();
        let subject = request.path.clone();
        call::run("LoadImage", &subject, None, load_image::call(&self.0, request)).await
    }

    async fn pull_image(
        &self,
        request: Request<PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        pull_image::call(&self.0, request.into_inner()).map(Response::new)
    }

    async fn upgrade_monitors(
        &self,
        request: Request<UpgradeMonitorsRequest>,
    ) -> Result<Response<UpgradeMonitorsResponse>, Status> {
        let work = upgrade_monitors::call(&self.0, request.into_inner());
        call::run("UpgradeMonitors", "", None, work).await
    }
}
