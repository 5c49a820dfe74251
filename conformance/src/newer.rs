//! What is newer than `k8s-cri` (Kubernetes 1.32): a container's mounts and stop signal as CRI 1.37 has them.
//!
//! The messages are written down here; a request is the old one's bytes with the new fields after them, which protobuf
//! merges. Field numbers are those of CRI.

use std::collections::HashMap;

use k8s_cri::v1 as cri;
use prost::Message as _;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;

use crate::cri::Cri;

#[derive(Clone, PartialEq, prost::Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
    #[prost(map = "string, string", tag = "2")]
    pub annotations: HashMap<String, String>,
    #[prost(string, tag = "18")]
    pub user_specified_image: String,
    #[prost(string, tag = "19")]
    pub runtime_handler: String,
    #[prost(string, tag = "20")]
    pub image_ref: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(bool, tag = "3")]
    pub readonly: bool,
    #[prost(int32, tag = "5")]
    pub propagation: i32,
    #[prost(message, repeated, tag = "6")]
    pub uid_mappings: Vec<cri::IdMapping>,
    #[prost(message, repeated, tag = "7")]
    pub gid_mappings: Vec<cri::IdMapping>,
    #[prost(bool, tag = "8")]
    pub recursive_read_only: bool,
    #[prost(message, optional, tag = "9")]
    pub image: Option<ImageSpec>,
    #[prost(string, tag = "10")]
    pub image_sub_path: String,
    #[prost(string, repeated, tag = "11")]
    pub mount_options: Vec<String>,
}

/// What is added to a `ContainerConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Extra {
    #[prost(message, repeated, tag = "7")]
    pub mounts: Vec<Mount>,
    /// The CRI's own numbers: 0 is the runtime's default.
    #[prost(int32, tag = "18")]
    pub stop_signal: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateExtra {
    #[prost(message, optional, tag = "2")]
    config: Option<Extra>,
}

/// The new part of a `ContainerStatus`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StatusExtra {
    #[prost(message, repeated, tag = "14")]
    pub mounts: Vec<Mount>,
    #[prost(int32, tag = "19")]
    pub stop_signal: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<StatusExtra>,
}

/// Creates a container with what `k8s-cri` cannot say.
pub async fn create(
    cri: &Cri,
    pod: &str,
    config: &cri::ContainerConfig,
    extra: Extra,
    sandbox: &cri::PodSandboxConfig,
) -> Result<String, Status> {
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(config.clone()),
        sandbox_config: Some(sandbox.clone()),
    };
    let mut bytes = request.encode_to_vec();
    bytes.extend(CreateExtra { config: Some(extra) }.encode_to_vec());
    let reply = call(cri, "/runtime.v1.RuntimeService/CreateContainer", bytes).await?;
    let reply = cri::CreateContainerResponse::decode(&reply[..]).map_err(|e| unreadable(&e))?;
    Ok(reply.container_id)
}

pub async fn status(cri: &Cri, container: &str) -> Result<StatusExtra, Status> {
    let request = cri::ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: false,
    };
    let reply = call(
        cri,
        "/runtime.v1.RuntimeService/ContainerStatus",
        request.encode_to_vec(),
    )
    .await?;
    let reply = StatusResponse::decode(&reply[..]).map_err(|e| unreadable(&e))?;
    reply
        .status
        .ok_or_else(|| Status::internal("ContainerStatus without a status"))
}

fn unreadable(error: &prost::DecodeError) -> Status {
    Status::internal(format!("the answer cannot be read: {error}"))
}

/// One unary call, bytes in and out.
pub async fn call(cri: &Cri, path: &'static str, request: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(cri.channel.clone());
    grpc.ready()
        .await
        .map_err(|e| Status::unavailable(e.to_string()))?;
    let path = PathAndQuery::from_static(path);
    Ok(grpc
        .unary(tonic::Request::new(request), path, Bytes)
        .await?
        .into_inner())
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use prost::bytes::BufMut as _;
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        use prost::bytes::Buf as _;
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}
