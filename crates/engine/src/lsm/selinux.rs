//! SELinux: which labels a pod and its containers get, and whether the loaded policy knows them.
//!
//! Each pod has a level of its own, a pair of categories that no other pod on record has, so that pods are kept apart;
//! its containers share it. Files of the pod have the same level.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use holdfast_model::{Invalid, SelinuxLabels, SelinuxOptions};

use super::SWITCHED_OFF;

const ROOT: &str = "/sys/fs/selinux";
/// Categories of policies with multi-category security: c0 to c1023.
const CATEGORIES: u16 = 1024;
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";

/// What the kernel and its policy offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selinux {
    /// Nothing can be labelled; why.
    Absent(&'static str),
    /// Labels of containers that ask for none, without a pod's categories. `None`: the policy knows no container
    /// domain, and only what is asked for is labelled.
    On { defaults: Option<Contexts> },
}

/// A process's and its files' context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    pub process: String,
    pub file: String,
}

impl Default for Selinux {
    fn default() -> Self {
        Self::Absent("this kernel has no SELinux")
    }
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            process: PROCESS.into(),
            file: FILE.into(),
        }
    }
}

impl Selinux {
    /// Looks at the kernel. Blocks.
    pub(crate) fn probe(wanted: bool) -> Self {
        if !wanted {
            return Self::Absent(SWITCHED_OFF);
        }
        if !Path::new(ROOT).join("enforce").exists() {
            return Self::default();
        }
        let contexts = node_contexts();
        let known = [&contexts.process, &contexts.file]
            .into_iter()
            .all(|context| knows(context).is_ok());
        Self::On {
            defaults: known.then_some(contexts),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Absent(why) => format!("off: {why}"),
            Self::On { defaults: None } => {
                "on, without a container domain in the loaded policy: only pods that ask are labelled".into()
            }
            Self::On {
                defaults: Some(contexts),
            } => format!("on, containers are {}", contexts.process),
        }
    }

    /// A new pod's labels. `taken`: the levels of all other pods.
    pub(crate) fn for_pod(
        &self,
        options: Option<&SelinuxOptions>,
        taken: &BTreeSet<String>,
        seed: &[u8],
    ) -> Result<SelinuxLabels, Invalid> {
        let asked = options.filter(|options| !options.is_empty());
        let contexts = match (self, asked) {
            (Self::Absent(_), None) | (Self::On { defaults: None }, None) => {
                return Ok(SelinuxLabels::default());
            }
            (Self::Absent(why), Some(_)) => return Err(not_here(why)),
            (Self::On { defaults }, _) => defaults.clone().unwrap_or_default(),
        };
        let base = SelinuxLabels {
            process: contexts.process,
            mount: contexts.file,
        };
        let mut labels = with(&base, asked);
        if asked.is_none_or(|options| options.level.is_empty())
            && let Some(pair) = free_pair(taken, seed)
        {
            for label in [&mut labels.process, &mut labels.mount] {
                // Without a level (a policy without MLS) there are no categories.
                if label.split(':').count() == 4 {
                    label.push(':');
                    label.push_str(&pair);
                }
            }
        }
        Ok(labels)
    }

    /// A container's labels: what it asks for, the rest as its pod has it.
    pub(crate) fn for_container(
        &self,
        pod: &SelinuxLabels,
        options: Option<&SelinuxOptions>,
    ) -> Result<SelinuxLabels, Invalid> {
        let asked = options.filter(|options| !options.is_empty());
        match (self, asked) {
            (Self::Absent(why), Some(_)) => Err(not_here(why)),
            (Self::Absent(_), None) => Ok(SelinuxLabels::default()),
            // The pod is of a time before SELinux, or the policy has no domain for containers.
            (Self::On { defaults }, Some(_)) if pod.process.is_empty() => {
                let contexts = defaults.clone().unwrap_or_default();
                let base = SelinuxLabels {
                    process: contexts.process,
                    mount: contexts.file,
                };
                Ok(with(&base, asked))
            }
            (Self::On { .. }, _) => Ok(with(pod, asked)),
        }
    }
}

const FIELD: &str = "linux.security_context.selinux_options";

fn not_here(why: &str) -> Invalid {
    Invalid::new(FIELD, format!("cannot be enforced: {why}"))
}

/// The four parts `user:role:type:level`; the type is the process's alone, and files have the role `object_r`.
fn with(base: &SelinuxLabels, asked: Option<&SelinuxOptions>) -> SelinuxLabels {
    let Some(asked) = asked else { return base.clone() };
    let change = |label: &str, parts: [&str; 4]| {
        let mut old = label.splitn(4, ':');
        let mut new = Vec::new();
        for part in parts {
            let old = old.next().unwrap_or_default();
            new.push(if part.is_empty() { old } else { part });
        }
        while new.last().is_some_and(|part| part.is_empty()) {
            new.pop();
        }
        new.join(":")
    };
    SelinuxLabels {
        process: change(
            &base.process,
            [&asked.user, &asked.role, &asked.kind, &asked.level],
        ),
        mount: change(&base.mount, [&asked.user, "", "", &asked.level]),
    }
}

/// `cA,cB`, A below B, that no label in `taken` has. `None` where all are taken (half a million).
fn free_pair(taken: &BTreeSet<String>, seed: &[u8]) -> Option<String> {
    let pairs = u32::from(CATEGORIES) * u32::from(CATEGORIES - 1) / 2;
    // FNV-1a: ids are random, but written in sixteen letters.
    let hash = seed.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let first = hash % pairs;
    (0..pairs)
        .map(|step| pair((first + step) % pairs))
        .find(|pair| !taken.contains(pair))
}

