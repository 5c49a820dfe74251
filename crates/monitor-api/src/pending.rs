//! Calls that wait for their answer, by id. A call that gives up (dropped future, deadline) takes itself off the list;
//! an answer that nobody waits for is dropped, which closes its descriptors.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::Error;
use crate::message::reply;

/// One reply: its body and what came with it.
pub(crate) type Answer = (reply::Body, Vec<OwnedFd>);

/// Replies that one call may get before it has taken the first (an inventory comes in several).
const ANSWERS_PER_CALL: usize = 64;

#[derive(Default)]
struct Table {
    last_id: u64,
    gone: bool,
    waiting: HashMap<u64, mpsc::Sender<Answer>>,
}

#[derive(Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<Table>>);

/// A call's place on the list.
pub(crate) struct Ticket {
    pub(crate) id: u64,
    answers: mpsc::Receiver<Answer>,
    pending: Pending,
}

impl Pending {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn register(&self) -> Result<Ticket, Error> {
        let (sender, answers) = mpsc::channel(ANSWERS_PER_CALL);
        let mut table = self.table();
        if table.gone {
            return Err(Error::Gone);
        }
        table.last_id += 1;
        let id = table.last_id;
        table.waiting.insert(id, sender);
        Ok(Ticket {
            id,
            answers,
            pending: self.clone(),
        })
    }

    pub(crate) fn answer(&self, id: u64, answer: Answer) {
        if let Some(sender) = self.table().waiting.get(&id) {
            // Full: the peer sends more than any call asks for. Dropping is the bound.
            let _ = sender.try_send(answer);
        }
    }

    /// Fails every call, now and from now on.
    pub(crate) fn fail_all(&self) {
        let mut table = self.table();
        table.gone = true;
        table.waiting.clear();
    }
}

impl Ticket {
    pub(crate) async fn next(&mut self) -> Result<Answer, Error> {
        self.answers.recv().await.ok_or(Error::Gone)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pending.table().waiting.remove(&self.id);
    }
}
