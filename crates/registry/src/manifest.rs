//! Manifests and indexes as they are on the wire: both families of media types, parsed from hostile JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;

/// More layers than this cannot be mounted: overlayfs takes 500 lowers at most.
pub(crate) const MAX_LAYERS: usize = 500;

/// What a manifest request accepts, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// A pointer to content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes, exactly.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: Option<String>,
    pub config: Descriptor,
    #[serde(deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// Manifests by platform.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    #[serde(deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
}

/// The kinds of document that a manifest request can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    OciIndex,
    OciManifest,
    DockerList,
    DockerManifest,
}

impl MediaType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OciIndex => OCI_INDEX,
            Self::OciManifest => OCI_MANIFEST,
            Self::DockerList => DOCKER_LIST,
            Self::DockerManifest => DOCKER_MANIFEST,
        }
    }

    #[must_use]
    pub fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }

    fn parse(text: &str) -> Option<Self> {
        let bare = text.split(';').next().unwrap_or("").trim();
        [
            Self::OciIndex,
            Self::OciManifest,
            Self::DockerList,
            Self::DockerManifest,
        ]
        .into_iter()
        .find(|t| bare.eq_ignore_ascii_case(t.as_str()))
    }
}

#[derive(Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// Just enough to tell what a document claims to be before it is read as that.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a document; `content_type` is the response's header or the descriptor's media type. The error is a sentence.
pub(crate) fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<(MediaType, Document), String> {
    if content_type.is_some_and(is_schema1) {
        return Err(schema1());
    }
    let probe: Probe =
        serde_json::from_slice(bytes).map_err(|e| format!("manifest is not valid JSON: {e}"))?;
    if probe.media_type.as_deref().is_some_and(is_schema1)
        || probe.schema_version == Some(1)
        || probe.fs_layers.is_some()
    {
        return Err(schema1());
    }
    if probe.schema_version != Some(2) {
        return Err("manifest has no schemaVersion 2".into());
    }
    // A document that can be read as both is a known way to show two tools two images (CVE-2021-41190).
    if probe.manifests.is_some() && probe.layers.is_some() {
        return Err("manifest has both layers and manifests, so it is ambiguous".into());
    }
    let stated = match &probe.media_type {
        Some(text) if !text.is_empty() => Some(MediaType::parse(text).ok_or_else(|| {
            format!(
                "manifest has the unsupported media type {}",
                crate::text::clip(text, 120)
            )
        })?),
        _ => None,
    };
    let header = content_type.and_then(MediaType::parse);
    if let (Some(inner), Some(outer)) = (stated, header)
        && inner.is_index() != outer.is_index()
    {
        return Err(format!(
            "manifest says that it is {} but was served as {}",
            inner.as_str(),
            outer.as_str()
        ));
    }
    let media_type = stated.or(header).unwrap_or(if probe.manifests.is_some() {
        MediaType::OciIndex
    } else {
        MediaType::OciManifest
    });
    let document = if media_type.is_index() {
        Document::Index(serde_json::from_slice(bytes).map_err(|e| format!("index cannot be read: {e}"))?)
    } else {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| format!("manifest cannot be read: {e}"))?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(format!(
                "manifest has {} layers, {MAX_LAYERS} at most can be mounted",
                manifest.layers.len()
            ));
        }
        Document::Manifest(Box::new(manifest))
    };
    Ok((media_type, document))
}

fn is_schema1(text: &str) -> bool {
    let bare = text.split(';').next().unwrap_or("").trim();
    DOCKER_SCHEMA1.iter().any(|t| bare.eq_ignore_ascii_case(t))
}

fn schema1() -> String {
    "the image has a Docker schema 1 manifest, a format withdrawn in 2019; push it again with a current tool"
        .into()
}

/// Go programs write `null` for an empty list or map.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(extra: &str) -> String {
        format!(r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{HEX}","size":2}},"layers":null{extra}}}"#)
    }

    proptest::proptest! {
        #[test]
        fn damaged_documents_are_read_or_refused(
            changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), proptest::prelude::any::<u8>()), 0..8),
            cut in proptest::prelude::any::<proptest::sample::Index>(),
            whole: bool,
        ) {
            let mut bytes = manifest(r#","mediaType":"application/vnd.oci.image.manifest.v1+json""#).into_bytes();
            let good = parse(&bytes, None).is_ok();
            proptest::prop_assert!(good);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Err(reason) = parse(&bytes, None) {
                // It ends up in an error of one line.
                proptest::prop_assert!(!reason.is_empty() && reason.len() < 1000 && !reason.contains('\n'), "{}", reason);
            }
        }
    }

    #[test]
    fn reads_a_manifest_without_any_media_type() {
        let (media_type, document) = parse(manifest("").as_bytes(), None).unwrap();
        assert_eq!(media_type, MediaType::OciManifest);
        assert!(matches!(document, Document::Manifest(m) if m.config.size == 2 && m.layers.is_empty()));
    }

    #[test]
    fn header_decides_when_the_body_is_silent() {
        let (media_type, _) = parse(
            manifest("").as_bytes(),
            Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
        )
        .unwrap();
        assert_eq!(media_type, MediaType::DockerManifest);
    }

    #[test]
    fn refusals_say_why() {
        let layers: Vec<String> = (0..=MAX_LAYERS)
            .map(|_| format!(r#"{{"digest":"sha256:{HEX}","size":1}}"#))
            .collect();
        let many = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"sha256:{HEX}","size":2}},"layers":[{}]}}"#,
            layers.join(",")
        );
        let both = manifest(r#","manifests":[]"#).replace("null", "[]");
        let cases: [(&str, Option<&str>, &str); 9] = [
            ("{", None, "not valid JSON"),
            ("{}", None, "schemaVersion"),
            (r#"{"schemaVersion":1}"#, None, "schema 1"),
            (r#"{"schemaVersion":2}"#, Some(DOCKER_SCHEMA1[1]), "schema 1"),
            (&both, None, "ambiguous"),
            (
                &manifest(r#","mediaType":"text/html""#),
                None,
                "unsupported media type",
            ),
            (
                &manifest(&format!(r#","mediaType":"{OCI_MANIFEST}""#)),
                Some(OCI_INDEX),
                "was served as",
            ),
            (&many, None, "501 layers"),
            (
                r#"{"schemaVersion":2,"config":{"digest":"sha256:00","size":-1},"layers":[]}"#,
                None,
                "cannot be read",
            ),
        ];
        for (text, header, part) in cases {
            let error = parse(text.as_bytes(), header).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
