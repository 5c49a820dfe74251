//! The client of OCI and Docker registries: references, platforms, `hosts.toml`, authentication, manifests and blobs.
//!
//! A pull is one [`Pull`]: it holds one reference, one credential and the hosts to try, read afresh from `certs.d`
//! when it begins. [`Pull::resolve`] gives the manifest for a platform, [`Pull::blob`] streams a layer.
//!
//! ```no_run
//! # async fn f() -> Result<(), holdfast_registry::Error> {
//! use holdfast_registry::{Client, Config, Platform, Reference};
//! let client = Client::new(Config::default());
//! let reference = Reference::parse("registry.example.org/team/app:1.2")?;
//! let pull = client.pull(&reference, None).await?;
//! let image = pull.resolve(&Platform::host()).await?;
//! let config = pull.bytes(&image.manifest.config, 8 << 20).await?;
//! for layer in &image.manifest.layers {
//!     let mut blob = pull.blob(layer).await?;
//!     let mut verifier = layer.digest.verifier();
//!     while let Some(chunk) = blob.chunk().await? {
//!         // nothing of it is trusted before the digest was right
//!         verifier.update(&chunk);
//!     }
//!     if let Err(mismatch) = verifier.finish() {
//!         blob.reject(mismatch)?; // another host may have the right bytes
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! Who sees a credential: the registry of the reference (its own address or the `server` of its `hosts.toml`), the token
//! service that this registry names, and a mirror only if the credential's own server address names it. Redirect targets
//! never do. See [`Auth`].
//!
//! Everything that a registry sends is bounded ([`Limits`]) and checked by digest (of blobs, by who reads them); dropping any future or [`Blob`]
//! closes its connection. Not here: storing, unpacking, tags on disk, pushing.

#![forbid(unsafe_code)]

mod auth;
mod backoff;
mod blob;
mod challenge;
mod client;
mod digest;
mod error;
mod hosts;
mod manifest;
mod platform;
mod proxy;
mod reference;
mod request;
mod resolve;
mod text;
mod tls;
mod token;
mod transport;

pub use auth::Auth;
pub use blob::Blob;
pub use client::{Client, Config, Limits, Pull};
pub use digest::{Algorithm, Digest, DigestMismatch, Verifier};
pub use error::{Attempt, Error, Fault, Kind};
pub use manifest::{Descriptor, Manifest, MediaType};
pub use platform::Platform;
pub use proxy::Proxy;
pub use reference::Reference;
pub use resolve::{Fetched, Resolved};
