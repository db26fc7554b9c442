//! A thread that serves devices beside the main one, for what must not stall the rest.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex};

use crate::ending::Once;
use crate::event_loop::EventLoop;
use crate::jail::filter::Class;
use crate::threads::{Starter, Thread};
use crate::virtio::VirtioDevice;

const STACK: usize = 128 << 10;

/// A running thread. Dropping it lets the thread run to the end of the process.
#[derive(Debug)]
pub(crate) struct SideThread {
    end: Once<()>,
    thread: Thread<()>,
}

impl SideThread {
    /// Starts a thread that serves `devices`.
    pub(crate) fn start(
        starter: &Starter,
        name: &str,
        devices: Vec<Arc<Mutex<dyn VirtioDevice>>>,
    ) -> io::Result<Self> {
        let end = Once::new()?;
        let mut events = EventLoop::new(&end)?;
        for device in devices {
            events.add_device(device);
        }
        let until = end.clone();
        let serve = move || {
            // An event loop fails only for want of memory or descriptors, neither of which it takes while it runs.
            let _ = events.run_until(&until);
            let _ = events.finish();
        };
        let thread = starter.start(name, STACK, Class::Io, serve)?;
        Ok(Self { end, thread })
    }

    /// Serves what the guest has asked for until now, and ends.
    pub(crate) fn finish(self) {
        self.end.set(());
        self.thread.join();
    }
}
