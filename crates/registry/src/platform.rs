//! Operating system, architecture and variant, and which entry of an index serves a machine best.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A platform as OCI names it (Go's `GOOS`, `GOARCH` and a variant such as `v7`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// A platform in its normal form: `x86_64` is `amd64`, `aarch64` is `arm64`, `arm` alone is `arm/v7`.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        }
        .normal()
    }

    /// What this machine runs.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, host_variant())
    }

    /// Parses `os/arch`, `os/arch/variant` or `arch`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Error::Platform {
            input: crate::text::clip(text, 80),
            reason: reason.into(),
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|p| {
            p.is_empty()
                || !p
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        }) {
            return Err(refuse("is not of the form os/architecture[/variant]"));
        }
        match parts.as_slice() {
            [architecture] => Ok(Self::new("linux", architecture, None)),
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(refuse("has more than three parts")),
        }
    }

    fn normal(&self) -> Self {
        let os = self.os.to_ascii_lowercase();
        let mut variant = self.variant.as_deref().unwrap_or("").to_ascii_lowercase();
        let architecture = self.architecture.to_ascii_lowercase();
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "x86" | "i386" | "i486" | "i586" | "i686" => "386",
            "aarch64" => "arm64",
            "armhf" => {
                variant = "v7".into();
                "arm"
            }
            "armel" => {
                variant = "v6".into();
                "arm"
            }
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        match architecture {
            "arm" if variant.is_empty() => variant = "v7".into(),
            "arm" if variant.bytes().all(|b| b.is_ascii_digit()) => variant.insert(0, 'v'),
            // Version 1 of amd64 and version 8 of arm64 are what the bare names mean.
            "amd64" if variant == "v1" => variant.clear(),
            "arm64" if variant == "v8" || variant == "8" => variant.clear(),
            _ => {}
        }
        Self {
            os,
            architecture: architecture.into(),
            variant: (!variant.is_empty()).then_some(variant),
        }
    }

    /// How well an image for `offered` serves this machine: 0 is best, `None` is not at all.
    ///
    /// Lower variants of the same architecture serve, best first; then the 32-bit sibling that the CPU also runs
    /// (386 on amd64, arm on arm64), as the field does.
    #[must_use]
    pub fn rank(&self, offered: &Platform) -> Option<u32> {
        let (own, other) = (self.normal(), offered.normal());
        if own.os != other.os {
            return None;
        }
        let level = |p: &Platform, bare: u32| match p.variant.as_deref() {
            None => Some(bare),
            Some(v) => v
                .strip_prefix('v')
                .and_then(|n| n.split('.').next()?.parse::<u32>().ok()),
        };
        let below = |have: u32, want: u32, base: u32| (want <= have).then(|| base + (have - want));
        match (own.architecture.as_str(), other.architecture.as_str()) {
            ("amd64", "amd64") => below(level(&own, 1)?, level(&other, 1)?, 0),
            ("amd64", "386") => Some(100),
            ("arm64", "arm64") => below(level(&own, 8)?, level(&other, 8)?, 0),
            ("arm64", "arm") => below(8, level(&other, 7)?, 100),
            ("arm", "arm") => below(level(&own, 7)?, level(&other, 7)?, 0),
            (a, b) if a == b => match (&own.variant, &other.variant) {
                (a, b) if a == b => Some(0),
                (_, None) => Some(1),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The x86-64 micro-architecture level, from the features that the psABI lists for it.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    let v2 = is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("ssse3");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("movbe");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v4, v3, v2) {
        (true, ..) => Some("v4"),
        (_, true, _) => Some("v3"),
        (_, _, true) => Some("v2"),
        _ => None,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn best<'a>(host: &str, offered: &[&'a str]) -> Option<&'a str> {
        let host = Platform::parse(host).unwrap();
        offered
            .iter()
            .filter_map(|o| Some((host.rank(&Platform::parse(o).unwrap())?, *o)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, o)| o)
    }

    #[test]
    fn selection() {
        let cases: [(&str, &[&str], Option<&str>); 14] = [
            (
                "linux/amd64",
                &["linux/arm64", "linux/amd64"],
                Some("linux/amd64"),
            ),
            ("linux/x86_64", &["linux/amd64/v1"], Some("linux/amd64/v1")),
            ("linux/amd64", &["linux/amd64/v3"], None),
            (
                "linux/amd64/v3",
                &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"],
                Some("linux/amd64/v2"),
            ),
            ("linux/amd64", &["linux/386", "linux/arm64"], Some("linux/386")),
            ("linux/amd64", &["linux/386", "linux/amd64"], Some("linux/amd64")),
            (
                "linux/arm64",
                &["linux/arm/v6", "linux/arm/v7"],
                Some("linux/arm/v7"),
            ),
            (
                "linux/arm64",
                &["linux/arm64/v8", "linux/arm/v8"],
                Some("linux/arm64/v8"),
            ),
            (
                "linux/arm",
                &["linux/arm/v5", "linux/arm/v6", "linux/arm64"],
                Some("linux/arm/v6"),
            ),
            ("linux/arm/v6", &["linux/arm/v7", "linux/arm"], None),
            ("linux/armhf", &["linux/arm/7"], Some("linux/arm/7")),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/riscv64", &["linux/riscv64"], Some("linux/riscv64")),
            ("linux/s390x", &["linux/ppc64le"], None),
        ];
        for (host, offered, wanted) in cases {
            assert_eq!(best(host, offered), wanted, "{host} of {offered:?}");
        }
    }

    #[test]
    fn host_is_served_by_its_own_bare_name() {
        let host = Platform::host();
        assert!(
            host.rank(&Platform::new("linux", std::env::consts::ARCH, None))
                .is_some(),
            "{host}"
        );
    }

    #[test]
    fn refusals() {
        for input in ["", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(Platform::parse(input).is_err(), "{input}");
        }
    }
}
