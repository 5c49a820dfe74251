//! Documents of an image: which manifests, configurations and layers are acceptable, and the ids that follow from them. Pure.

use holdfast_registry::{Descriptor, Digest, Manifest};
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::{Error, Limits, Result};

const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// An image whose documents fit each other.
#[derive(Debug, Clone)]
pub(crate) struct Documents {
    pub id: Digest,
    pub config: ImageConfiguration,
    pub layers: Vec<LayerPlan>,
}

/// One layer to be brought here.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlan {
    /// The blob; its digest is `None` where the source has none.
    pub blob: Option<Descriptor>,
    pub diff_id: Digest,
    /// Identity of the layer with all those below it.
    pub chain: Digest,
}

/// Checks a manifest's media types and counts.
pub(crate) fn check(manifest: &Manifest, digest: &str, limits: &Limits) -> Result<()> {
    let refuse = |reason: String| {
        Err(Error::Document {
            document: "manifest",
            digest: digest.to_owned(),
            reason,
        })
    };
    let kind = &manifest.config.media_type;
    if !kind.is_empty() && !CONFIGS.contains(&kind.as_str()) {
        return refuse(format!(
            "it is no container image: its configuration is of type {}",
            clip(kind)
        ));
    }
    if manifest.layers.len() > limits.layers {
        return refuse(format!(
            "it has {} layers, {} are allowed",
            manifest.layers.len(),
            limits.layers
        ));
    }
    if manifest.config.size > limits.config_bytes {
        return refuse(format!(
            "its configuration is {} bytes, {} are allowed",
            manifest.config.size, limits.config_bytes
        ));
    }
    if let Some(layer) = manifest
        .layers
        .iter()
        .find(|layer| layer.media_type.contains("encrypted"))
    {
        return refuse(format!(
            "its layer {} is encrypted, which is not supported",
            layer.digest
        ));
    }
    let odd = manifest.layers.iter().find(|l| !is_layer(&l.media_type));
    if let Some(layer) = odd {
        return refuse(format!(
            "its layer {} is of the unknown type {}",
            layer.digest,
            clip(&layer.media_type)
        ));
    }
    Ok(())
}

/// The four families of layer types; which compression it is, the bytes tell.
fn is_layer(media_type: &str) -> bool {
    let families = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let compression = families.iter().find_map(|family| media_type.strip_prefix(family));
    media_type.is_empty()
        || matches!(
            compression,
            Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd" | ".gz")
        )
}

/// Reads a configuration and joins it with the layers' blobs (lowest first).
pub(crate) fn join(
    id: Digest,
    json: &[u8],
    blobs: Vec<Option<Descriptor>>,
    limits: &Limits,
) -> Result<Documents> {
    let refuse = |reason: String| Error::Document {
        document: "image configuration",
        digest: id.to_string(),
        reason,
    };
    if json.len() as u64 > limits.config_bytes {
        return Err(refuse(format!(
            "it is {} bytes, {} are allowed",
            json.len(),
            limits.config_bytes
        )));
    }
    let config: ImageConfiguration = serde_json::from_slice(json).map_err(|e| refuse(e.to_string()))?;
    if config.os().to_string() != "linux" {
        return Err(refuse(format!(
            "it is for {}, not for linux",
            clip(&config.os().to_string())
        )));
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != blobs.len() {
        return Err(refuse(format!(
            "it lists {} layers, its manifest {}",
            diff_ids.len(),
            blobs.len()
        )));
    }
    if blobs.is_empty() {
        return Err(refuse("it has no layers, so there is nothing to run".into()));
    }
    if blobs.len() > limits.layers {
        return Err(refuse(format!(
            "it has {} layers, {} are allowed",
            blobs.len(),
            limits.layers
        )));
    }
    let mut layers: Vec<LayerPlan> = Vec::with_capacity(blobs.len());
    for (diff_id, blob) in diff_ids.iter().zip(blobs) {
        let diff_id = Digest::parse(diff_id).map_err(|e| refuse(e.to_string()))?;
        let chain = match layers.last() {
            None => diff_id.clone(),
            Some(below) => Digest::sha256(format!("{} {diff_id}", below.chain).as_bytes()),
        };
        layers.push(LayerPlan { blob, diff_id, chain });
    }
    Ok(Documents { id, config, layers })
}

/// An index, as a layout directory has it.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
}

/// What a document of an archive is.
#[derive(Debug)]
pub(crate) enum Parsed {
    Index(Index),
    Manifest(Box<Manifest>),
}

