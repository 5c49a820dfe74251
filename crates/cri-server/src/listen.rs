//! The gRPC server on its socket.

use std::time::Duration;

use holdfast_cri_api::admin::admin_server::AdminServer;
use holdfast_cri_api::v1::image_service_server::ImageServiceServer;
use holdfast_cri_api::v1::runtime_service_server::RuntimeServiceServer;
use holdfast_cri_api::{DESCRIPTORS, MAX_MESSAGE};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::Services;
use crate::admin::Admin;
use crate::deadline::Deadline;
use crate::image::ImageCalls;
use crate::runtime::{RuntimeCalls, Subscribers};

/// Calls that one connection may have in flight: kubelet and its probes use one connection for everything.
const CALLS_PER_CONNECTION: u32 = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the built-in description of the API cannot be read")]
    Reflection {
        #[source]
        source: tonic_reflection::server::Error,
    },
    #[error("the gRPC server failed")]
    Serve {
        #[source]
        source: tonic::transport::Error,
    },
}

/// Answers on `listener` until `shutdown` resolves, then lets calls in flight end for as long as `drain`.
pub async fn serve(
    listener: UnixListener,
    services: Services,
    shutdown: impl Future<Output = ()>,
    drain: Duration,
) -> Result<(), Error> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(|source| Error::Reflection { source })?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let stopping = tokio_util::sync::CancellationToken::new();
    let subscribers = Subscribers::new(stopping.clone());
    let runtime = RuntimeServiceServer::new(RuntimeCalls(services.clone(), subscribers))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let image = ImageServiceServer::new(ImageCalls(services.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    health.set_serving::<RuntimeServiceServer<RuntimeCalls>>().await;
    health.set_serving::<ImageServiceServer<ImageCalls>>().await;

    // Streams of events end with it: a drain would wait for them for ever.
    let told = stopping.clone();
    let server = Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .layer(tower::layer::layer_fn(Deadline))
        .add_service(runtime)
        .add_service(image)
        .add_service(AdminServer::new(Admin(services)))
        .add_service(health_service)
        .add_service(reflection)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            told.cancelled().await;
        });
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.map_err(|source| Error::Serve { source }),
        () = shutdown => stopping.cancel(),
    }
    // What does not end now is cut off; pods do not notice, and a client repeats its call to our successor.
    match tokio::time::timeout(drain, server).await {
        Ok(ended) => ended.map_err(|source| Error::Serve { source }),
        Err(_) => {
            tracing::warn!(
                ?drain,
                "calls were still in flight when the time to stop had passed"
            );
            Ok(())
        }
    }
}
