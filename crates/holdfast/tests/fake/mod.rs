//! A runtime of a few lines.

use std::convert::Infallible;
use std::future::Ready;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use holdfast_cri_api::v1;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

pub const CONTAINER: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// Lives as long as the test's process.
pub struct Fake {
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Fake {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, socket) = (dir.path().join("0.log"), dir.path().join("cri.sock"));
        std::fs::write(&log, "T stdout F one\nT stdout F two\nT stderr F three\n").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let answers = Arc::new(Answers { log });
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tonic::transport::Server::builder()
                    .add_service(Runtime(Arc::clone(&answers)))
                    .add_service(Image)
                    .serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener))
                    .await
                    .unwrap();
            });
        });
        Self { socket, _dir: dir }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

struct Answers {
    log: PathBuf,
}

impl Answers {
    fn list(&self) -> v1::ListContainersResponse {
        v1::ListContainersResponse {
            containers: vec![v1::Container {
                id: CONTAINER.into(),
                metadata: Some(v1::ContainerMetadata {
                    name: "web".into(),
                    attempt: 0,
                }),
                state: v1::ContainerState::ContainerRunning.into(),
                created_at: 1,
                ..Default::default()
            }],
        }
    }

    fn status(&self) -> v1::ContainerStatusResponse {
        v1::ContainerStatusResponse {
            status: Some(v1::ContainerStatus {
                id: CONTAINER.into(),
                log_path: self.log.to_str().unwrap().into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// One function as a gRPC method.
struct Method<F>(F);

impl<F, Req, Res> UnaryService<Req> for Method<F>
where
    F: Fn(Req) -> Res,
{
    type Response = Res;
    type Future = Ready<Result<Response<Res>, Status>>;

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        std::future::ready(Ok(Response::new((self.0)(request.into_inner()))))
    }
}

async fn answer<Req, Res>(request: http::Request<Body>, with: impl Fn(Req) -> Res) -> http::Response<Body>
where
    Req: prost::Message + Default + 'static,
    Res: prost::Message + Default + 'static,
{
    Grpc::new(ProstCodec::<Res, Req>::default())
        .unary(Method(with), request)
        .await
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

#[derive(Clone)]
struct Runtime(Arc<Answers>);

impl NamedService for Runtime {
    const NAME: &'static str = "runtime.v1.RuntimeService";
}

impl tower::Service<http::Request<Body>> for Runtime {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let answers = Arc::clone(&self.0);
        Box::pin(async move {
            Ok(match request.uri().path().rsplit('/').next() {
                Some("ListPodSandbox") => {
                    answer(request, |_: v1::ListPodSandboxRequest| {
                        v1::ListPodSandboxResponse::default()
                    })
                    .await
                }
                Some("ListContainers") => {
                    answer(request, |_: v1::ListContainersRequest| answers.list()).await
                }
                Some("ContainerStatus") => {
                    answer(request, |_: v1::ContainerStatusRequest| answers.status()).await
                }
                Some("ExecSync") => {
                    answer(request, |exec: v1::ExecSyncRequest| v1::ExecSyncResponse {
                        stdout: format!("{}\n", exec.cmd.join(" ")).into_bytes(),
                        stderr: b"on the other stream\n".to_vec(),
                        exit_code: 3,
                    })
                    .await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}

#[derive(Clone)]
struct Image;

impl NamedService for Image {
    const NAME: &'static str = "runtime.v1.ImageService";
}

impl tower::Service<http::Request<Body>> for Image {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        Box::pin(async move {
            Ok(match request.uri().path().rsplit('/').next() {
                Some("PullImage") => {
                    answer(request, |pull: v1::PullImageRequest| v1::PullImageResponse {
                        image_ref: format!("sha256:pulled-{}", pull.image.unwrap().image),
                    })
                    .await
                }
                _ => Status::unimplemented("").into_http(),
            })
        })
    }
}
