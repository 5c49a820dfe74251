//! Header blocks: name and value pairs under one zlib stream per direction (SPDY/3, section 2.6.10).

use bytes::{BufMut as _, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::frame::FrameError;

/// The most that one block may inflate to. Kubernetes needs about 200 bytes.
pub const MAX_BLOCK: usize = 16 << 10;
/// What is inflated at a time.
const STEP: usize = 4 << 10;

/// The words that both ends have seen before the first byte, each with its length before it, and then some text.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

pub fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS {
        all.put_u32(word.len() as u32);
        all.put_slice(word.as_bytes());
    }
    all.put_slice(TEXT.as_bytes());
    all
}

/// Names in lower case, each with its first value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    /// `name` in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The receiving end of one direction. A block that cannot be read ends the connection: what follows needs its state.
#[derive(Debug)]
pub struct Inflater(Option<Decompress>);

impl Inflater {
    /// The state is 40 KiB and made when the first block comes.
    pub fn new() -> Self {
        Self(None)
    }

    pub fn headers(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, FrameError> {
        let zlib = self.0.get_or_insert_with(|| Decompress::new(true));
        let mut output = Vec::with_capacity(STEP);
        loop {
            if output.len() >= MAX_BLOCK {
                return Err(FrameError::HeadersTooLarge);
            }
            output.reserve(STEP.min(MAX_BLOCK - output.len()));
            let (taken, made) = (zlib.total_in(), output.len());
            let outcome = zlib.decompress_vec(input, &mut output, FlushDecompress::Sync);
            let taken = usize::try_from(zlib.total_in() - taken).unwrap_or(input.len());
            input = input.get(taken..).unwrap_or_default();
            match outcome {
                Ok(Status::StreamEnd) => {
                    return Err(FrameError::BadHeaders("the stream of headers was ended"));
                }
                // More may come out although all went in, if there was no room.
                Ok(_) if output.len() == output.capacity() => {}
                Ok(_) if input.is_empty() => return Ok(output),
                Ok(_) if taken == 0 && output.len() == made => {
                    return Err(FrameError::BadHeaders("they cannot be inflated"));
                }
                Ok(_) => {}
                Err(e) if e.needs_dictionary().is_some() => {
                    zlib.set_dictionary(&dictionary())
                        .map_err(|_| FrameError::BadHeaders("they want another dictionary"))?;
                }
                Err(_) => return Err(FrameError::BadHeaders("they cannot be inflated")),
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, FrameError> {
    const SHORT: FrameError = FrameError::BadHeaders("they end too early");
    fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (text, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        *rest = tail;
        Some(text)
    }
    let (count, mut rest) = block.split_first_chunk::<4>().ok_or(SHORT)?;
    let mut headers = Headers::default();
    // Each takes eight bytes at least, so that the count alone reserves nothing.
    for _ in 0..u32::from_be_bytes(*count) {
        let name = text(&mut rest).ok_or(SHORT)?;
        let value = text(&mut rest).ok_or(SHORT)?;
        let first = value.split(|b| *b == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        headers
            .0
            .push((name, String::from_utf8_lossy(first).into_owned()));
    }
    Ok(headers)
}

/// The sending end. Our replies have no headers, so nothing is gained by compression: blocks go out "stored", which
/// needs neither dictionary nor state. The empty block behind each is what a sync flush leaves, and what makes
/// receivers hand out what they have.
#[derive(Debug, Default)]
pub struct Storer {
    begun: bool,
}

impl Storer {
    pub fn empty(&mut self, into: &mut BytesMut) {
        if !std::mem::replace(&mut self.begun, true) {
            into.put_slice(&[0x78, 0x01]);
        }
        into.put_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        into.put_slice(&[0, 0, 0, 0xff, 0xff]);
    }
}
