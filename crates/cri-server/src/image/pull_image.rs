//! ImageService.PullImage. Dropping the call drops the pull, unless another caller waits for the same.

use holdfast_cri_api::v1;
use holdfast_images::PullRequest;
use holdfast_registry::Auth;
use tonic::Status;

use super::reference;
use crate::{Services, error};

pub async fn call(
    services: &Services,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, Status> {
    let pull = pull_request(request)?;
    let known = services
        .engine
        .check_handler(&pull.handler)
        .map_err(error::engine);
    known.map_err(|status| {
        let text = format!("image.runtime_handler: {}", status.message());
        Status::new(status.code(), text)
    })?;
    let outcome = services.images.pull(pull, |_| ()).await;
    give_memory_back();
    Ok(v1::PullImageResponse {
        image_ref: outcome.map_err(error::images)?.to_string(),
    })
}

pub fn pull_request(request: v1::PullImageRequest) -> Result<PullRequest, Status> {
    let handler = request.image.as_ref().map(|i| i.runtime_handler.clone());
    Ok(PullRequest {
        reference: reference(request.image)?,
        auth: request.auth.and_then(auth),
        handler: handler.unwrap_or_default(),
        ..Default::default()
    })
}

/// Credentials that hold nothing are none: kubelet sends such for anonymous pulls.
fn auth(wire: v1::AuthConfig) -> Option<Auth> {
    let secrets = [
        &wire.username,
        &wire.password,
        &wire.auth,
        &wire.identity_token,
        &wire.registry_token,
    ];
    if secrets.iter().all(|text| text.is_empty()) {
        return None;
    }
    Some(Auth {
        username: wire.username,
        password: wire.password,
        auth: wire.auth,
        server_address: wire.server_address,
        identity_token: wire.identity_token,
        registry_token: wire.registry_token,
    })
}

/// A pull leaves the heap full of freed buffers that would stay resident for ever.
pub fn give_memory_back() {
    tokio::task::spawn_blocking(|| {
        holdfast_sys::heap::trim();
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_pull_needs() {
        let image = |name: &str| {
            Some(v1::ImageSpec {
                image: name.into(),
                runtime_handler: "h".into(),
                ..Default::default()
            })
        };
        let request = |image| v1::PullImageRequest {
            image,
            auth: Some(v1::AuthConfig {
                server_address: "x".into(),
                ..Default::default()
            }),
            sandbox_config: None,
        };
        let pull = pull_request(request(image("busybox"))).unwrap();
        assert_eq!((pull.reference.as_str(), pull.handler.as_str()), ("busybox", "h"));
        assert!(pull.auth.is_none(), "an address alone is no credential");
        assert_eq!(
            pull_request(request(image(""))).unwrap_err().message(),
            "image.image: is missing"
        );
        assert_eq!(
            pull_request(request(None)).unwrap_err().message(),
            "image: is missing"
        );
    }
}
