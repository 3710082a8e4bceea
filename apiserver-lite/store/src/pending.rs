//! Answers that come later, for tasks and for threads, without a runtime.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use crate::error::StoreError;
use crate::model::Committed;

type Answer = Result<Committed, StoreError>;

#[derive(Debug)]
enum State {
    Waiting(Option<Waker>),
    Answered(Answer),
    Taken,
}

/// The answer to a write. Dropping it does not take the write back.
#[derive(Debug)]
#[must_use = "a write is durable only when its answer says so"]
pub struct Pending {
    state: Arc<Mutex<State>>,
}

/// The other end. Dropped without an answer it answers [`StoreError::Closed`].
#[derive(Debug)]
pub(crate) struct Ticket {
    state: Option<Arc<Mutex<State>>>,
}

impl Pending {
    pub(crate) fn new() -> (Ticket, Self) {
        let state = Arc::new(Mutex::new(State::Waiting(None)));
        let ticket = Ticket {
            state: Some(Arc::clone(&state)),
        };
        (ticket, Self { state })
    }

    pub(crate) fn answered(answer: Answer) -> Self {
        Self {
            state: Arc::new(Mutex::new(State::Answered(answer))),
        }
    }

    /// Waits on this thread.
    ///
    /// # Errors
    /// Those of [`StoreError`] that end a write.
    pub fn wait(self) -> Answer {
        let waker = thread_waker();
        let mut context = Context::from_waker(&waker);
        let mut pending = pin!(self);
        loop {
            if let Poll::Ready(answer) = pending.as_mut().poll(&mut context) {
                return answer;
            }
            thread::park();
        }
    }
}

impl Future for Pending {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Answered(answer) => Poll::Ready(answer),
            State::Waiting(_) => {
                *state = State::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            State::Taken => Poll::Ready(Err(StoreError::Closed)),
        }
    }
}

impl Ticket {
    pub(crate) fn answer(mut self, answer: Answer) {
        self.set(answer);
    }

    fn set(&mut self, answer: Answer) {
        let Some(shared) = self.state.take() else {
            return;
        };
        let before = {
            let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *state, State::Answered(answer))
        };
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.set(Err(StoreError::Closed));
    }
}

struct ThreadWaker(Thread);

impl Wake for ThreadWaker {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Wakes the calling thread from `park`.
pub(crate) fn thread_waker() -> Waker {
    Waker::from(Arc::new(ThreadWaker(thread::current())))
}
