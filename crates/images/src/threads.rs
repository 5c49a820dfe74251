//! Threads for work that lasts as long as a download: the runtime's few for file work are shared with everything that pods
//! need, and are for what ends by itself.

use tokio::sync::oneshot;

/// Runs `work` on a thread of its own. The channel closes without a result if it panics.
pub(crate) fn run<R: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> R + Send + 'static,
) -> std::io::Result<oneshot::Receiver<R>> {
    let (done, result) = oneshot::channel();
    std::thread::Builder::new().name(name.into()).spawn(move || {
        // Nobody may be waiting any more; what the work gave is dropped here then.
        drop(done.send(work()));
    })?;
    Ok(result)
}
