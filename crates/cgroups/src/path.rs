//! Cgroup paths: what a caller may name, and systemd's way to spell them. Pure.

use crate::Error;
use serde::{Deserialize, Serialize};

/// Longest path taken; with a controller's mount point and a file's name it stays under PATH_MAX.
const MAX_PATH: usize = 3072;

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// We do, by mkdir. A path is `/kubepods/pod1/<id>`.
    #[default]
    Cgroupfs,
    /// systemd does, when asked over D-Bus. A path is `kubepods-pod1.slice:cri:<id>`.
    Systemd,
}

/// Checks `path` and strips its outer slashes: the result is relative to the root of a hierarchy, and empty for it.
pub(crate) fn relative(path: &str) -> Result<String, Error> {
    let refuse = |problem| {
        Err(Error::Path {
            path: path.chars().take(256).collect(),
            problem,
        })
    };
    if !path.starts_with('/') {
        return refuse("does not begin with a slash");
    }
    if path.len() > MAX_PATH {
        return refuse("is too long");
    }
    if path.contains(['\0', '\n']) {
        return refuse("holds a NUL or a newline");
    }
    let mut out = String::with_capacity(path.len());
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == "." || part == ".." {
            return refuse("holds `.` or `..`");
        }
        if part.len() > 255 {
            return refuse("has a component of more than 255 bytes");
        }
        if !out.is_empty() {
            out.push('/');
        }
        out.push_str(part);
    }
    Ok(out)
}

/// Checks the name of one directory below a cgroup.
pub(crate) fn component(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > 255 || name == "." || name == ".." || name.contains(['/', '\0', '\n'])
    {
        return Err(Error::Path {
            path: name.chars().take(256).collect(),
            problem: "is not the name of one directory",
        });
    }
    Ok(())
}

/// Where systemd puts the scope that `slice:prefix:name` names, such as
/// `a-b.slice:cri:id` → `/a.slice/a-b.slice/cri-id.scope` (systemd.slice(5): each dash is a level).
pub fn systemd_scope_path(path: &str) -> Result<String, Error> {
    let refuse = |problem| {
        Err(Error::Path {
            path: path.chars().take(256).collect(),
            problem,
        })
    };
    let mut parts = path.split(':');
    let (Some(slice), Some(prefix), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return refuse("is not `slice:prefix:name`");
    };
    if name.is_empty() || path.contains(['/', '\0', '\n']) {
        return refuse("has no name, or a slash, a NUL or a newline in it");
    }
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let Some(stem) = slice.strip_suffix(".slice") else {
        return refuse("does not begin with the name of a slice");
    };
    let mut out = String::new();
    if stem != "-" {
        if stem.is_empty() || stem.split('-').any(str::is_empty) {
            return refuse("has an empty level in its slice");
        }
        for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
            out.push('/');
            out.push_str(&stem[..at]);
            out.push_str(".slice");
        }
    }
    out.push('/');
    if !prefix.is_empty() {
        out.push_str(prefix);
        out.push('-');
    }
    out.push_str(name);
    out.push_str(".scope");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_relative() {
        for (given, want) in [("/", ""), ("/a", "a"), ("/a//b/", "a/b"), ("/a.b/c-d", "a.b/c-d")] {
            assert_eq!(relative(given).unwrap(), want);
        }
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        let long = format!("/{}", "x".repeat(256));
        for bad in [
            "",
            "a",
            "../a",
            "/..",
            "/a/../b",
            "/a/.",
            "/a\0",
            "/a\nb",
            long.as_str(),
        ] {
            assert!(relative(bad).is_err(), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a\0"] {
            assert!(component(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn scopes_are_expanded() {
        let table = [
            ("a-b.slice:cri:id", "/a.slice/a-b.slice/cri-id.scope"),
            (
                "kubepods-burstable-podx_y.slice:holdfast:1",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_y.slice/holdfast-1.scope",
            ),
            (":p:n", "/system.slice/p-n.scope"),
            ("-.slice::n", "/n.scope"),
        ];
        for (given, want) in table {
            assert_eq!(systemd_scope_path(given).unwrap(), want);
        }
        for bad in [
            "",
            "a:b",
            "a.slice:b:",
            "a:b:c",
            "a--b.slice:c:d",
            "a.slice:b:c:d",
            "a.slice:b:c/d",
        ] {
            assert!(systemd_scope_path(bad).is_err(), "{bad:?}");
        }
    }
}
