//! What people and programs get to read.

mod human;
mod json;
mod table;

pub use human::{age, duration, now, short_id, size};
pub use json::{info, message, pool, print, print_list};
pub use table::Table;
