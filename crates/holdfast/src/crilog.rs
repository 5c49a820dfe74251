//! The log format of the CRI, `<time> stdout|stderr P|F <bytes>`, read from a file that may be rotated under our feet.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// One chunk. Lines longer than the runtime's buffer come as several partial ones and a full one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    pub time: &'a str,
    pub stderr: bool,
    /// The line ends here.
    pub full: bool,
    pub bytes: &'a [u8],
}

/// `None` for what is not in the format.
pub fn parse(line: &[u8]) -> Option<Chunk<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?)
        .ok()
        .filter(|t| !t.is_empty())?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags after the first are separated by colons and not in use.
    let full = match parts.next()?.split(|b| *b == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Chunk {
        time,
        stderr,
        full,
        bytes: parts.next().unwrap_or_default(),
    })
}

/// Reads a log file to its end, again and again, and goes over to its successor when it is rotated.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    inode: (u64, u64),
    /// Bytes read that do not end in a newline yet.
    rest: Vec<u8>,
    buffer: Vec<u8>,
}

/// A line cannot be longer: chunks are 16 KiB with either Go runtime and with ours.
const MAX_LINE: usize = 1 << 20;

impl Reader {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            inode: inode(&file.metadata()?),
            file,
            rest: Vec::new(),
            buffer: vec![0; 64 << 10],
        })
    }

    /// Skips all but the last `lines`. Reads as much of the end as it takes, twice that at the most.
    pub fn skip_to_tail(&mut self, lines: usize) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        let mut window = (64_u64 << 10).min(end);
        loop {
            self.file.seek(SeekFrom::Start(end - window))?;
            let mut bytes = Vec::new();
            self.file.by_ref().take(window).read_to_end(&mut bytes)?;
            if let Some(offset) = tail_offset(&bytes, lines, window == end) {
                let start = end - window + u64::try_from(offset).unwrap_or(u64::MAX);
                self.file.seek(SeekFrom::Start(start))?;
                return Ok(());
            }
            window = (window * 2).min(end);
        }
    }

    /// Gives every line up to the present end to `line`, without its newline.
    pub fn drain(&mut self, mut line: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        loop {
            if !self.read_to_end(&mut line)? && !self.switch(&mut line)? {
                return Ok(());
            }
        }
    }

    /// Whether anything was read.
    fn read_to_end(&mut self, line: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        let mut any = false;
        loop {
            let count = self.file.read(&mut self.buffer)?;
            if count == 0 {
                break;
            }
            any = true;
            let mut bytes = &self.buffer[..count];
            while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
                if self.rest.is_empty() {
                    line(&bytes[..end])?;
                } else {
                    self.rest.extend_from_slice(&bytes[..end]);
                    line(&self.rest)?;
                    self.rest.clear();
                }
                bytes = &bytes[end + 1..];
            }
            self.rest.extend_from_slice(bytes);
            if self.rest.len() > MAX_LINE {
                line(&self.rest)?;
                self.rest.clear();
            }
        }
        let position = self.file.stream_position()?;
        if self.file.metadata()?.len() < position {
            // Cut short in place; what follows starts at the beginning.
            self.file.seek(SeekFrom::Start(0))?;
            self.rest.clear();
        }
        Ok(any)
    }

    /// Goes over to the file that now has our name, once the old one is read to its end. Whether it did.
    fn switch(&mut self, line: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        // Between rename and reopen there is no file of that name: the writer still uses the old one.
        let Ok(file) = File::open(&self.path) else {
            return Ok(false);
        };
        let next = inode(&file.metadata()?);
        if next == self.inode {
            return Ok(false);
        }
        // What was written between our last read and the reopening.
        self.read_to_end(line)?;
        if !self.rest.is_empty() {
            line(&self.rest)?;
            self.rest.clear();
        }
        self.file = file;
        self.inode = next;
        Ok(true)
    }
}

