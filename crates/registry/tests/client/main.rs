//! The client against servers of our own making: every way in which a registry can be odd, broken or hostile.

#![allow(clippy::unwrap_used)]

mod auth;
mod content;
mod hosts;
mod server;
mod tls;
