//! A client's own deadline (`grpc-timeout`), answered with DEADLINE_EXCEEDED.
//!
//! tonic counts the time and gives a call up, which cancels what it does, but says CANCELLED. The gRPC specification wants
//! DEADLINE_EXCEEDED, and clients tell the two apart: the one may be tried again. So this sits below tonic's timer, is asked
//! before it, and answers first.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tonic::Status;
use tonic::codegen::{Body, Service, http};

/// tonic's timer wakes on a whole millisecond, and was started a little before ours was read.
const TICK: Duration = Duration::from_millis(1);

#[derive(Debug, Clone)]
pub(crate) struct Deadline<S>(pub S);

type Answer<F, E> = Pin<Box<dyn Future<Output = Result<F, E>> + Send>>;

impl<S, B, R> Service<http::Request<B>> for Deadline<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>, Error = Infallible>,
    S::Future: Send + 'static,
    R: Body + Default,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let limit = request
            .headers()
            .get("grpc-timeout")
            .and_then(|value| parse(value.to_str().ok()?));
        let mut call = Box::pin(self.0.call(request));
        let Some(limit) = limit else { return call };
        let begin = Instant::now();
        Box::pin(std::future::poll_fn(move |context| {
            match call.as_mut().poll(context) {
                Poll::Pending if begin.elapsed() + TICK >= limit => {
                    let status = Status::deadline_exceeded(format!(
                        "the client's deadline of {limit:?} has passed: the call was given up"
                    ));
                    Poll::Ready(Ok(status.into_http()))
                }
                answer => answer,
            }
        }))
    }
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol over HTTP/2: at most eight digits, then one of `HMSmun`.
fn parse(value: &str) -> Option<Duration> {
    let digits = value.get(..value.len().checked_sub(1)?)?;
    let plausible = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = plausible.then(|| digits.parse().ok())??;
    Some(match value.as_bytes().last()? {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call that never ends, asked again when its time is over, as tonic's timer does.
    #[tokio::test]
    async fn a_call_that_is_given_up_says_so() {
        let never = tower::service_fn(|_: http::Request<String>| {
            std::future::pending::<Result<http::Response<String>, Infallible>>()
        });
        let mut request = http::Request::new(String::new());
        request
            .headers_mut()
            .insert("grpc-timeout", http::HeaderValue::from_static("20m"));
        let mut call = Deadline(never).call(request);
        let early = futures::poll!(&mut call);
        assert!(early.is_pending(), "given up at once");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Poll::Ready(Ok(answer)) = futures::poll!(&mut call) else {
            panic!("not given up in time")
        };
        // https://grpc.github.io/grpc/core/md_doc_statuscodes.html: 4 is DEADLINE_EXCEEDED.
        assert_eq!(answer.headers()["grpc-status"], "4");
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        for (text, wanted) in [
            ("1m", Some(Duration::from_millis(1))),
            ("999960u", Some(Duration::from_micros(999_960))),
            ("2H", Some(Duration::from_secs(7200))),
            ("00000003S", Some(Duration::from_secs(3))),
            ("123456789S", None),
            ("", None),
            ("S", None),
            ("5", None),
            ("5x", None),
            ("-5S", None),
            ("5é", None),
        ] {
            assert_eq!(parse(text), wanted, "{text:?}");
        }
    }
}
