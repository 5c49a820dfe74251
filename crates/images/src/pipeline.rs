//! One layer's way from the network (or an archive) to the disk: hash, inflate, hash, unpack, in one pass on two threads.
//!
//! ```text
//! chunks ──> [hash, inflate] ──1 MiB buffers──> [hash, tar, files]
//! ```
//!
//! The buffers go round between the threads, so that a layer of any size takes the same memory: a few MiB, and for zstd its
//! window. Nothing is committed here; the caller does that when both digests were right.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use holdfast_registry::{Digest, DigestMismatch, Verifier};
use tokio::sync::mpsc;

use crate::config::Limits;
use crate::error::UnpackError;
use crate::tar::Reader;
use crate::unpack::{Outcome, Unpacked, Unpacker};

/// Compressed chunks that wait between network and inflating.
pub(crate) const CHUNKS: usize = 16;
/// Size of the buffers of inflated data; zlib-rs is fastest when it is given much room.
const BUFFER: usize = 1 << 20;
/// Buffers that wait between inflating and unpacking. One more is being filled and one being unpacked.
const BUFFERS: usize = 3;
/// Largest zstd window, as a power of two: 128 MiB, what the zstd tool itself accepts without being told.
const ZSTD_WINDOW: u32 = 27;

/// In a mismatch: that of the bytes as they were fetched, for which their source is to blame, not the image.
pub(crate) const COMPRESSED: &str = "compressed";

/// A layer to be unpacked.
#[derive(Debug)]
pub(crate) struct Job {
    /// Digest of the blob as it was stored; `None` if its source has none (docker archives).
    pub blob: Option<Digest>,
    /// Digest of the archive inside, from the image's configuration.
    pub diff_id: Digest,
    /// Size of the blob, from which the limit of what comes out of it is reckoned.
    pub size: u64,
    /// An empty directory to unpack into.
    pub target: PathBuf,
    /// A directory on the same file system.
    pub scratch: PathBuf,
    pub limits: Limits,
}

/// Bytes that are still fetched of a layer that is refused, to tell wrong bytes from a wrong image. Where more are missing
/// another host is asked, if there is one.
const DIAGNOSE: u64 = 32 << 20;

/// Why a layer was not unpacked.
#[derive(Debug)]
pub(crate) struct Refused {
    pub error: UnpackError,
    /// Its blob is the one that was asked for, or nobody said which that is.
    pub right: bool,
}

impl From<UnpackError> for Refused {
    /// For what says nothing about the blob.
    fn from(error: UnpackError) -> Self {
        Self { error, right: true }
    }
}

/// Chunks of a blob. A source that fails just ends: whoever feeds it keeps the error.
pub(crate) type Chunks = mpsc::Receiver<Bytes>;

/// Unpacks a layer. Blocks as long as its source takes, and starts one more thread.
pub(crate) fn run(job: Job, chunks: Chunks) -> Result<Unpacked, Refused> {
    let job = Arc::new(job);
    let (full, filled) = sync_channel::<Vec<u8>>(BUFFERS);
    let (give_back, free) = sync_channel::<Vec<u8>>(BUFFERS + 2);
    let unpacking = {
        let job = Arc::clone(&job);
        std::thread::Builder::new()
            .name("unpack".into())
            .spawn(move || unpack(&job, filled, give_back))
            .map_err(|e| UnpackError::io("start a thread for", b"/", e))?
    };
    let inflated = inflate(&job, chunks, &full, &free);
    // Tells the other side whether what it got was all.
    if inflated.is_ok() {
        let _ = full.send(Vec::new());
    }
    drop(full);
    let unpacked = unpacking.join().unwrap_or(Err(UnpackError::Interrupted));
    match (inflated, unpacked) {
        (Ok(()), unpacked) => unpacked.map_err(Refused::from),
        // Inflating stopped because unpacking did.
        (
            Err(Refused {
                error: UnpackError::Interrupted,
                right,
            }),
            Err(error),
        ) => Err(Refused { error, right }),
        (Err(refused), _) => Err(refused),
    }
}

