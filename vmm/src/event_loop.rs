//! A thread's event loop, which serves devices and the control socket.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::ending::Once;
use crate::virtio::VirtioDevice;

/// Events handled per wake-up; more wait for the next.
const BATCH: usize = 32;

/// Serves its subscribers until something happens.
pub(crate) struct EventLoop {
    manager: EventManager<Box<dyn MutEventSubscriber + Send>>,
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventLoop")
    }
}

impl EventLoop {
    /// A loop that [`Self::run_until`] `end` is set.
    pub(crate) fn new<T>(end: &Once<T>) -> io::Result<Self> {
        let mut manager = EventManager::new_with_capacity(BATCH).map_err(io::Error::other)?;
        manager
            .add_subscriber(Box::new(WakeUp(end.event().try_clone()?)) as Box<dyn MutEventSubscriber + Send>);
        Ok(Self { manager })
    }

    /// Serves `subscriber` from now on.
    pub(crate) fn add(&mut self, subscriber: impl MutEventSubscriber + Send + 'static) {
        self.manager.add_subscriber(Box::new(subscriber));
    }

    /// Serves a device from now on.
    pub(crate) fn add_device(&mut self, device: Arc<Mutex<dyn VirtioDevice>>) {
        self.add(DeviceEvents(device));
    }

    /// Runs until `end` is set.
    pub(crate) fn run_until<T>(&mut self, end: &Once<T>) -> io::Result<()> {
        while end.get().is_none() {
            self.manager.run().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Serves what has happened already, and waits for nothing.
    pub(crate) fn finish(&mut self) -> io::Result<()> {
        self.manager.run_with_timeout(0).map_err(io::Error::other)?;
        Ok(())
    }
}

/// Ends the wait for events; the loop itself looks why.
struct WakeUp(EventFd);

impl MutEventSubscriber for WakeUp {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}

    fn init(&mut self, ops: &mut EventOps) {
        // Edge-triggered: the event stays set, and is to end one wait only. A new epoll instance takes any descriptor
        // once; were that to fail, the loop would still end with the next event.
        let _ = ops.add(Events::new(&self.0, EventSet::IN | EventSet::EDGE_TRIGGERED));
    }
}

/// Passes events on to a device that the vCPU threads share.
struct DeviceEvents(Arc<Mutex<dyn VirtioDevice>>);

impl MutEventSubscriber for DeviceEvents {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        crate::lock(&self.0).process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        crate::lock(&self.0).init(ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    struct Counter(EventFd, Arc<AtomicU32>);

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            let _ = self.0.read();
            self.1.fetch_add(1, Ordering::SeqCst);
        }

        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn what_was_kicked_before_the_end_is_still_served() {
        let end = Once::<()>::new().unwrap();
        let mut events = EventLoop::new(&end).unwrap();
        let (kick, count) = (EventFd::new(EFD_NONBLOCK).unwrap(), Arc::new(AtomicU32::new(0)));
        events.add(Counter(kick.try_clone().unwrap(), count.clone()));
        kick.write(1).unwrap();
        end.set(());

        events.run_until(&end).unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 0);
        events.finish().unwrap();

        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_end_wakes_a_waiting_loop() {
        let end = Once::<()>::new().unwrap();
        let mut events = EventLoop::new(&end).unwrap();
        let setter = end.clone();
        let thread = std::thread::spawn(move || setter.set(()));
        events.run_until(&end).unwrap();
        thread.join().unwrap();
    }
}
