//! Reading `mountinfo`: which mounts have peers, and which are namespaces that somebody bound to a file.

use holdfast_cgroups::unescape;

/// One line of proc_pid_mountinfo(5), as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub id: u64,
    pub parent: u64,
    pub place: String,
    pub shared: bool,
    pub kind: String,
}

pub(crate) fn parse(text: &str) -> Vec<Line> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let (before, after) = text.split_once(" - ")?;
    let fields: Vec<&str> = before.split(' ').collect();
    let [id, parent, _, _, place, _, optional @ ..] = fields.as_slice() else {
        return None;
    };
    Some(Line {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        place: unescape(place),
        shared: optional.iter().any(|field| field.starts_with("shared:")),
        kind: after.split(' ').next()?.to_owned(),
    })
}

/// Where namespaces are bound such that taking them off here is felt nowhere else: their parent mount has no peer.
pub(crate) fn lone_namespaces(lines: &[Line]) -> Vec<&str> {
    let private = |id: u64| lines.iter().any(|line| line.id == id && !line.shared);
    lines
        .iter()
        .filter(|line| line.kind == "nsfs" && private(line.parent))
        .map(|line| line.place.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda rw
21 20 0:5 / /run rw - tmpfs tmpfs rw
22 21 0:4 net:[4026] /run/netns/a\\040b rw - nsfs nsfs rw
23 20 0:4 net:[4027] /shared rw shared:7 master:3 - nsfs nsfs rw
garbage
";

    #[test]
    fn lines_are_taken_apart() {
        let lines = parse(TEXT);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].shared && !lines[1].shared);
        assert_eq!(lines[2].place, "/run/netns/a b");
        assert_eq!(lines[3].kind, "nsfs");
        assert_eq!(unescape("a\\134b\\x"), "a\\b\\x");
    }

    #[test]
    fn only_what_has_no_peers_is_taken_off() {
        assert_eq!(lone_namespaces(&parse(TEXT)), ["/run/netns/a b"]);
    }
}
