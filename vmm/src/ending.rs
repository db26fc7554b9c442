//! Something that happens once, told across threads: how a VM ends.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::api::ExitReason;

/// The end of a VM.
pub(crate) type Ending = Once<Cause>;

/// What brought the end of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The owner has gone: there is nobody to tell.
    Abandoned,
    /// A reason to tell the owner, before the guest's last words were read.
    Reason(ExitReason),
}

/// A value that is set once, and an event that tells of it. All clones share both.
#[derive(Debug)]
pub(crate) struct Once<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    value: OnceLock<T>,
    event: EventFd,
}

impl<T> Clone for Once<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<T> Once<T> {
    /// Nothing has happened yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { inner: Arc::new(Inner { value: OnceLock::new(), event: EventFd::new(EFD_NONBLOCK)? }) })
    }

    /// Sets the value; the first to do so has the say.
    pub(crate) fn set(&self, value: T) {
        if self.inner.value.set(value).is_ok() {
            // Fails only when the counter is full, and it is written once.
            let _ = self.inner.event.write(1);
        }
    }

    /// The value, once it is set.
    pub(crate) fn get(&self) -> Option<&T> {
        self.inner.value.get()
    }

    /// Becomes and stays readable when the value is set.
    pub(crate) fn event(&self) -> &EventFd {
        &self.inner.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands_and_is_told_once() {
        let ending = Ending::new().unwrap();
        ending.clone().set(Cause::Reason(ExitReason::TripleFault));
        ending.set(Cause::Abandoned);
        assert_eq!(ending.get(), Some(&Cause::Reason(ExitReason::TripleFault)));
        assert_eq!(ending.event().read().unwrap(), 1);
    }
}