/// First half: checks the digest of the blob and gives its inflated bytes.
fn inflate(
    job: &Job,
    chunks: Chunks,
    full: &SyncSender<Vec<u8>>,
    free: &Receiver<Vec<u8>>,
) -> Result<(), Refused> {
    let source = ChunkReader {
        chunks,
        chunk: Bytes::new(),
        verifier: job.blob.as_ref().map(Digest::verifier),
    };
    let mut source = Peek::new(source)?;
    let mut limit = job.limits.unpacked(job.size);
    let mut give = |format: &'static str, reader: &mut dyn Read| -> Outcome<()> {
        loop {
            let mut buffer = free.try_recv().unwrap_or_default();
            buffer.resize(BUFFER, 0);
            let count =
                fill(reader, &mut buffer).map_err(|source| UnpackError::Compression { format, source })?;
            buffer.truncate(count);
            limit = limit.checked_sub(count as u64).ok_or_else(|| over(job))?;
            if count == 0 {
                return Ok(());
            }
            full.send(buffer).map_err(|_| UnpackError::Interrupted)?;
        }
    };
    let given = match source.format() {
        Format::Gzip => give("gzip", &mut flate2::bufread::MultiGzDecoder::new(&mut source)),
        Format::Zstd => zstd::stream::read::Decoder::with_buffer(&mut source)
            .and_then(|mut decoder| decoder.window_log_max(ZSTD_WINDOW).map(|()| decoder))
            .map_err(|source| UnpackError::Compression {
                format: "zstd",
                source,
            })
            .and_then(|mut decoder| give("zstd", &mut decoder)),
        Format::Plain => give("plain", &mut source),
    };
    match given {
        Ok(()) => Ok(source.finish(u64::MAX)?),
        // Damage is most often bytes that are not the ones asked for; then the digest says more than the decoder.
        Err(error) => Err(match source.finish(DIAGNOSE) {
            Err(mismatch @ UnpackError::Mismatch { .. }) => mismatch.into(),
            known => Refused {
                error,
                right: known.is_ok(),
            },
        }),
    }
}

fn over(job: &Job) -> UnpackError {
    UnpackError::Limit {
        what: "bytes when unpacked, which is beyond what its size allows",
        limit: job.limits.unpacked(job.size),
    }
}

/// Second half: checks the digest of the archive and makes its files.
fn unpack(job: &Job, filled: Receiver<Vec<u8>>, give_back: SyncSender<Vec<u8>>) -> Outcome<Unpacked> {
    let source = BufferReader {
        filled,
        give_back,
        buffer: Vec::new(),
        at: 0,
        whole: false,
        verifier: job.diff_id.verifier(),
    };
    let mut unpacker = Unpacker::new(&job.target, &job.scratch, &job.limits)?;
    let mut archive = Reader::new(source);
    unpacker.run(&mut archive)?;
    let mut source = archive.into_source();
    // Padding behind the archive's end counts for its digest.
    while !source
        .fill_buf()
        .map_err(|_| UnpackError::Interrupted)?
        .is_empty()
    {
        let rest = source.buffer.len() - source.at;
        source.consume(rest);
    }
    if !source.whole {
        return Err(UnpackError::Interrupted);
    }
    source
        .verifier
        .finish()
        .map_err(|mismatch| UnpackError::Mismatch {
            what: "unpacked",
            mismatch,
        })?;
    Ok(unpacker.finish())
}

/// Fills the buffer as far as there is data.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// What a blob is, by its first bytes: media types are often wrong, and these are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Gzip,
    Zstd,
    Plain,
}

/// Bytes that are looked at before anything is taken.
const PEEK: usize = 4;

/// The source with its first bytes known.
struct Peek {
    first: std::io::Cursor<Vec<u8>>,
    rest: ChunkReader,
}

