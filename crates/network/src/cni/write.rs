//! Writing the CNI configuration from its template.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{conf, template};
use crate::config::Subnet;
use crate::{Error, Result};

/// Name of the file that is written; `10-`, as containerd's users expect it.
const NAME: &str = "10-holdfast-net.conflist";
/// A template larger than this is a mistake.
const MAX_TEMPLATE: u64 = 1 << 20;

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// There is a configuration of somebody else's, which can be used: it is left to decide.
    LeftTo(PathBuf),
    Unchanged(PathBuf),
    File(PathBuf),
}

/// Fills in the template and writes the configuration, whole or not at all. Blocks.
pub(crate) fn write(dir: &Path, template: &Path, ranges: &[Subnet]) -> Result<Written> {
    if let Some(other) = conf::usable(dir, NAME).into_iter().next() {
        return Ok(Written::LeftTo(other));
    }
    let bad = |reason: String| Error::CniConfig {
        path: template.into(),
        reason,
    };
    let text = read(template)?;
    let filled =
        template::render(&text, ranges).map_err(|fault| bad(format!("cannot be filled in: {fault}")))?;
    let path = dir.join(NAME);
    conf::check(&filled, &path)
        .map_err(|why| bad(format!("filled in with the node's pod ranges it {why}")))?;
    if std::fs::read_to_string(&path).is_ok_and(|now| now == filled) {
        return Ok(Written::Unchanged(path));
    }
    replace(dir, &path, &filled)?;
    Ok(Written::File(path))
}

fn read(template: &Path) -> Result<String> {
    let failed = |source| Error::Io {
        what: "cannot read the template of the cni configuration,",
        path: template.into(),
        source,
    };
    let size = std::fs::metadata(template).map_err(failed)?.len();
    if size > MAX_TEMPLATE {
        return Err(failed(std::io::Error::other("it is larger than 1 MiB")));
    }
    std::fs::read_to_string(template).map_err(failed)
}

/// Written beside and renamed: plugins and other readers never see half of it.
fn replace(dir: &Path, path: &Path, text: &str) -> Result<()> {
    let beside = dir.join(format!(".{NAME}.new"));
    let failed = |what, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io { what, path, source }
    };
    std::fs::create_dir_all(dir).map_err(failed("cannot make", dir))?;
    let mut file = std::fs::File::create(&beside).map_err(failed("cannot write", &beside))?;
    file.write_all(text.as_bytes())
        .map_err(failed("cannot write", &beside))?;
    file.sync_all().map_err(failed("cannot write", &beside))?;
    std::fs::rename(&beside, path).map_err(failed("cannot write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEMPLATE: &str =
        r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp","ipam":{"subnet":"{{.PodCIDR}}"}}]}"#;

    #[test]
    fn a_configuration_is_written_once_and_never_over_somebody_elses() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, template) = (scratch.path().join("net.d"), scratch.path().join("template"));
        std::fs::write(&template, TEMPLATE).unwrap();
        let at = |range: &str| write(&dir, &template, &[range.parse().unwrap()]).unwrap();
        let own = dir.join(NAME);
        assert_eq!(at("10.1.0.0/24"), Written::File(own.clone()));
        assert_eq!(at("10.1.0.0/24"), Written::Unchanged(own.clone()));
        assert_eq!(at("10.2.0.0/24"), Written::File(own.clone()));
        assert!(std::fs::read_to_string(&own).unwrap().contains("10.2.0.0/24"));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
        let other = dir.join("99-other.conf");
        std::fs::write(&other, "{").unwrap();
        assert_eq!(at("10.3.0.0/24"), Written::File(own.clone()));
        std::fs::write(&other, r#"{"cniVersion":"1.0.0","name":"o","type":"ptp"}"#).unwrap();
        assert_eq!(at("10.4.0.0/24"), Written::LeftTo(other));
        assert!(std::fs::read_to_string(&own).unwrap().contains("10.3.0.0/24"));
    }

    #[test]
    fn a_bad_template_is_named_and_leaves_the_file_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let (dir, template) = (scratch.path().join("net.d"), scratch.path().join("template"));
        let error = |text: Option<&str>| {
            if let Some(text) = text {
                std::fs::write(&template, text).unwrap();
            }
            let error = write(&dir, &template, &["10.1.0.0/24".parse().unwrap()]).unwrap_err();
            error.chain()
        };
        assert!(error(None).contains("No such file"));
        assert!(error(Some("a\n{{.Node}}")).contains("line 2: there is no .Node"));
        assert!(error(Some("{{.PodCIDR}}")).contains("is not JSON"));
        let without_name = r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#;
        assert!(error(Some(without_name)).contains("name"));
        assert!(!dir.exists());
    }
}
