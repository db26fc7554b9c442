//! The body of the property test and the fuzz target.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::{Control, MAX_WAITING, Outbox};
use crate::api::{Action, Done, Event, ExitReason, FromVmm, Rates, Reply, Request, SECTOR};
use crate::device_set::{DeviceSet, Thread};
use crate::devices::blk::hostile::file;
use crate::devices::vsock::hostile::listener;
use crate::ending::{Cause, Ending};
use crate::event_loop::EventLoop;
use crate::ipc::Channel;
use crate::ipc::hostile::{assert_line, send};
use crate::threads::Starter;
use crate::virtio::hostile::{Input, memory};

/// Network interfaces.
const NICS: u8 = 2;

/// A VM of which only the devices and the control socket are there, and its owner.
struct Setup {
    owner: Channel,
    events: EventLoop,
    outbox: Outbox,
    ending: Ending,
    /// Descriptors of all sorts, to go with requests.
    files: Vec<OwnedFd>,
    /// Requests that are not answered yet: an extent is to be added, or something else.
    asked: VecDeque<(u64, bool)>,
    /// Where the image disk ends.
    end: u64,
}

/// Sends a VMM the requests that `bytes` say, in good form or not. Each in good form must be answered, in order and on one
/// line; one that is not ends the VM with a reason. No sector of the image disk is given to two files.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut setup = Setup::new();
    while !input.is_empty() && setup.ending.get().is_none() {
        match input.u8() % 16 {
            0 => {
                let packet = input.take::<23>();
                let fds = setup.fds(&mut input);
                let fits = send(&setup.owner, &packet, &borrowed(&fds));
                setup.serve();
                assert!(
                    !fits || setup.ending.get().is_some() || setup.is_behind(),
                    "no request of ours is so short"
                );
            }
            1 => setup.changed(&mut input),
            2..6 => setup.read(),
            _ => setup.ask(&mut input),
        }
        setup.serve();
    }
    setup.finish();
}

impl Setup {
    fn new() -> Self {
        let (owner, channel) = Channel::pair().unwrap();
        owner.set_nonblocking().unwrap();
        let channel = Arc::new(channel);
        let outbox = Outbox::new(channel.clone());
        let devices =
            DeviceSet::new(&memory(), Some(listener().0), None, NICS, Rates::default(), &outbox).unwrap();
        let (ending, starter) = (Ending::new().unwrap(), Starter::nobody());
        let handles = devices.handles(&starter);
        let control = Control::new(channel, outbox.clone(), handles, starter, ending.clone()).unwrap();
        let mut events = EventLoop::new(&ending).unwrap();
        events.add(control);
        devices.on(Thread::Main).into_iter().for_each(|device| events.add_device(device));
        let files = vec![
            file(&[1; 3 * SECTOR as usize]).into(),
            file(&[2; 700]).into(),
            File::open("/dev/null").unwrap().into(),
            File::open("/").unwrap().into(),
            Channel::pair().unwrap().0.into(),
            monohull_fs_protocol::memory().unwrap(),
            UnixStream::pair().unwrap().0.into(),
        ];
        Self { owner, events, outbox, ending, files, asked: VecDeque::new(), end: 0 }
    }

    /// Some descriptors, mostly as many as a request may have.
    fn fds(&self, input: &mut Input<'_>) -> Vec<OwnedFd> {
        let count = [0, 0, 1, 1, 1, 2, 2, 20][usize::from(input.u8()) % 8];
        let one = |_| self.files[usize::from(input.u8()) % self.files.len()].try_clone().unwrap();
        (0..count).map(one).collect()
    }

    /// Whether the VMM has stopped to read.
    fn is_behind(&self) -> bool {
        self.outbox.is_full()
    }

    /// A request in good form.
    fn ask(&mut self, input: &mut Input<'_>) {
        let request = Request { id: input.u64(), action: action(input) };
        let fds = self.fds(input);
        let adds = matches!(request.action, Action::AddExtent { .. });
        let sent = send(&self.owner, &serde_json::to_vec(&request).unwrap(), &borrowed(&fds));
        if sent && fds.len() <= crate::api::MAX_FDS {
            self.asked.push_back((request.id, adds));
        }
    }

    /// A request of which some bytes are changed.
    fn changed(&mut self, input: &mut Input<'_>) {
        let request = Request { id: input.u64(), action: action(input) };
        let mut packet = serde_json::to_vec(&request).unwrap();
        for _ in 0..1 + input.u8() % 4 {
            let at = usize::from(input.u8()) % packet.len();
            packet[at] = input.u8();
        }
        let request = serde_json::from_slice::<Request>(&packet);
        if send(&self.owner, &packet, &[])
            && let Ok(Request { id, action }) = request
        {
            self.asked.push_back((id, matches!(action, Action::AddExtent { .. })));
        }
    }

    /// Lets the VMM serve what has happened.
    fn serve(&mut self) {
        for _ in 0..3 {
            self.events.finish().unwrap();
        }
        assert!(crate::lock(&self.outbox.inner).waiting.len() <= MAX_WAITING + 1);
    }

    /// Reads what the VMM has to say.
    fn read(&mut self) {
        while let Ok(Some((message, fds))) = self.owner.receive::<FromVmm>() {
            let Reply { id, result } = match message {
                FromVmm::Reply(reply) => reply,
                // Nothing at all may be what was waited for.
                FromVmm::Event(Event::FreeReported | Event::MemoryReached { .. }) => continue,
                FromVmm::Event(event) => panic!("{event:?}"),
            };
            let (asked, adds) = self.asked.pop_front().expect("an answer to nothing");
            assert!(id == asked && fds.is_empty());
            match result {
                Ok(Done::ExtentAdded { start, sectors }) => {
                    assert!(adds && sectors > 0 && start >= self.end, "{start} {sectors} {}", self.end);
                    self.end = start + sectors;
                }
                Ok(_) => assert!(!adds),
                Err(text) => assert_line(&text),
            }
        }
    }

    /// All that was asked is answered, if the VM has not ended.
    fn finish(mut self) {
        loop {
            let before = self.asked.len();
            self.read();
            self.serve();
            if self.asked.len() == before {
                break;
            }
        }
        match self.ending.get() {
            None => assert!(self.asked.is_empty(), "{} requests are not answered", self.asked.len()),
            Some(Cause::Reason(ExitReason::Failure(text))) => assert_line(text),
            Some(Cause::Reason(ExitReason::Stopped)) => {}
            // A packet of no bytes is an end.
            Some(other) => assert_eq!(*other, Cause::Abandoned),
        }
    }
}

fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

fn action(input: &mut Input<'_>) -> Action {
    let mib = [u32::from(input.u8()), input.u32()][usize::from(input.u8().is_multiple_of(8))];
    match input.u8() % 16 {
        0..4 => Action::AddExtent { read_only: mib.is_multiple_of(2) },
        4 | 5 => Action::RemoveExtent { start: u64::from(mib) * 1024 },
        6 => Action::AttachNic { nic: input.u8() % (NICS + 2) },
        7 => Action::SetBalloon { mib },
        8 => Action::AttachFs,
        9 => Action::SetMemory { mib },
        10 => Action::AwaitReports { mib },
        11 => Action::Pause,
        12 if mib.is_multiple_of(2) => {
            Action::RestoreExtent { start: u64::from(mib) * 1024, read_only: true }
        }
        12 => Action::Resume,
        13 => Action::Snapshot,
        14 if mib == 0 => Action::Stop,
        _ => Action::SetBalloon { mib: input.u32() },
    }
}