impl Peek {
    fn new(mut rest: ChunkReader) -> Outcome<Self> {
        let mut first = Vec::with_capacity(PEEK);
        let read = rest.by_ref().take(PEEK as u64).read_to_end(&mut first);
        read.map_err(|e| UnpackError::io("read", b"/", e))?;
        Ok(Self {
            first: std::io::Cursor::new(first),
            rest,
        })
    }

    fn format(&self) -> Format {
        match self.first.get_ref().as_slice() {
            [0x1f, 0x8b, ..] => Format::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd] => Format::Zstd,
            // A skippable frame, with which some zstd variants begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Format::Zstd,
            _ => Format::Plain,
        }
    }

    /// Hashes what the decoder left, up to `most` bytes, and compares.
    fn finish(mut self, most: u64) -> Outcome<()> {
        let mut taken = 0;
        while !self
            .rest
            .fill_buf()
            .map_err(|_| UnpackError::Interrupted)?
            .is_empty()
        {
            let rest = self.rest.chunk.len();
            self.rest.consume(rest);
            taken += rest as u64;
            if taken > most {
                return Err(UnpackError::Interrupted);
            }
        }
        match self.rest.verifier {
            None => Ok(()),
            Some(verifier) => verifier.finish().map_err(|mismatch| UnpackError::Mismatch {
                what: COMPRESSED,
                mismatch,
            }),
        }
    }
}

impl Read for Peek {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Peek {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.first.fill_buf()?.is_empty() {
            self.rest.fill_buf()
        } else {
            self.first.fill_buf()
        }
    }

    fn consume(&mut self, count: usize) {
        if self.first.position() < self.first.get_ref().len() as u64 {
            self.first.consume(count);
        } else {
            self.rest.consume(count);
        }
    }
}

/// Chunks as a reader; each is hashed when it comes.
struct ChunkReader {
    chunks: Chunks,
    chunk: Bytes,
    verifier: Option<Verifier>,
}

impl Read for ChunkReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while self.chunk.is_empty() {
            let Some(chunk) = self.chunks.blocking_recv() else {
                break;
            };
            if let Some(verifier) = &mut self.verifier {
                verifier.update(&chunk);
            }
            self.chunk = chunk;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        bytes::Buf::advance(&mut self.chunk, count);
    }
}

/// Inflated buffers as a reader; each is hashed when it comes. An empty buffer says that all came.
struct BufferReader {
    filled: Receiver<Vec<u8>>,
    give_back: SyncSender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
    whole: bool,
    verifier: Verifier,
}

impl Read for BufferReader {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for BufferReader {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.at == self.buffer.len() && !self.whole {
            match self.filled.recv() {
                Ok(next) => {
                    self.whole = next.is_empty();
                    self.verifier.update(&next);
                    let old = std::mem::replace(&mut self.buffer, next);
                    let _ = self.give_back.try_send(old);
                    self.at = 0;
                }
                // The other half failed, and says why.
                Err(_) => return Err(std::io::Error::other("interrupted")),
            }
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

/// A whole compressed file as a reader, for archives of archives.
pub(crate) fn decompress(file: std::fs::File) -> std::io::Result<Option<Box<dyn Read>>> {
    let mut reader = BufReader::with_capacity(BUFFER, file);
    let first = reader.fill_buf()?;
    if first.starts_with(&[0x1f, 0x8b]) {
        Ok(Some(Box::new(flate2::bufread::MultiGzDecoder::new(reader))))
    } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
        decoder.window_log_max(ZSTD_WINDOW)?;
        Ok(Some(Box::new(decoder)))
    } else {
        Ok(None)
    }
}

/// Both digests of a mismatch, for callers that only have bytes.
pub(crate) fn verify(digest: &Digest, bytes: &[u8]) -> Result<(), DigestMismatch> {
    let mut verifier = digest.verifier();
    verifier.update(bytes);
    verifier.finish()
}
