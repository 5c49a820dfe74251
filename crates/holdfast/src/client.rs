//! The way to a runtime: connecting to its socket, and saying what went wrong in words that help.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use holdfast_cri_api::admin::admin_client::AdminClient;
use holdfast_cri_api::v1::image_service_client::ImageServiceClient;
use holdfast_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use holdfast_cri_api::{MAX_MESSAGE, v1};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Clients of the services behind one socket.
#[derive(Debug, Clone)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub image: ImageServiceClient<Channel>,
    /// holdfast's own; other runtimes answer UNIMPLEMENTED.
    pub admin: AdminClient<Channel>,
    timeout: Duration,
}

impl Client {
    /// Connects at once, so that what is wrong with the socket is told before anything else is tried.
    pub async fn connect(endpoint: &str, timeout: Duration) -> Result<Self> {
        let path = socket_path(endpoint)?;
        let stream = UnixStream::connect(&path)
            .await
            .map_err(|e| unreachable(&path, &e))?;
        // The first connection is the one just made; tonic asks again only if it breaks.
        let mut first = Some(stream);
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                let first = first.take();
                async move {
                    let stream = match first {
                        Some(stream) => stream,
                        None => UnixStream::connect(path).await?,
                    };
                    Ok::<_, std::io::Error>(TokioIo::new(stream))
                }
            }))
            .await
            .with_context(|| format!("{endpoint} does not speak gRPC"))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            admin: AdminClient::new(channel),
            timeout,
        })
    }

    /// A request with the time limit of the command line.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    /// A request whose own time limit counts on top.
    pub fn request_with<T>(&self, message: T, extra: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout.saturating_add(extra));
        request
    }

    pub async fn pods(&mut self, filter: v1::PodSandboxFilter) -> Result<Vec<v1::PodSandbox>> {
        let request = self.request(v1::ListPodSandboxRequest { filter: Some(filter) });
        let reply = self.runtime.list_pod_sandbox(request).await.map_err(told)?;
        Ok(reply.into_inner().items)
    }

    pub async fn containers(&mut self, filter: v1::ContainerFilter) -> Result<Vec<v1::Container>> {
        let request = self.request(v1::ListContainersRequest { filter: Some(filter) });
        let reply = self.runtime.list_containers(request).await.map_err(told)?;
        Ok(reply.into_inner().containers)
    }

    pub async fn container_status(&mut self, id: &str) -> Result<v1::ContainerStatus> {
        let request = self.request(v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        });
        let reply = self.runtime.container_status(request).await.map_err(told)?;
        reply
            .into_inner()
            .status
            .ok_or_else(|| anyhow!("the runtime's answer holds no status of container {id}"))
    }
}

/// `unix:///path`, `unix:/path` or `/path`.
fn socket_path(endpoint: &str) -> Result<PathBuf> {
    let path = match endpoint.strip_prefix("unix:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => endpoint,
    };
    if !path.starts_with('/') {
        bail!("{endpoint:?} is no endpoint: `unix:///path/to.sock` is wanted");
    }
    Ok(PathBuf::from(path))
}

fn unreachable(path: &Path, error: &std::io::Error) -> anyhow::Error {
    let path = path.display();
    match error.kind() {
        ErrorKind::NotFound => anyhow!(
            "there is no socket {path}: is the server running? Start it with `holdfast serve`, or name another \
             runtime's socket with --runtime-endpoint or CONTAINER_RUNTIME_ENDPOINT"
        ),
        ErrorKind::ConnectionRefused => anyhow!(
            "nobody listens on {path}: the server that made it has died. Start it again (`holdfast serve`); pods that \
             ran go on running"
        ),
        ErrorKind::PermissionDenied => anyhow!("{path} is for root only: run this as root"),
        _ => anyhow!("cannot connect to {path}: {error}"),
    }
}

/// What the runtime said, with the name of the code that programs look for.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub fn told(status: Status) -> anyhow::Error {
    let said = status.message();
    match status.code() {
        Code::DeadlineExceeded | Code::Cancelled if said.is_empty() || said.contains("Timeout expired") => {
            anyhow!("the runtime did not answer in time; --timeout allows more")
        }
        Code::Unimplemented if said.is_empty() => anyhow!("the runtime does not know this call"),
        // Only what our own side of the connection says has a cause; "unavailable" can be the runtime's answer too.
        Code::Unavailable | Code::Unknown | Code::Internal
            if std::error::Error::source(&status).is_some() =>
        {
            anyhow!("the connection to the runtime broke: {said}")
        }
        code => anyhow!("{said} ({code:?})"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn endpoints() {
        for text in ["unix:///run/x.sock", "unix:/run/x.sock", "/run/x.sock"] {
            assert_eq!(socket_path(text).unwrap(), Path::new("/run/x.sock"));
        }
        for text in ["tcp://1.2.3.4:5", "x.sock", ""] {
            assert!(socket_path(text).is_err());
        }
    }

    #[test]
    fn a_missing_socket_says_what_to_do() {
        let text = unreachable(Path::new("/x"), &ErrorKind::NotFound.into()).to_string();
        assert!(text.contains("holdfast serve") && text.contains("CONTAINER_RUNTIME_ENDPOINT"));
    }
}
