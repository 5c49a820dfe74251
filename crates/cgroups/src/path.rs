//! Cgroup paths: what a caller may name, and systemd's way to spell them. Pure.

use crate::Error;

/// Longest path taken; with a controller's mount point and a file's name it stays under PATH_MAX.
const MAX_PATH: usize = 3072;

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

/// Where systemd puts a slice: `a-b.slice` → `/a.slice/a-b.slice` (systemd.slice(5): each dash is a level); empty for
/// the root slice, `-.slice`.
pub fn slice_path(slice: &str) -> Result<String, Error> {
    let refuse = |problem| {
        Err(Error::Path {
            path: slice.chars().take(256).collect(),
            problem,
        })
    };
    let Some(stem) = slice.strip_suffix(".slice") else {
        return refuse("is not the name of a slice");
    };
    if stem == "-" {
        return Ok(String::new());
    }
    // A unit's name is at most 255 bytes long and made of these (systemd.unit(5); no colon, which parts OCI names).
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.\\".contains(&byte);
    if slice.len() > 255 || !stem.bytes().all(allowed) {
        return refuse("is longer than a unit's name can be, or holds what none can");
    }
    if stem.split('-').any(str::is_empty) {
        return refuse("has an empty level");
    }
    let mut out = String::new();
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        out.push('/');
        out.push_str(&stem[..at]);
        out.push_str(".slice");
    }
    Ok(out)
}

/// The slice that a pod's parent names, and its path: `a-b.slice`, or as kubelet spells it `/a.slice/a-b.slice`.
pub fn slice_of_parent(parent: &str) -> Result<(String, String), Error> {
    let parent_end = parent.trim_end_matches('/');
    let name = parent_end.rsplit('/').next().unwrap_or_default();
    let path = slice_path(name)?;
    if parent_end.contains('/') && parent_end != path {
        return Err(Error::Path {
            path: parent.chars().take(256).collect(),
            problem: "is not where systemd puts that slice",
        });
    }
    Ok((name.to_owned(), path))
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
    let mut out = slice_path(slice)?;
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
    fn parents_are_slices_where_systemd_puts_them() {
        let pod = "kubepods-besteffort-pod1_2.slice";
        let path = "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice";
        for parent in [pod, path, &format!("{path}/")] {
            assert_eq!(slice_of_parent(parent).unwrap(), (pod.into(), path.into()));
        }
        assert_eq!(slice_of_parent("-.slice").unwrap().1, "");
        for bad in [
            "",
            "/",
            "/kubepods/pod1",
            "kubepods",
            ".slice",
            "a--b.slice",
            "-a.slice",
            "a/b.slice",
            "/a-b.slice",
            "/x.slice/a-b.slice",
            "a b.slice",
            "a\nb.slice",
        ] {
            assert!(slice_of_parent(bad).is_err(), "{bad:?}");
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