/// The pair of this number: numbers run through (0,1), (0,2), (1,2), (0,3) …
fn pair(number: u32) -> String {
    let (mut high, mut rest) = (1, number);
    while rest >= high {
        rest -= high;
        high += 1;
    }
    format!("c{rest},c{high}")
}

/// The categories of a label, as [`free_pair`] makes them.
pub(crate) fn categories(label: &str) -> Option<String> {
    label.splitn(5, ':').nth(4).map(str::to_owned)
}

/// The node's own defaults for containers, where its policy has them (selinux(8), `lxc_contexts`).
fn node_contexts() -> Contexts {
    let config = std::fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let policy = setting(&config, "SELINUXTYPE").unwrap_or("targeted");
    let file = Path::new("/etc/selinux")
        .join(policy)
        .join("contexts/lxc_contexts");
    contexts(&std::fs::read_to_string(file).unwrap_or_default())
}

fn contexts(text: &str) -> Contexts {
    let value = |key, default: &str| setting(text, key).unwrap_or(default).to_owned();
    Contexts {
        process: value("process", PROCESS),
        file: value("file", FILE),
    }
}

/// `key = "value"` or `KEY=value`.
fn setting<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim().trim_matches('"'))
    })
}

/// Asks the kernel whether the loaded policy knows a context. Memory of the kernel's, no disk.
fn knows(context: &str) -> std::io::Result<()> {
    let path = Path::new(ROOT).join("context");
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(context.as_bytes())
}

/// Refuses labels that the loaded policy does not know, before anything is made with them.
pub(crate) fn check(labels: &SelinuxLabels) -> Result<(), Invalid> {
    for label in [&labels.process, &labels.mount] {
        if let Some(error) = (!label.is_empty()).then(|| knows(label).err()).flatten() {
            return Err(Invalid::new(
                FIELD,
                format!("the label {label:?} is not one of the loaded SELinux policy: {error}"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(user: &str, kind: &str, level: &str) -> SelinuxOptions {
        SelinuxOptions {
            user: user.into(),
            kind: kind.into(),
            level: level.into(),
            ..SelinuxOptions::default()
        }
    }

    fn on() -> Selinux {
        Selinux::On {
            defaults: Some(Contexts::default()),
        }
    }

    #[test]
    fn every_pod_has_categories_of_its_own() {
        let mut taken = BTreeSet::new();
        for _ in 0..50 {
            let labels = on().for_pod(None, &taken, &[1, 2, 3, 4]).unwrap_or_default();
            let own = categories(&labels.process).unwrap_or_default();
            assert_eq!(categories(&labels.mount).as_ref(), Some(&own));
            assert!(
                labels.process.starts_with("system_u:system_r:container_t:s0:c"),
                "{labels:?}"
            );
            assert!(
                labels
                    .mount
                    .starts_with("system_u:object_r:container_file_t:s0:c")
            );
            assert!(taken.insert(own), "{labels:?}");
        }
        assert_eq!(
            (pair(0), pair(1), pair(2), pair(3)),
            ("c0,c1".into(), "c0,c2".into(), "c1,c2".into(), "c0,c3".into())
        );
        assert_eq!(pair(1024 * 1023 / 2 - 1), "c1022,c1023");
    }

    #[test]
    fn what_is_asked_for_replaces_its_part() {
        let none = BTreeSet::new();
        let asked = options("u", "spc_t", "s0:c7,c9");
        let labels = on().for_pod(Some(&asked), &none, &[0]).unwrap_or_default();
        assert_eq!(labels.process, "u:system_r:spc_t:s0:c7,c9");
        assert_eq!(labels.mount, "u:object_r:container_file_t:s0:c7,c9");
        let own = on()
            .for_container(&labels, Some(&options("", "other_t", "")))
            .unwrap_or_default();
        assert_eq!(
            (own.process.as_str(), &own.mount),
            ("u:system_r:other_t:s0:c7,c9", &labels.mount)
        );
        assert_eq!(on().for_container(&labels, None), Ok(labels.clone()));
        let without = Selinux::On { defaults: None };
        assert_eq!(without.for_pod(None, &none, &[]), Ok(SelinuxLabels::default()));
        let asked = without
            .for_pod(Some(&options("", "x_t", "s0")), &none, &[])
            .unwrap_or_default();
        assert_eq!(asked.process, "system_u:system_r:x_t:s0");
    }

    #[test]
    fn without_selinux_asking_is_refused() {
        let absent = Selinux::default();
        let asked = options("", "x_t", "");
        let text = absent
            .for_pod(Some(&asked), &BTreeSet::new(), &[])
            .unwrap_err()
            .to_string();
        assert!(text.contains("this kernel has no SELinux"), "{text}");
        assert!(
            absent
                .for_container(&SelinuxLabels::default(), Some(&asked))
                .is_err()
        );
        assert_eq!(
            absent.for_pod(Some(&SelinuxOptions::default()), &BTreeSet::new(), &[]),
            Ok(SelinuxLabels::default())
        );
    }

    #[test]
    fn contexts_of_the_node() {
        let text =
            "process = \"a:b:c_t:s0\"\ncontent = \"x\"\nfile = \"a:o:f_t:s0\"\nsandbox_lxc_process = \"y\"\n";
        assert_eq!(
            contexts(text),
            Contexts {
                process: "a:b:c_t:s0".into(),
                file: "a:o:f_t:s0".into()
            }
        );
        assert_eq!(contexts(""), Contexts::default());
        assert_eq!(
            setting("# x\nSELINUXTYPE=default\n", "SELINUXTYPE"),
            Some("default")
        );
    }
}