/// Reads a manifest or index of an archive. The error is a sentence.
pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Parsed, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let probe: Probe = serde_json::from_slice(bytes).map_err(|e| format!("it is not valid JSON: {e}"))?;
    let media_type = probe.media_type.unwrap_or_default();
    if probe.schema_version == Some(1) || probe.fs_layers.is_some() || media_type.starts_with(SCHEMA1) {
        return Err("it is a Docker schema 1 manifest, a format withdrawn in 2019; make the image again with a current tool".into());
    }
    match (probe.manifests.is_some(), probe.layers.is_some()) {
        // Two tools would see two images (CVE-2021-41190).
        (true, true) => Err("it has both layers and manifests".into()),
        (true, false) => serde_json::from_slice(bytes)
            .map(Parsed::Index)
            .map_err(|e| e.to_string()),
        (false, _) => serde_json::from_slice(bytes)
            .map(|manifest| Parsed::Manifest(Box::new(manifest)))
            .map_err(|e| e.to_string()),
    }
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn config(os: &str, diff_ids: &[&str]) -> Vec<u8> {
        serde_json::json!({"architecture": "amd64", "os": os, "config": {"User": "5"}, "history": null,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
    }

    fn manifest() -> serde_json::Value {
        serde_json::json!({"schemaVersion": 2,
            "config": {"mediaType": CONFIGS[0], "digest": A, "size": 10},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": B, "size": 10}]})
    }

    fn refusal(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut value = manifest();
        change(&mut value);
        let Parsed::Manifest(manifest) = parse(value.to_string().as_bytes()).unwrap() else {
            panic!("a manifest")
        };
        check(&manifest, "sha256:x", &Limits::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let id = Digest::sha256(b"");
        let documents = join(
            id,
            &config("linux", &[A, B]),
            vec![None, None],
            &Limits::default(),
        )
        .unwrap();
        assert_eq!(documents.layers[0].chain.as_str(), A);
        assert_eq!(
            documents.layers[1].chain,
            Digest::sha256(format!("{A} {B}").as_bytes())
        );
    }

    #[test]
    fn configurations_that_do_not_fit_are_refused() {
        let limits = Limits::default();
        let refusal = |json: &[u8], blobs| {
            join(Digest::sha256(b""), json, blobs, &limits)
                .unwrap_err()
                .to_string()
        };
        assert!(refusal(b"{}", vec![None]).contains("cannot be used"));
        assert!(refusal(&config("windows", &[A]), vec![None]).contains("for windows"));
        assert!(refusal(&config("linux", &[A]), vec![None, None]).contains("lists 1 layers, its manifest 2"));
        assert!(refusal(&config("linux", &["md5:00"]), vec![None]).contains("unsupported algorithm"));
        assert!(refusal(&config("linux", &[]), vec![]).contains("no layers"));
        let many = vec![A; 200];
        assert!(refusal(&config("linux", &many), vec![None; 200]).contains("127 are allowed"));
    }

    #[test]
    fn manifests_that_cannot_run_are_refused() {
        assert!(
            refusal(|m| m["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into())
                .contains("no container image")
        );
        assert!(refusal(|m| m["config"]["size"] = (100u64 << 20).into()).contains("4194304 are allowed"));
        let typed = |t: &'static str| refusal(move |m| m["layers"][0]["mediaType"] = t.into());
        assert!(typed("application/vnd.oci.image.layer.v1.tar+gzip+encrypted").contains("encrypted"));
        assert!(typed("text/plain").contains("unknown type"));
        assert!(refusal(|m| m["layers"] = vec![m["layers"][0].clone(); 128].into()).contains("128 layers"));
    }

    #[test]
    fn documents_that_are_two_things_or_too_old_are_refused() {
        let both = serde_json::json!({"schemaVersion": 2, "manifests": [], "layers": []}).to_string();
        assert!(parse(both.as_bytes()).unwrap_err().contains("both"));
        assert!(
            parse(br#"{"schemaVersion": 1, "fsLayers": []}"#)
                .unwrap_err()
                .contains("schema 1")
        );
        assert!(parse(b"[").unwrap_err().contains("JSON"));
    }

    proptest! {
        #[test]
        fn mutated_documents_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            for mut bytes in [manifest().to_string().into_bytes(), config("linux", &[A, B])] {
                let at = at.index(bytes.len());
                bytes[at] = byte;
                bytes.truncate(cut.index(bytes.len()) + 1);
                let _ = parse(&bytes);
                let _ = join(Digest::sha256(b""), &bytes, vec![None, None], &Limits::default());
            }
        }
    }
}
