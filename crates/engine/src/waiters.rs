//! Callers that wait for one and the same operation.

use tokio::sync::oneshot;

use crate::Error;
use crate::config::bounds;

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Bounded; whoever comes too late is told so at once.
pub(crate) struct Waiters<T>(Vec<Reply<T>>);

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Waiters<T> {
    pub(crate) fn one(reply: Reply<T>) -> Self {
        Self(vec![reply])
    }

    pub(crate) fn add(&mut self, id: &str, reply: Reply<T>) {
        self.0.retain(|waiting| !waiting.is_closed());
        if self.0.len() >= bounds::WAITERS {
            let _ = reply.send(Err(Error::Busy {
                id: id.to_owned(),
                reason: "too many callers wait for it",
            }));
        } else {
            self.0.push(reply);
        }
    }

    /// Tells everyone. Says whether anyone was still there to hear it.
    pub(crate) fn settle(self, outcome: Result<T, Error>) -> bool {
        let mut heard = false;
        match outcome {
            Ok(value) => {
                for reply in self.0 {
                    heard |= reply.send(Ok(value.clone())).is_ok();
                }
            }
            Err(error) => {
                let mut replies = self.0.into_iter();
                let first = replies.next();
                for reply in replies {
                    heard |= reply.send(Err(error.share())).is_ok();
                }
                heard |= first.is_some_and(|reply| reply.send(Err(error)).is_ok());
            }
        }
        heard
    }
}
