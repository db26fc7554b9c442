//! A thread that serves devices beside the main one, for what must not stall the rest.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use crate::ending::Once;
use crate::event_loop::EventLoop;
use crate::jail::filter::{self, Class};
use crate::virtio::VirtioDevice;

const STACK: usize = 128 << 10;

/// A running thread. Dropping it lets the thread run to the end of the process.
#[derive(Debug)]
pub(crate) struct SideThread {
    end: Once<()>,
    thread: JoinHandle<()>,
}

impl SideThread {
    /// Starts a thread that serves `devices`.
    pub(crate) fn start(name: &str, devices: Vec<Arc<Mutex<dyn VirtioDevice>>>) -> io::Result<Self> {
        let end = Once::new()?;
        let mut events = EventLoop::new(&end)?;
        for device in devices {
            events.add_device(device);
        }
        let until = end.clone();
        let serve = move || {
            filter::install_or_exit(Class::Io);
            // An event loop fails only for want of memory or descriptors, neither of which it takes while it runs.
            let _ = events.run_until(&until);
            let _ = events.finish();
        };
        let thread = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(serve)?;
        Ok(Self { end, thread })
    }

    /// Serves what the guest has asked for until now, and ends.
    pub(crate) fn finish(self) {
        self.end.set(());
        let _ = self.thread.join();
    }
}
