//! The images: a small one for the pods, a big one to be pulled. Their content is the same every time.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use holdfast_conformance::builder::{Layer, PackedLayer, Packing, Pusher, busybox_layer, pack, sha256};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Bytes of one line of [`lines`], with its newline.
pub const LINE: usize = 100;
pub const LINES_PER_FILE: usize = 100_000;
/// Where the small image has them.
pub const LINES_FILE: &str = "lines";

pub fn lines() -> Vec<u8> {
    let mut text = String::with_capacity(LINE * LINES_PER_FILE);
    for number in 0..LINES_PER_FILE {
        // Infallible: the target is a String.
        let _ = writeln!(text, "{number:08} {:.<90}", "a line of a log");
    }
    text.into_bytes()
}

pub async fn push_small(pusher: &Pusher) -> anyhow::Result<String> {
    let mut layer = busybox_layer()?;
    layer.file(LINES_FILE, &lines(), 0o644);
    let tar = layer.finish();
    let packed = PackedLayer {
        diff_id: sha256(&tar),
        blob: pack(&tar, Packing::Gzip)?,
        packing: Packing::Gzip,
    };
    let config = json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]});
    pusher
        .push_packed("bench/small:1", vec![packed], &config, false)
        .await
}

pub struct Big {
    pub layers: Vec<PackedLayer>,
    /// Bytes of all tars.
    pub unpacked: usize,
    pub packed: usize,
    pub files: usize,
}

/// `megabytes` in `layers` layers, packed as `docker build` does (gzip -6), a thread a layer.
pub fn big(megabytes: usize, layers: usize) -> anyhow::Result<Big> {
    let each = megabytes * 1_000_000 / layers;
    let made: Vec<anyhow::Result<(PackedLayer, usize, usize)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..layers)
            .map(|number| scope.spawn(move || one_layer(number, each)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that makes a layer panicked")))
            })
            .collect()
    });
    let mut big = Big {
        layers: Vec::new(),
        unpacked: 0,
        packed: 0,
        files: 0,
    };
    for made in made {
        let (layer, size, files) = made.context("make a layer")?;
        big.unpacked += size;
        big.packed += layer.blob.len();
        big.files += files;
        big.layers.push(layer);
    }
    Ok(big)
}

fn one_layer(number: usize, size: usize) -> anyhow::Result<(PackedLayer, usize, usize)> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15 ^ ((number as u64 + 1) << 32));
    let words = vocabulary();
    let mut layer = Layer::default();
    let (mut written, mut files) = (0, 0);
    layer.dir("usr", 0o755).dir("usr/lib", 0o755);
    let mut dir = String::new();
    while written < size {
        if files % 40 == 0 {
            dir = format!("usr/lib/package-{number}-{}", files / 40);
            layer.dir(&dir, 0o755);
        }
        // Of the bytes about a third lies in small files, a third in middling and a third in big ones.
        let length = match noise.below(1000) {
            0..=1 => 4_000_000 + noise.below(12_000_000),
            2..=40 => 100_000 + noise.below(400_000),
            _ => 200 + noise.below(16_000),
        };
        let length = (length as usize).min(size - written + 1);
        let (content, mode) = match noise.below(100) {
            0..=54 => (text(&mut noise, &words, length), 0o644),
            55..=94 => (code(&mut noise, length), 0o755),
            _ => (noise.bytes(length), 0o644),
        };
        layer.file(&format!("{dir}/file-{files}"), &content, mode);
        written += length + 512;
        files += 1;
    }
    let tar = layer.finish();
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(&tar)?;
    let packed = PackedLayer {
        diff_id: sha256(&tar),
        blob: out.finish()?,
        packing: Packing::Gzip,
    };
    Ok((packed, tar.len(), files))
}

/// Inflates and digests (both forms) every layer in memory, a thread a processor.
pub fn inflate(layers: &[Vec<u8>]) -> anyhow::Result<Duration> {
    let threads = std::thread::available_parallelism()?.get();
    let begin = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut block = vec![0u8; 1 << 20];
                    while let Some(blob) = layers.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                    {
                        std::hint::black_box(Sha256::digest(blob));
                        let mut digest = Sha256::new();
                        let mut tar = flate2::bufread::GzDecoder::new(blob.as_slice());
                        loop {
                            let n = tar.read(&mut block)?;
                            if n == 0 {
                                break;
                            }
                            digest.update(&block[..n]);
                        }
                        std::hint::black_box(digest.finalize());
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that inflates panicked")))?;
        }
        anyhow::Ok(())
    })?;
    Ok(begin.elapsed())
}

/// xorshift64*: the same everywhere, and quick.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// Small numbers more often than big ones, as words and instructions are.
    fn skewed(&mut self, bound: u64) -> u64 {
        let (a, b) = (self.below(bound), self.below(bound));
        a * b / bound * self.below(bound) / bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(length);
        bytes
    }
}

fn vocabulary() -> Vec<Vec<u8>> {
    let mut noise = Noise(7);
    (0..6000)
        .map(|_| {
            let length = 2 + noise.below(9);
            let mut word: Vec<u8> = (0..length).map(|_| b'a' + noise.below(26) as u8).collect();
            word.push(if noise.below(12) == 0 { b'\n' } else { b' ' });
            word
        })
        .collect()
}

/// Words, and now and then a phrase again, as programs and licences have them.
fn text(noise: &mut Noise, words: &[Vec<u8>], length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 80);
    while text.len() < length {
        if text.len() > 100 && noise.below(8) == 0 {
            repeat(noise, &mut text);
        } else {
            text.extend_from_slice(&words[noise.skewed(words.len() as u64) as usize]);
        }
    }
    text.truncate(length);
    text
}

/// Words of 8 bytes: a frequent opcode, some registers, now and then an address; and sequences that come again.
fn code(noise: &mut Noise, length: usize) -> Vec<u8> {
    let mut code = Vec::with_capacity(length + 80);
    while code.len() < length {
        if code.len() > 100 && noise.below(10) == 0 {
            repeat(noise, &mut code);
            continue;
        }
        let opcode = noise.skewed(4096) as u16;
        code.extend_from_slice(&opcode.wrapping_mul(0x9e37).to_le_bytes());
        code.extend_from_slice(&[noise.skewed(16) as u8, noise.skewed(64) as u8]);
        let address = match noise.below(5) {
            0 => noise.next() as u32 & 0x000f_ffff,
            _ => 0,
        };
        code.extend_from_slice(&address.to_le_bytes());
    }
    code.truncate(length);
    code
}

/// Appends up to 64 bytes that stood up to 32 KiB before: as far as deflate looks back.
fn repeat(noise: &mut Noise, bytes: &mut Vec<u8>) {
    let back = 64 + noise.below((bytes.len() as u64 - 64).min(32_000)) as usize;
    let start = bytes.len() - back;
    let length = 8 + noise.below(56) as usize;
    bytes.extend_from_within(start..start + length);
}
