//! Monohull's virtual machine monitor: one process, one VM, one pod.
//!
//! It knows KVM, memory and virtio, and nothing of containers. Its owner speaks to it with the messages of [`api`];
//! [`client`] is the owner's side of that, [`run`] the VMM's.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod api;
mod builder;
mod bus;
pub mod client;
mod control;
mod device_set;
pub mod devices;
mod ending;
mod event_loop;
mod guest;
mod hotplug;
pub mod ipc;
mod jail;
mod machine;
mod marks;
mod memory;
mod panic_record;
mod persist;
pub mod probe;
mod side_thread;
pub mod snapshot;
mod threads;
mod vcpu;
pub mod virtio;
mod vm;
mod x86;

/// The bodies of fuzz targets for what is private otherwise.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// A first message with anything in it.
    pub fn config(bytes: &[u8]) {
        crate::builder::hostile::run(bytes);
    }

    /// An owner that asks for anything.
    pub fn control(bytes: &[u8]) {
        crate::control::hostile::run(bytes);
    }
}

pub use jail::filter::describe as filters;
#[cfg(debug_assertions)]
pub use jail::filter::leave_out;
pub use machine::run;
pub use marks::Marks;

/// Locks a mutex, also one that a panicking thread has left: device models check what they find, and a VMM of which one
/// thread panicked still has to tell its owner.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Most characters of an error, so that a message has room for it.
const MAX_ERROR: usize = 1024;

/// An error and its causes, as one line.
pub(crate) fn describe(error: &dyn Error) -> String {
    // Some name what they were given, and that can be anything.
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    chain(error).chars().take(MAX_ERROR).map(clean).collect()
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their cause's text in their own.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_of_bounded_length_whatever_it_quotes() {
        let message = format!("{{\"id\":7,\"action\":{{\"\\n\\u001b{}\":1}}}}", "x".repeat(10_000));
        let error = serde_json::from_str::<api::Request>(&message).unwrap_err();
        let text = describe(&ipc::IpcError::Message(error));
        assert!(text.contains("is not valid: unknown variant `  xxx"), "{text}");
        assert!(text.len() <= MAX_ERROR && !text.contains(char::is_control));
    }
}
