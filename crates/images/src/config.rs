//! What the operator can set, and the bounds of everything that comes from outside.

use std::time::Duration;

use holdfast_registry::Platform;

/// Settings of [`crate::Images::open`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Platform of pulls that do not name one.
    pub platform: Platform,
    /// Layers of one pull that are fetched and unpacked at the same time.
    pub parallel_layers: usize,
    /// The same of all pulls and loads together, besides one layer of each, which none of the others can hold up. Each takes two
    /// threads and a few MiB, and with zstd up to 128 MiB more.
    pub all_layers: usize,
    /// How long a pull waits for another that makes the same layer and fetches next to nothing; 20 times that in all. Then it
    /// makes the layer itself.
    pub patience: Duration,
    /// How long the layers of a failed pull are kept for the next try.
    pub retry_window: Duration,
    /// Names of images that are reported as pinned, so that the kubelet does not collect them.
    pub pinned: Vec<String>,
    /// Bounds on what images may cost.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            parallel_layers: 4,
            all_layers: 16,
            patience: Duration::from_secs(30),
            retry_window: Duration::from_secs(3600),
            pinned: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// Bounds on what an image may cost. An image over one of them is refused with an error that names it.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a manifest or index in an archive (a registry's are bounded by its client).
    pub manifest_bytes: u64,
    /// Bytes of an image configuration.
    pub config_bytes: u64,
    /// Layers of an image. Overlayfs mounts 500 lowers at most, and 4096 bytes of options hold about 128 of our paths.
    pub layers: usize,
    /// Bytes of one layer when unpacked.
    pub layer_bytes: u64,
    /// A layer may unpack to this many times its compressed size ...
    pub layer_ratio: u64,
    /// ... or to this many bytes, if that is more.
    pub layer_ratio_floor: u64,
    /// Files, directories and links of one layer.
    pub layer_entries: u64,
    /// Directories of lower layers that are looked into while the layers of one image are put over each other. Most take a
    /// few microseconds.
    pub lookups: u64,
    /// Bytes that stay free on the file system of the images, whatever is pulled.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            layers: 127,
            layer_bytes: 256 << 30,
            layer_ratio: 250,
            layer_ratio_floor: 4 << 30,
            layer_entries: 5_000_000,
            lookups: 20_000_000,
            reserve_bytes: 256 << 20,
        }
    }
}

impl Limits {
    /// Most bytes that a layer of `compressed` bytes may unpack to.
    pub(crate) fn unpacked(&self, compressed: u64) -> u64 {
        compressed
            .saturating_mul(self.layer_ratio)
            .max(self.layer_ratio_floor)
            .min(self.layer_bytes)
    }
}
