//! CRI messages to the model's types and back. What the wire can say and the model cannot is refused here, with the
//! field's path; all other checks are the model's own (`validate`).
//!
//! Both directions exist for specs as well, so that verbose answers can show the configuration as it came.

mod container;
mod resources;
mod sandbox;
mod security;
mod status;
#[cfg(test)]
mod tests;
mod usage;

pub use container::{container_config, container_spec};
pub use resources::{linux_resources, resources};
pub use sandbox::{sandbox_config, sandbox_spec};
pub use security::namespace_options;
pub use status::{
    container_item, container_status, container_statuses, image_spec, sandbox_item, sandbox_status,
    wire_container_state, wire_sandbox_state,
};

pub use usage::{container_stats, sandbox_stats};

use holdfast_model::Invalid;

/// Reads an enum's number; one that this version does not know is refused, never taken for the default.
fn enumeration<E: TryFrom<i32>>(field: &str, number: i32) -> Result<E, Invalid> {
    E::try_from(number).map_err(|_| Invalid::new(field, format!("{number} is no value of this enum")))
}

/// A message that must be there.
fn required<T>(field: &str, value: Option<T>) -> Result<T, Invalid> {
    value.ok_or_else(|| Invalid::new(field, "is missing"))
}
