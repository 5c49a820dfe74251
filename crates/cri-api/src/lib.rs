//! The CRI v1 API and holdfast's own admin API, as generated from `/proto`: messages, clients and server traits.
//!
//! Nothing else is here: the services themselves live in `cri-server`, the domain's types in `model`.
#![forbid(unsafe_code)]

pub use holdfast::v1 as admin;
pub use runtime::v1;

// The generated code refers from one package to the other by its place in this tree.
#[allow(
    clippy::all,
    clippy::unwrap_used,
    rustdoc::all,
    deprecated,
    reason = "generated code"
)]
mod runtime {
    /// Package `runtime.v1`: the Container Runtime Interface of Kubernetes 1.37.
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

#[allow(clippy::all, rustdoc::all, reason = "generated code")]
mod holdfast {
    /// Package `holdfast.v1`: the operator's calls that the CRI lacks.
    pub mod v1 {
        tonic::include_proto!("holdfast.v1");
    }
}

/// Encoded `FileDescriptorSet` of both packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The largest message in either direction, as kubelet and both Go runtimes have it.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Secrets stay out of logs, whoever prints the request.
impl std::fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Self { registry_token, .. } if !registry_token.is_empty() => "registry token",
            Self { identity_token, .. } if !identity_token.is_empty() => "identity token",
            Self { auth, .. } if !auth.is_empty() => "auth",
            Self { username, .. } if !username.is_empty() => "user name",
            _ => "none",
        };
        f.debug_struct("AuthConfig")
            .field("kind", &kind)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}