fn inode(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Where the last `lines` whole lines begin. `None`: not in these bytes, unless they are the `whole` file.
fn tail_offset(bytes: &[u8], lines: usize, whole: bool) -> Option<usize> {
    let mut wanted = lines;
    let mut end = bytes.len();
    // The offset after the newline that ends the line before the ones wanted.
    while let Some(newline) = bytes[..end].iter().rposition(|b| *b == b'\n') {
        let start = bytes[..newline]
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |n| n + 1);
        let complete = start > 0 || whole;
        if !complete {
            return None;
        }
        if parse(&bytes[start..newline]).is_none_or(|chunk| chunk.full) {
            if wanted == 0 {
                return Some(newline + 1);
            }
            wanted -= 1;
        }
        end = start;
    }
    whole.then_some(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    const T: &str = "2026-01-02T03:04:05.678901234Z";

    #[test]
    fn the_format() {
        let line = format!("{T} stderr P some  bytes ");
        let chunk = parse(line.as_bytes()).unwrap();
        assert_eq!((chunk.time, chunk.stderr, chunk.full), (T, true, false));
        assert_eq!(chunk.bytes, b"some  bytes ");
        assert_eq!(parse(format!("{T} stdout F ").as_bytes()).unwrap().bytes, b"");
        assert_eq!(parse(format!("{T} stdout F").as_bytes()).unwrap().bytes, b"");
        assert!(parse(format!("{T} stdout F:x y").as_bytes()).unwrap().full);
        for bad in ["", "x", "t stdout", "t nowhere F x", "t stdout X y"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn tails_count_whole_lines() {
        let text = format!("{T} stdout F one\n{T} stdout P tw\n{T} stdout F o\n{T} stdout F three\n");
        let tail = |lines| {
            let offset = tail_offset(text.as_bytes(), lines, true).unwrap();
            text[offset..].lines().count()
        };
        assert_eq!([tail(0), tail(1), tail(2), tail(3), tail(9)], [0, 1, 3, 4, 4]);
        assert_eq!(tail_offset(text.as_bytes(), 9, false), None);
    }

    #[test]
    fn rotation_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut writer = File::create(&path).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let mut seen: Vec<String> = Vec::new();
        let mut drain = |reader: &mut Reader| {
            reader
                .drain(|line| {
                    seen.push(String::from_utf8_lossy(line).into_owned());
                    Ok(())
                })
                .unwrap();
            seen.join(",")
        };
        write!(writer, "a\nb").unwrap();
        assert_eq!(drain(&mut reader), "a");
        std::fs::rename(&path, &old).unwrap();
        writeln!(writer, "c").unwrap();
        assert_eq!(drain(&mut reader), "a,bc");
        writeln!(writer, "d").unwrap();
        std::fs::write(&path, "e\n").unwrap();
        assert_eq!(drain(&mut reader), "a,bc,d,e");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(chunk) = parse(&line) {
                prop_assert!(line.ends_with(chunk.bytes) && !chunk.time.is_empty());
            }
        }

        #[test]
        fn what_was_written_is_read(
            stderr: bool, full: bool, bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let (stream, tag) = (if stderr { "stderr" } else { "stdout" }, if full { "F" } else { "P" });
            let line = [format!("{T} {stream} {tag} ").as_bytes(), &bytes].concat();
            prop_assert_eq!(parse(&line), Some(Chunk { time: T, stderr, full, bytes: &bytes }));
        }

        #[test]
        fn a_tail_is_the_end_of_the_log(fulls in prop::collection::vec(any::<bool>(), 0..60), lines in 0..20usize, cut in 0..4000usize) {
            let text: String = (0..).zip(&fulls)
                .map(|(n, full)| format!("{T} stdout {} {n}\n", if *full { "F" } else { "P" }))
                .collect();
            let whole = tail_offset(text.as_bytes(), lines, true).unwrap_or(usize::MAX);
            // It begins at a line, and holds as many whole ones as were asked for, or all.
            prop_assert!(whole == 0 || text.as_bytes().get(whole - 1) == Some(&b'\n'), "{}", whole);
            let held = text[whole..].lines().filter(|l| l.contains(" F ")).count();
            prop_assert_eq!(held, lines.min(fulls.iter().filter(|f| **f).count()));
            // The end of the file alone gives the same, or says that it is too little.
            let cut = cut.min(text.len());
            if let Some(part) = tail_offset(&text.as_bytes()[cut..], lines, false) {
                prop_assert_eq!(part + cut, whole);
            }
        }
    }

    #[test]
    fn a_long_file_is_read_from_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let text: String = (0..50_000).map(|n| format!("{T} stdout F line {n}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let mut reader = Reader::open(&path).unwrap();
        reader.skip_to_tail(3).unwrap();
        let mut seen = Vec::new();
        reader
            .drain(|line| {
                seen.push(line.to_vec());
                Ok(())
            })
            .unwrap();
        assert_eq!(seen.len(), 3);
        assert!(seen[2].ends_with(b"line 49999"));
    }
}
