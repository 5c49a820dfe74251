//! Container output to CRI log lines: `<time> <stream> <P|F> <content>\n`, pure.
//!
//! A line longer than [`CHUNK`] becomes several entries, all but the last marked `P`; the kubelet joins them. An entry
//! marked `F` stands for content and its newline, so output that ends without one gains it, as with other runtimes.

use crate::clock::Stamp;

/// Longest content of one entry: what the kubelet's readers and other runtimes use.
pub const CHUNK: usize = holdfast_monitor_api::LOG_CHUNK;
/// `2026-11-21T23:14:12.123456789Z stdout F `; both streams have names of six letters.
pub const PREFIX: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Where finished bytes go; a full buffer is handed on in whole entries.
pub trait Sink {
    fn take(&mut self, entries: &[u8]);
}

/// Entries being put together, in a buffer of fixed size.
pub struct Framer {
    buffer: Vec<u8>,
    filled: usize,
}

impl Framer {
    /// `capacity` is at least one entry of the longest kind.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(PREFIX + CHUNK + 1);
        // Zeroed memory of this size comes from the kernel untouched: pages cost nothing until they are written.
        Framer {
            buffer: vec![0; capacity],
            filled: 0,
        }
    }

    /// Frames all of `input` that is certain to be whole, and returns how much that is. The rest, at most [`CHUNK`]
    /// bytes, must come again at the front of the next input.
    pub fn frame(&mut self, input: &[u8], stream: Stream, stamp: &Stamp, sink: &mut impl Sink) -> usize {
        let full = prefix(stamp, stream, b'F');
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', input) {
            let mut line = &input[start..end];
            if line.len() > CHUNK {
                line = self.chunks(line, stream, stamp, sink);
            }
            self.push(&full, line, sink);
            start = end + 1;
        }
        let rest = &input[start..];
        if rest.len() > CHUNK {
            let left = self.chunks(rest, stream, stamp, sink);
            return input.len() - left.len();
        }
        start
    }

    /// Frames what is left when the stream has ended.
    pub fn finish(&mut self, rest: &[u8], stream: Stream, stamp: &Stamp, sink: &mut impl Sink) {
        if !rest.is_empty() {
            let last = self.chunks(rest, stream, stamp, sink);
            self.push(&prefix(stamp, stream, b'F'), last, sink);
        }
    }

    /// Hands on everything.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        if self.filled > 0 {
            sink.take(&self.buffer[..self.filled]);
            self.filled = 0;
        }
    }

    /// `P` entries for as much of `line` as is over one chunk; the last chunk is returned.
    fn chunks<'l>(
        &mut self,
        mut line: &'l [u8],
        stream: Stream,
        stamp: &Stamp,
        sink: &mut impl Sink,
    ) -> &'l [u8] {
        let partial = prefix(stamp, stream, b'P');
        while line.len() > CHUNK {
            let (chunk, rest) = line.split_at(CHUNK);
            self.push(&partial, chunk, sink);
            line = rest;
        }
        line
    }

    fn push(&mut self, prefix: &[u8; PREFIX], content: &[u8], sink: &mut impl Sink) {
        let size = PREFIX + content.len() + 1;
        if self.filled + size > self.buffer.len() {
            self.flush(sink);
        }
        let entry = &mut self.buffer[self.filled..self.filled + size];
        entry[..PREFIX].copy_from_slice(prefix);
        entry[PREFIX..size - 1].copy_from_slice(content);
        entry[size - 1] = b'\n';
        self.filled += size;
    }
}

fn prefix(stamp: &Stamp, stream: Stream, tag: u8) -> [u8; PREFIX] {
    let mut bytes = [b' '; PREFIX];
    bytes[..30].copy_from_slice(stamp);
    bytes[31..37].copy_from_slice(match stream {
        Stream::Stdout => b"stdout",
        Stream::Stderr => b"stderr",
    });
    bytes[38] = tag;
    bytes
}

/// Bytes of container output in whole entries: content, and the newline that an `F` stands for.
pub fn payload(entries: &[u8]) -> u64 {
    let mut sum = 0;
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', entries) {
        let entry = &entries[start..=end];
        let marked_full = entry.get(PREFIX - 2) == Some(&b'F');
        let content = entry.len().saturating_sub(PREFIX + 1);
        sum += content as u64 + u64::from(marked_full);
        start = end + 1;
    }
    sum
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
