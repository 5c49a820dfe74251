//! `holdfast logs`: the container's log file, which is on this machine.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use holdfast_cri_api::v1;

use crate::args::Logs;
use crate::client::Client;
use crate::crilog::{self, Reader};
use crate::find;

/// How often a followed file is looked at, and the container asked after.
const POLL: Duration = Duration::from_millis(100);
const ASK: Duration = Duration::from_secs(1);

pub async fn run(mut client: Client, options: Logs) -> Result<()> {
    let id = find::container(&mut client, &options.container).await?.id;
    let status = client.container_status(&id).await?;
    if status.log_path.is_empty() {
        bail!(
            "container {} has no log: it was made without a log path",
            options.container
        );
    }
    let path = Path::new(&status.log_path);
    let mut reader = Reader::open(path).with_context(|| format!("cannot read the log {}", path.display()))?;
    if let Some(lines) = options.tail {
        reader.skip_to_tail(lines)?;
    }
    let mut printer = Printer::new(io::stdout().lock(), io::stderr().lock(), options.timestamps);
    let outcome = if options.follow {
        follow(&mut client, &id, &mut reader, &mut printer).await
    } else {
        reader.drain(|line| printer.line(line)).map_err(Into::into)
    };
    outcome.and_then(|()| Ok(printer.flush()?))
}

async fn follow(
    client: &mut Client,
    id: &str,
    reader: &mut Reader,
    printer: &mut Printer<impl Write, impl Write>,
) -> Result<()> {
    let mut asked = Instant::now();
    let mut ended = false;
    loop {
        reader.drain(|line| printer.line(line))?;
        printer.flush()?;
        if ended {
            return Ok(());
        }
        if asked.elapsed() >= ASK {
            asked = Instant::now();
            // The runtime may be restarting: the log goes on. A container that is gone has ended.
            ended = match client.container_status(id).await {
                Ok(status) => status.state() == v1::ContainerState::ContainerExited,
                Err(_) => !exists(client, id).await,
            };
        }
        tokio::time::sleep(POLL).await;
    }
}

/// `true` unless the runtime answers and does not list it.
async fn exists(client: &mut Client, id: &str) -> bool {
    let filter = v1::ContainerFilter {
        id: id.to_owned(),
        ..Default::default()
    };
    client
        .containers(filter)
        .await
        .map_or(true, |list| !list.is_empty())
}

/// Gives each stream its lines; partial ones are put together again.
struct Printer<O: Write, E: Write> {
    out: io::BufWriter<O>,
    err: io::BufWriter<E>,
    timestamps: bool,
    /// Whether the last chunk of stdout and of stderr left its line open.
    open: [bool; 2],
    /// Whether the last chunk was stderr's.
    last: bool,
}

impl<O: Write, E: Write> Printer<O, E> {
    fn new(out: O, err: E, timestamps: bool) -> Self {
        Self {
            out: io::BufWriter::new(out),
            err: io::BufWriter::new(err),
            timestamps,
            open: [false; 2],
            last: false,
        }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(chunk) = crilog::parse(line) else {
            // Not in the format; somebody may still want to see it, where it stands.
            if self.last {
                self.flush()?;
                self.last = false;
            }
            self.out.write_all(line)?;
            return self.out.write_all(b"\n");
        };
        if chunk.stderr != self.last {
            // Both may lead to one terminal or file: what came first is shown first.
            self.flush()?;
            self.last = chunk.stderr;
        }
        let open = &mut self.open[usize::from(chunk.stderr)];
        let to: &mut dyn Write = if chunk.stderr {
            &mut self.err
        } else {
            &mut self.out
        };
        if self.timestamps && !*open {
            write!(to, "{} ", chunk.time)?;
        }
        to.write_all(chunk.bytes)?;
        if chunk.full {
            to.write_all(b"\n")?;
        }
        *open = !chunk.full;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chunks_become_lines_of_their_stream() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(&mut out, &mut err, true);
        for line in ["T1 stdout P ab", "T2 stderr F oops", "T3 stdout F cd", "garbage"] {
            printer.line(line.as_bytes()).unwrap();
        }
        printer.flush().unwrap();
        drop(printer);
        assert_eq!(String::from_utf8(out).unwrap(), "T1 abcd\ngarbage\n");
        assert_eq!(String::from_utf8(err).unwrap(), "T2 oops\n");
    }

    /// Both streams in one place.
    #[derive(Clone, Default)]
    struct Both(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

    impl Write for Both {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_streams_keep_their_order() {
        let both = Both::default();
        let mut printer = Printer::new(both.clone(), both.clone(), false);
        for line in [
            "T stdout F one",
            "T stderr F two",
            "T stderr F three",
            "garbage",
            "T stderr F four",
            "T stdout F five",
        ] {
            printer.line(line.as_bytes()).unwrap();
        }
        printer.flush().unwrap();
        let seen = both.0.borrow().clone();
        assert_eq!(
            String::from_utf8(seen).unwrap(),
            "one\ntwo\nthree\ngarbage\nfour\nfive\n"
        );
    }
}
