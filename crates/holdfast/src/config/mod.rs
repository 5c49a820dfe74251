//! Configuration of the server: TOML files, merged, checked, and turned into one `Config` per crate.
//!
//! `config.toml` comes first, then `config.d/*.toml` by name; tables are merged, everything else is replaced. A key that
//! nobody knows is refused with its file and line, and so is a value that cannot be used.

mod load;
mod raw;
mod validate;

pub use load::load;
pub use validate::{Config, Overrides};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    /// The page names every key, and the values that it shows are the defaults.
    #[test]
    fn the_documentation_is_true() {
        let page = include_str!("../../../../docs/configuration.md");
        let example = page
            .split("```toml\n")
            .nth(1)
            .unwrap()
            .split("```")
            .next()
            .unwrap();
        let read = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.toml");
            std::fs::write(&path, text).unwrap();
            let (raw, origins) = load(Some(&path)).unwrap();
            Config::new(raw, &origins, Overrides::default()).unwrap()
        };
        let (mut shown, mut default) = (read(example), read(""));
        // These two depend on the machine.
        shown.engine.helpers.clone_from(&default.engine.helpers);
        shown.network.bridge.mtu = None;
        // The only setting without a value by default.
        assert!(!shown.engine.rlimits.is_empty());
        shown.engine.rlimits.clear();
        default.engine.rlimits.clear();
        assert_eq!(format!("{shown:#?}"), format!("{default:#?}"));
    }
}
