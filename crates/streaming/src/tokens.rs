//! Requests that were accepted over CRI and are to be claimed over HTTP: once, and soon.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// How long a token is good.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// Tokens that were given out and not claimed. Each may hold a command line, so that they are few.
pub const MAX_TOKENS: usize = 1000;
/// 192 bits.
const TOKEN: usize = 24;

#[derive(Debug)]
pub struct Tokens<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    requests: HashMap<String, (T, Instant)>,
    /// In the order in which they expire; those that were claimed meanwhile are skipped.
    order: VecDeque<(String, Instant)>,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{MAX_TOKENS} streaming requests wait to be claimed; try again in a minute")]
    Full,
    #[error("cannot get random bytes")]
    Random(#[source] std::io::Error),
}

impl<T> Tokens<T> {
    pub fn new() -> Self {
        Self(Mutex::new(Inner {
            requests: HashMap::new(),
            order: VecDeque::new(),
        }))
    }

    pub fn issue(&self, request: T) -> Result<String, TokenError> {
        self.issue_at(Instant::now(), request)
    }

    fn issue_at(&self, now: Instant, request: T) -> Result<String, TokenError> {
        let mut raw = [0; TOKEN];
        // So few bytes come whole, and at once after the kernel's start.
        rustix::rand::getrandom(&mut raw, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| TokenError::Random(e.into()))?;
        let token = URL_SAFE_NO_PAD.encode(raw);
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.expire(now);
        if inner.requests.len() >= MAX_TOKENS {
            return Err(TokenError::Full);
        }
        inner.requests.insert(token.clone(), (request, now + LIFETIME));
        inner.order.push_back((token.clone(), now + LIFETIME));
        Ok(token)
    }

    /// The request behind a token, which is good for nothing afterwards.
    pub fn claim(&self, token: &str) -> Option<T> {
        self.claim_at(Instant::now(), token)
    }

    fn claim_at(&self, now: Instant, token: &str) -> Option<T> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.expire(now);
        inner.requests.remove(token).map(|(request, _)| request)
    }
}

impl<T> Inner<T> {
    fn expire(&mut self, now: Instant) {
        while let Some((token, until)) = self.order.front() {
            // What was claimed leaves at once, so that the order is no longer than it must be.
            if *until > now && self.requests.contains_key(token) {
                break;
            }
            self.requests.remove(token);
            self.order.pop_front();
        }
        // Claimed ones behind one that waits.
        if self.order.len() > 2 * MAX_TOKENS {
            let requests = &self.requests;
            self.order.retain(|(token, _)| requests.contains_key(token));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn once_and_soon() {
        let tokens = Tokens::new();
        let token = tokens.issue(1).unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(tokens.claim("unknown"), None);
        assert_eq!(tokens.claim(&token), Some(1));
        assert_eq!(tokens.claim(&token), None);
        let now = Instant::now();
        let token = tokens.issue_at(now, 2).unwrap();
        let late = now + LIFETIME - Duration::from_millis(1);
        assert_eq!(tokens.claim_at(late, &token), Some(2));
        let token = tokens.issue_at(now, 3).unwrap();
        assert_eq!(tokens.claim_at(now + LIFETIME, &token), None);
    }

    #[test]
    fn a_bounded_number() {
        let tokens = Tokens::new();
        let now = Instant::now();
        let first = tokens.issue_at(now, 0).unwrap();
        for n in 1..MAX_TOKENS {
            tokens.issue_at(now, n).unwrap();
        }
        assert!(matches!(tokens.issue_at(now, 0), Err(TokenError::Full)));
        assert_eq!(tokens.claim_at(now, &first), Some(0));
        // Claimed over and over, behind others that wait.
        for n in 0..10 * MAX_TOKENS {
            let token = tokens.issue_at(now, n).unwrap();
            assert_eq!(tokens.claim_at(now, &token), Some(n));
        }
        assert!(tokens.0.lock().unwrap().order.len() <= 2 * MAX_TOKENS + 1);
        let now = now + LIFETIME;
        let token = tokens.issue_at(now, 1).unwrap();
        assert_eq!(tokens.0.lock().unwrap().requests.len(), 1);
        assert_eq!(tokens.claim_at(now, &token), Some(1));
    }
}
