//! What surrounds every call: its limit of time, and one line in the log when it fails.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tonic::{Code, Response, Status};

/// Calls that are answered from memory.
pub const READ: Duration = Duration::from_secs(30);
/// Calls that change a pod. The engine has limits of its own for each step; this is the end of all patience.
pub const CHANGE: Duration = Duration::from_secs(300);

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Runs one call. Dropping it on time-out does not undo what the engine has begun: a repetition joins that.
pub async fn run<T>(
    name: &'static str,
    subject: &str,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let start = Instant::now();
    let outcome = match limit {
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "{name} was not done within {limit:?}"
            )))
        }),
        None => work.await,
    };
    let ms = format!("{:.1}", start.elapsed().as_secs_f64() * 1000.0);
    match outcome {
        Ok(reply) => {
            tracing::debug!(call = name, subject, %ms, "answered");
            Ok(Response::new(reply))
        }
        Err(status) => {
            let (code, said) = (status.code(), status.message());
            match code {
                // Clients ask after what is gone all the time.
                Code::NotFound | Code::Unimplemented => {
                    tracing::debug!(call = name, subject, %ms, ?code, "{said}");
                }
                Code::Internal | Code::Unknown => tracing::error!(call = name, subject, %ms, ?code, "{said}"),
                _ => tracing::warn!(call = name, subject, %ms, ?code, "{said}"),
            }
            Err(status)
        }
    }
}
