//! Mount options of the OCI spec, parsed: pure.

use holdfast_sys::mount::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW,
    ATTR_RDONLY, ATTR_STRICTATIME, Propagation,
};

/// Attributes to set and to clear, as mount_setattr(2) has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub set: u64,
    pub clear: u64,
}

impl Change {
    fn add(&mut self, set: u64, clear: u64) {
        self.set = self.set & !clear | set;
        self.clear = self.clear & !set | clear;
        if set & ATTR_ATIME != 0 {
            self.clear |= ATTR_ATIME; // one field of several bits: the kernel wants it cleared as a whole
            self.set = self.set & !ATTR_ATIME | set;
        }
    }

    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Of the mount itself.
    pub attributes: Change,
    /// Of it and all mounts below it (`rro` and the like).
    pub recursive: Change,
    pub propagation: Propagation,
    pub propagation_recursive: bool,
    /// `bind` or `rbind`.
    pub bind: bool,
    pub bind_recursive: bool,
    /// `idmap` or `ridmap`.
    pub idmap: bool,
    pub idmap_recursive: bool,
    /// What the file system itself is told.
    pub data: Vec<(String, Option<String>)>,
}

impl Options {
    pub fn parse(options: &[String]) -> Self {
        let mut out = Self::default();
        for option in options {
            out.add(option);
        }
        out
    }

    fn add(&mut self, option: &str) {
        if let Some((set, clear)) = attribute(option) {
            self.attributes.add(set, clear);
        } else if let Some((set, clear)) = option.strip_prefix('r').and_then(recursive_attribute) {
            self.recursive.add(set, clear);
        } else if let Some((propagation, recursive)) = propagation(option) {
            self.propagation = propagation;
            self.propagation_recursive = recursive;
        } else {
            match option {
                "bind" => self.bind = true,
                "rbind" => (self.bind, self.bind_recursive) = (true, true),
                "idmap" => self.idmap = true,
                "ridmap" => (self.idmap, self.idmap_recursive) = (true, true),
                // `remount` has no meaning for a mount that is being made; the others are the default.
                "" | "defaults" | "async" | "nomand" | "remount" | "loud" | "nolazytime" => {}
                other => self.data.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                }),
            }
        }
    }
}

fn attribute(option: &str) -> Option<(u64, u64)> {
    Some(match option {
        "ro" => (ATTR_RDONLY, 0),
        "rw" => (0, ATTR_RDONLY),
        "nosuid" => (ATTR_NOSUID, 0),
        "suid" => (0, ATTR_NOSUID),
        "nodev" => (ATTR_NODEV, 0),
        "dev" => (0, ATTR_NODEV),
        "noexec" => (ATTR_NOEXEC, 0),
        "exec" => (0, ATTR_NOEXEC),
        "noatime" => (ATTR_NOATIME, 0),
        "strictatime" => (ATTR_STRICTATIME, 0),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, ATTR_ATIME),
        "nodiratime" => (ATTR_NODIRATIME, 0),
        "diratime" => (0, ATTR_NODIRATIME),
        "nosymfollow" => (ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, ATTR_NOSYMFOLLOW),
        _ => return None,
    })
}

/// The recursive forms: `rro` is `ro` with an `r` before it. `relatime` is not `elatime` with one.
fn recursive_attribute(rest: &str) -> Option<(u64, u64)> {
    attribute(rest).filter(|_| rest != "w" && !rest.starts_with("elatime"))
}

fn propagation(option: &str) -> Option<(Propagation, bool)> {
    Some(match option {
        "private" => (Propagation::Private, false),
        "rprivate" => (Propagation::Private, true),
        "slave" => (Propagation::Slave, false),
        "rslave" => (Propagation::Slave, true),
        "shared" => (Propagation::Shared, false),
        "rshared" => (Propagation::Shared, true),
        "unbindable" => (Propagation::Unbindable, false),
        "runbindable" => (Propagation::Unbindable, true),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn bind_with_flags() {
        let options = parse(&["rbind", "rslave", "ro", "nosuid"]);
        assert!(options.bind && options.bind_recursive);
        assert_eq!(options.propagation, Propagation::Slave);
        assert!(options.propagation_recursive);
        assert_eq!(options.attributes.set, ATTR_RDONLY | ATTR_NOSUID);
        assert!(options.recursive.is_empty());
    }

    #[test]
    fn recursive_read_only_is_its_own_change() {
        let options = parse(&["rbind", "rro"]);
        assert_eq!(options.recursive.set, ATTR_RDONLY);
        assert_eq!(options.attributes, Change::default());
    }

    #[test]
    fn the_last_of_two_opposites_wins() {
        assert!(parse(&["ro", "rw"]).attributes.set == 0);
        assert!(parse(&["rw", "ro"]).attributes.set == ATTR_RDONLY);
        let atime = parse(&["noatime", "strictatime"]).attributes;
        assert_eq!((atime.set, atime.clear), (ATTR_STRICTATIME, ATTR_ATIME));
    }

    #[test]
    fn what_is_not_ours_is_the_file_systems() {
        let options = parse(&["mode=755", "size=65536k", "newinstance", "relatime", "defaults"]);
        assert_eq!(
            options.data,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("size".to_owned(), Some("65536k".to_owned())),
                ("newinstance".to_owned(), None),
            ]
        );
    }
}
