//! What people and programs get to read.

mod human;
mod json;
mod table;

pub use human::{age, duration, now, short_id, size};
pub use json::{info, message, pool, print, print_list};
pub use table::Table;

use std::fmt::Display;
use std::io::Write as _;

/// Prints a line. That nobody reads on (`| head`) is an error that ends the command in silence: see `main`.
pub fn line(text: impl Display) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Prints lines.
pub fn lines<'a>(texts: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    texts.into_iter().try_for_each(line)
}
