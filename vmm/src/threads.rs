//! The VMM's threads, and the one that starts the others.
//!
//! A thread inherits the filter of system calls of the thread that starts it. The main one reads what the guest wrote, and is
//! to start nothing itself; so a thread that reads nothing does it. Each of its children then restricts itself to its class.
#![forbid(unsafe_code)]

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::signal::Killable;

use crate::jail::filter::{self, Class};

/// Stack in bytes of the thread that starts the others.
const STACK: usize = 64 << 10;

/// Starts threads. Cheap to clone; its thread ends with the last clone.
#[derive(Clone, Debug)]
pub(crate) struct Starter {
    orders: Sender<Order>,
}

/// A thread that is to be started.
struct Order {
    builder: Builder,
    run: Box<dyn FnOnce() + Send>,
    started: Sender<io::Result<JoinHandle<()>>>,
}

/// A thread, and what it returns. Dropping it lets the thread run on.
#[derive(Debug)]
pub(crate) struct Thread<T> {
    handle: JoinHandle<()>,
    result: Receiver<T>,
}

impl Starter {
    /// Starts the thread that starts threads.
    pub(crate) fn new() -> io::Result<Self> {
        let (orders, receiver) = channel();
        let serve = move || {
            filter::install_or_exit(Class::Start);
            for Order { builder, run, started } in receiver {
                // It fails when the one that asked has not waited.
                let _ = started.send(builder.spawn(run));
            }
        };
        Builder::new().name("starter".to_owned()).stack_size(STACK).spawn(serve)?;
        Ok(Self { orders })
    }

    /// One that starts nothing.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn nobody() -> Self {
        Self { orders: channel().0 }
    }

    /// Starts a thread of `class` that calls `run`, with `stack` bytes.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        name: &str,
        stack: usize,
        class: Class,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Thread<T>> {
        let (give, result) = channel();
        let run = Box::new(move || {
            filter::install_or_exit(class);
            // It fails when nobody wants to know.
            let _ = give.send(run());
        });
        let (started, handle) = channel();
        let builder = Builder::new().name(name.to_owned()).stack_size(stack);
        // Both fail only when the thread has panicked, which ends the process.
        let gone = || io::Error::other("the thread that starts threads has ended");
        self.orders.send(Order { builder, run, started }).map_err(|_| gone())?;
        Ok(Thread { handle: handle.recv().map_err(|_| gone())??, result })
    }
}

impl<T> Thread<T> {
    /// Interrupts what the thread does with signal `number`.
    pub(crate) fn signal(&self, number: i32) {
        // Fails only when the thread has ended.
        let _ = self.handle.kill(number);
    }

    /// Waits for the thread to end. `None` when it has panicked.
    pub(crate) fn join(self) -> Option<T> {
        let result = self.result.recv().ok();
        self.handle.join().ok()?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_returns_what_it_was_started_for() {
        let starter = Starter::new().unwrap();
        let threads: Vec<_> =
            (0..3).map(|n| starter.start("thread", 64 << 10, Class::Io, move || n * 2).unwrap()).collect();
        drop(starter);
        assert_eq!(threads.into_iter().map(Thread::join).collect::<Vec<_>>(), [Some(0), Some(2), Some(4)]);
    }
}
