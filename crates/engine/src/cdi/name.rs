//! Names of CDI devices, `vendor/class=device`, and where a container asks for them: pure.

use std::fmt;

use holdfast_model::{ContainerSpec, Invalid};

/// Keys of annotations that ask for devices: what device plugins used before CRI had a field for it.
const ANNOTATION: &str = "cdi.k8s.io/";
/// Of DNS: a vendor is a domain, a class a label.
const VENDOR_BYTES: usize = 253;
const CLASS_BYTES: usize = 63;
const DEVICE_BYTES: usize = 253;

/// A fully qualified name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Name {
    /// `vendor/class`.
    pub kind: String,
    pub device: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl Name {
    pub fn parse(text: &str) -> Result<Self, String> {
        let (kind, device) = text
            .split_once('=')
            .ok_or_else(|| format!("{text:?} is not a device name such as vendor.com/class=name"))?;
        check_kind(kind)?;
        check_device(device)?;
        Ok(Self {
            kind: kind.to_owned(),
            device: device.to_owned(),
        })
    }
}

/// `vendor/class`, as CDI has it: letters, digits, `_`, `-` and `.`, beginning with a letter.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) = kind
        .split_once('/')
        .ok_or_else(|| format!("{kind:?} is not a kind such as vendor.com/class"))?;
    for (what, text, limit) in [("vendor", vendor, VENDOR_BYTES), ("class", class, CLASS_BYTES)] {
        if !text.starts_with(|c: char| c.is_ascii_alphabetic()) || !word(text, "_-.") {
            return Err(format!("the {what} {text:?} of {kind:?} is no name"));
        }
        if text.len() > limit {
            return Err(format!("the {what} of {kind:?} is longer than {limit} bytes"));
        }
    }
    Ok(())
}

pub(super) fn check_device(name: &str) -> Result<(), String> {
    if !word(name, "_-.:") {
        return Err(format!("{name:?} is no name of a device"));
    }
    if name.len() > DEVICE_BYTES {
        return Err(format!(
            "the device name {name:?} is longer than {DEVICE_BYTES} bytes"
        ));
    }
    Ok(())
}

/// Begins and ends with a letter or digit; between them the characters of `between` are possible too.
fn word(text: &str, between: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    text.starts_with(plain) && text.ends_with(plain) && text.chars().all(|c| plain(c) || between.contains(c))
}

/// The devices that a container asks for, each once: those of the field first, then those of the annotations, in the order
/// of their keys. A device asked for in both ways counts as the field's, as with containerd.
pub(crate) fn requested(container: &ContainerSpec) -> Result<Vec<Name>, Invalid> {
    let mut names = Vec::new();
    let mut add = |field: String, text: &str| -> Result<(), Invalid> {
        let name = Name::parse(text).map_err(|reason| Invalid::new(field, reason))?;
        if !names.contains(&name) {
            names.push(name);
        }
        Ok(())
    };
    for (n, text) in container.cdi_devices.iter().enumerate() {
        add(format!("CDI_devices[{n}].name"), text)?;
    }
    for (key, value) in &container.annotations {
        if key.starts_with(ANNOTATION) {
            for text in value.split(',') {
                add(format!("annotations[{key:?}]"), text)?;
            }
        }
    }
    Ok(names)
}
