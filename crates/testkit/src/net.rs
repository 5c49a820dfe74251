//! Throw-away network namespaces.

use holdfast_sys::clone::NEWNET;
use holdfast_sys::namespace;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// A network namespace that lives as long as this value (and whatever else joins it).
#[derive(Debug)]
pub struct NetNamespace {
    file: File,
}

impl NetNamespace {
    /// A new one, with its loopback device down.
    #[must_use]
    pub fn new() -> Self {
        let file = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                namespace::unshare(NEWNET)?;
                File::open("/proc/thread-self/ns/net")
            });
            made.join()
                .unwrap_or_else(|_| panic!("the thread that makes a network namespace died"))
        });
        let file =
            file.unwrap_or_else(|error| panic!("this test needs root: no new network namespace: {error}"));
        Self { file }
    }

    /// Runs `work` in a thread that is inside, and waits for it. Sockets that it opens stay inside for ever.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                namespace::join(self.file.as_fd(), NEWNET)
                    .unwrap_or_else(|error| panic!("could not join: {error}"));
                work()
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The kernel's number for it, as in the links of /proc/PID/ns/net.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.ino())
    }

    #[must_use]
    pub fn try_clone(&self) -> OwnedFd {
        let copy = self.file.try_clone();
        copy.unwrap_or_else(|error| panic!("could not duplicate a descriptor: {error}"))
            .into()
    }

    /// Moves the calling thread in, for good. Before the test has made threads this is the whole process.
    pub fn enter(&self) {
        namespace::join(self.file.as_fd(), NEWNET).unwrap_or_else(|error| panic!("could not join: {error}"));
    }
}

impl Default for NetNamespace {
    fn default() -> Self {
        Self::new()
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
