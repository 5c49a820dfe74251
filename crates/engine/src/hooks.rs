//! The points at which OCI hooks are run (runtime specification, "POSIX-platform Hooks"), by name.

use oci_spec::runtime::{Hook, Hooks};

/// In the order in which they are run.
pub(crate) const POINTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The hooks of one point; `None`: it is none of [`POINTS`].
#[allow(deprecated, reason = "what OCI deprecates, CDI still has")]
pub(crate) fn at<'a>(hooks: &'a mut Hooks, point: &str) -> Option<&'a mut Option<Vec<Hook>>> {
    Some(match point {
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_hooks_of_its_own() {
        let mut hooks = Hooks::default();
        for point in POINTS {
            let list = at(&mut hooks, point).unwrap();
            assert!(list.as_ref().is_none_or(Vec::is_empty), "{point} has another's");
            *list = Some(vec![Hook::default()]);
        }
        assert!(at(&mut hooks, "prestop").is_none());
    }
}
