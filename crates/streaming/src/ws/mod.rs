//! WebSocket (RFC 6455), the server's side: Kubernetes' channels in messages, and a tunnel of bytes.

mod base64;
mod frame;
#[cfg(test)]
mod frame_tests;
mod handshake;
mod mux;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod tunnel;

#[cfg(fuzzing)]
pub use frame::{CHUNK, Decoder, Event, FrameError};
pub use handshake::accept_key;
pub use mux::{Codec, Mux, Outgoing};
pub use tunnel::tunnel;
