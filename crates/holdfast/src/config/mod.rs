//! Configuration of the server: TOML files, merged, checked, and turned into one `Config` per crate.
//!
//! `config.toml` comes first, then `config.d/*.toml` by name; tables are merged, everything else is replaced. A key that
//! nobody knows is refused with its file and line, and so is a value that cannot be used.

mod handlers;
mod load;
mod raw;
mod validate;

pub use load::{Origins, load};
pub use raw::Raw;
pub use validate::{Config, Overrides};

use anyhow::Result;

use crate::{args, output};

/// `holdfast config default` and `holdfast config check`.
pub fn run(which: &args::Config) -> Result<()> {
    match which {
        args::Config::Default => output::line(example().trim_end()),
        args::Config::Check { config } => {
            let (raw, origins) = load(config.as_deref())?;
            let config = Config::new(raw, &origins, Overrides::default())?;
            output::line(format_args!("{config:#?}"))
        }
    }
}

/// The documentation's file with all defaults; what has none is shown there by an example, here behind a comment sign.
fn example() -> String {
    let page = include_str!("../../../../docs/configuration.md");
    let file = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let lines = file.unwrap_or_default().lines();
    lines
        .map(|line| match line.split(' ').next() {
            Some("rlimits" | "mtu") => format!("# {line}\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    /// The package's scripts find the socket by this line (manifests/deb/prerm, postinst).
    #[test]
    fn what_the_package_reads_has_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, "state = \"/run/x\"\n").unwrap();
        let (raw, origins) = load(Some(&path)).unwrap();
        let text = format!("{:#?}", Config::new(raw, &origins, Overrides::default()).unwrap());
        for line in ["    state: \"/run/x\",", "    listen: \"/run/x/holdfast.sock\","] {
            assert_eq!(text.lines().filter(|other| *other == line).count(), 1, "{text}");
        }
    }

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

        // What is printed to begin with changes nothing on any machine, but for where the helpers are.
        let mut printed = read(&super::example());
        printed.engine.helpers.clone_from(&default.engine.helpers);
        assert_eq!(format!("{printed:#?}"), format!("{default:#?}"));
    }
}
