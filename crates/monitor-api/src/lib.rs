//! The versioned protocol between the daemon and a pod's monitor, and the client that speaks it.

pub mod message;
