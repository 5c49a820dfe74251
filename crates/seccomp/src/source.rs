//! Profiles from the node's disk: OCI JSON, with errors that say which file and what is wrong in it.

use crate::Error;
use oci_spec::runtime::LinuxSeccomp;
use serde::Deserialize;
use std::io::Read;
use std::path::Path;

/// A profile of every system call with conditions is a tenth of this.
const MAX_BYTES: u64 = 1 << 20;

/// Loads the profile at `path`. Finding the file below the node's profile directory is the caller's.
pub fn load_localhost(path: &Path) -> Result<LinuxSeccomp, Error> {
    let fail = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(profile_error(path, "it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(fail)?;
    parse(&text, path)
}

/// Parses a profile; `path` is for error texts.
pub fn parse(text: &[u8], path: &Path) -> Result<LinuxSeccomp, Error> {
    if text.len() as u64 > MAX_BYTES {
        return Err(Error::TooLarge {
            path: path.to_owned(),
            limit: MAX_BYTES,
        });
    }
    let fail = |source| Error::Json {
        path: path.to_owned(),
        source,
    };
    // Docker's own format looks like OCI's but has conditions in it. Reading it as OCI would drop them, and with them
    // the restrictions.
    let foreign: Foreign = serde_json::from_slice(text).map_err(fail)?;
    for (at, rule) in foreign.syscalls.iter().flatten().enumerate() {
        for (name, value) in [("includes", &rule.includes), ("excludes", &rule.excludes)] {
            if value
                .as_ref()
                .is_some_and(|value| value.as_object().is_none_or(|it| !it.is_empty()))
            {
                return Err(profile_error(
                    path,
                    &format!(
                        "rule {} has `{name}`, which is Docker's own format: a profile here is the OCI runtime \
                         specification's, without conditions on capabilities or architectures",
                        at + 1
                    ),
                ));
            }
        }
    }
    if foreign.arch_map.is_some() {
        return Err(profile_error(
            path,
            "it has `archMap`, which is Docker's own format: list `architectures` instead",
        ));
    }
    let profile: LinuxSeccomp = serde_json::from_slice(text).map_err(fail)?;
    Ok(profile)
}

fn profile_error(path: &Path, problem: &str) -> Error {
    Error::Profile {
        path: path.to_owned(),
        problem: problem.to_owned(),
    }
}

/// What a profile of Docker's has more than one of OCI's.
#[derive(Deserialize)]
struct Foreign {
    #[serde(rename = "archMap")]
    arch_map: Option<serde_json::Value>,
    syscalls: Option<Vec<ForeignRule>>,
}

#[derive(Deserialize)]
struct ForeignRule {
    includes: Option<serde_json::Value>,
    excludes: Option<serde_json::Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let error = parse(text.as_bytes(), Path::new("/p/x.json")).unwrap_err();
        match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    #[test]
    fn an_oci_profile_is_read() {
        let text = br#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                          "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]}]}"#;
        let profile = parse(text, Path::new("x")).unwrap();
        assert_eq!(profile.default_errno_ret(), Some(38));
        assert_eq!(profile.syscalls().as_ref().unwrap()[0].names(), &["read"]);
    }

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let table = [
            ("{", "EOF"),
            ("{}", "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "SCMP_ACT_MAYBE"),
            (
                r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_VAX"]}"#,
                "SCMP_ARCH_VAX",
            ),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "archMap": []}"#, "archMap"),
            (
                r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}}]}"#,
                "includes",
            ),
        ];
        for (text, part) in table {
            let got = error(text);
            assert!(got.contains("/p/x.json") && got.contains(part), "{got}");
        }
        let missing = load_localhost(Path::new("/no/such/profile.json")).unwrap_err();
        assert!(missing.to_string().contains("/no/such/profile.json"));
        let directory = load_localhost(Path::new("/proc")).unwrap_err();
        assert!(
            directory.to_string().contains("not a regular file"),
            "{directory}"
        );
        assert!(error(&" ".repeat(2 << 20)).contains("larger than"));
    }
}
