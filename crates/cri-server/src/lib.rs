//! The CRI over gRPC: RuntimeService, ImageService, and holdfast's own Admin service, on one unix socket.
//!
//! Each call is a file: it translates the request ([`translate`]), asks the engine or the images, translates the
//! answer, and turns an error into a status code. Nothing is decided here that the engine could decide; no state is
//! kept here.
#![forbid(unsafe_code)]
#![allow(
    clippy::needless_pass_by_value,
    reason = "calls take their request, and conversions their error, whether they need the whole or not"
)]

mod admin;
mod batches;
mod call;
mod deadline;
mod error;
mod filter;
mod image;
mod json;
mod listen;
mod metrics;
mod node;
mod runtime;
#[cfg(test)]
mod testing;
mod translate;
mod unbuilt;

use holdfast_engine::Engine;
use holdfast_images::Images;

pub use listen::{Error, serve};
pub use node::Node;

/// What the services work with. Cheap to clone.
#[derive(Clone)]
pub struct Services {
    pub engine: Engine,
    pub images: Images,
    pub streaming: std::sync::Arc<holdfast_streaming::Server>,
    pub node: std::sync::Arc<Node>,
}
