//! SPDY/3.1 as Kubernetes uses it: one connection, streams that the client opens.
//!
//! The draft is <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>. Two things differ from it since the
//! clients that matter differ. They never send WINDOW_UPDATE and never look at it, so windows bind our sending only
//! once the other side has shown that it knows them; and what we receive is bounded by not reading, not by windows.

mod frame;
#[cfg(test)]
mod frame_tests;
mod headers;
mod mux;
mod shared;
#[cfg(any(test, fuzzing))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use frame::reset;
#[cfg(fuzzing)]
pub use frame::{Decoder, Frame, FrameError};
pub use headers::Headers;
pub use mux::{Mux, Opened};
pub use shared::{Credit, Handle, Outgoing};
