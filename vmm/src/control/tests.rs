use super::*;
use crate::api::Request;
use crate::event_loop::EventLoop;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

#[derive(Default)]
struct Fake {
    extents: u64,
    flushed: bool,
    taps: usize,
    servers: usize,
    mib: u32,
    paused: bool,
}

impl Disk for Fake {
    fn add_extent(&mut self, file: File, read_only: bool) -> Result<(u64, u64), DeviceError> {
        if !read_only {
            return Err("the file is too odd".into());
        }
        self.extents += 1;
        Ok((self.extents, file.metadata()?.len()))
    }

    fn restore_extent(&mut self, _file: File, start: u64, _read_only: bool) -> Result<(), DeviceError> {
        if start == 7 { Ok(()) } else { Err("it is not missing".into()) }
    }

    fn remove_extent(&mut self, start: u64) -> Result<RemovedExtent, DeviceError> {
        if start != self.extents {
            return Err("there is none".into());
        }
        self.extents -= 1;
        Ok(RemovedExtent::new(File::open("/dev/null")?, false))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed = true;
        Ok(())
    }
}

impl Nic for Fake {
    fn attach(&mut self, _tap: File) -> Result<(), DeviceError> {
        self.taps += 1;
        Ok(())
    }
}

impl HostDirectories for Fake {
    fn attach(&mut self, _channel: OwnedFd, _memory: File) -> Result<(), DeviceError> {
        self.servers += 1;
        Ok(())
    }
}

impl Memory for Fake {
    fn request(&mut self, mib: u32) -> Result<u32, DeviceError> {
        Ok(mib / 2)
    }
}

impl Machine for Fake {
    fn pause(&mut self) -> Result<(), DeviceError> {
        self.paused = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.paused = false;
        Ok(())
    }

    fn save(&mut self, _state: File, _memory: File) -> Result<Saved, DeviceError> {
        if self.paused { Ok(Saved { state_bytes: 1, memory_bytes: 2 }) } else { Err("it runs".into()) }
    }
}

impl Balloon for Fake {
    fn set_target(&mut self, mib: u32) {
        self.mib = mib;
    }

    fn await_reports(&mut self, mib: u32, tell: Box<dyn FnOnce() + Send>) {
        self.mib = mib;
        tell();
    }
}

/// An owner, and a VMM's control socket that is served on this thread whenever the owner waits.
struct Setup {
    owner: Channel,
    events: EventLoop,
    outbox: Outbox,
    ending: Ending,
    device: Arc<Mutex<Fake>>,
}

impl Setup {
    fn new() -> Self {
        let (owner, channel) = Channel::pair().unwrap();
        let device = Arc::new(Mutex::new(Fake::default()));
        let handles = Handles {
            disk: Some(device.clone()),
            nics: vec![device.clone()],
            balloon: Some(device.clone()),
            fs: Some(device.clone()),
            memory: Some(device.clone()),
            machine: Some(device.clone()),
        };
        let ending = Ending::new().unwrap();
        let channel = Arc::new(channel);
        let outbox = Outbox::new(channel.clone());
        let control =
            Control::new(channel, outbox.clone(), handles, Starter::new().unwrap(), ending.clone()).unwrap();
        let mut events = EventLoop::new(&ending).unwrap();
        events.add(control);
        Self { owner, events, outbox, ending, device }
    }

    fn ask(&mut self, action: Action, fds: &[BorrowedFd<'_>]) -> Result<Done, String> {
        self.owner.send(&Request { id: 9, action }, fds).unwrap();
        self.events.finish().unwrap();
        match self.read() {
            FromVmm::Reply(Reply { id: 9, result }) => result,
            other => panic!("{other:?}"),
        }
    }

    fn read(&self) -> FromVmm {
        self.owner.receive().unwrap().unwrap().0
    }
}

#[test]
fn requests_reach_their_device_and_are_answered() {
    let mut setup = Setup::new();
    let null = File::open("/dev/null").unwrap();
    let added = setup.ask(Action::AddExtent { read_only: true }, &[null.as_fd()]);
    assert_eq!(added, Ok(Done::ExtentAdded { start: 1, sectors: 0 }));
    assert_eq!(setup.ask(Action::AttachNic { nic: 0 }, &[null.as_fd()]), Ok(Done::Ok));
    assert_eq!(setup.ask(Action::SetBalloon { mib: 5 }, &[]), Ok(Done::Ok));
    assert_eq!(setup.ask(Action::AttachFs, &[null.as_fd(), null.as_fd()]), Ok(Done::Ok));
    assert_eq!(setup.ask(Action::SetMemory { mib: 6 }, &[]), Ok(Done::Memory { plugged_mib: 3 }));
    assert_eq!(setup.ask(Action::Pause, &[]), Ok(Done::Ok));
    let saved = Done::Saved(Saved { state_bytes: 1, memory_bytes: 2 });
    assert_eq!(setup.ask(Action::Snapshot, &[null.as_fd(), null.as_fd()]), Ok(saved));
    assert_eq!(setup.ask(Action::Resume, &[]), Ok(Done::Ok));
    let device = setup.device.lock().unwrap();
    assert_eq!((device.extents, device.taps, device.mib, device.servers), (1, 1, 5, 1));
}

#[test]
fn refusals_name_what_was_asked_and_why() {
    let mut setup = Setup::new();
    let null = File::open("/dev/null").unwrap();
    for (action, fds, text) in [
        (
            Action::AddExtent { read_only: false },
            &[null.as_fd()][..],
            "can't add an extent to the image disk: the file is too odd",
        ),
        (
            Action::AddExtent { read_only: true },
            &[],
            "can't add an extent to the image disk: the request has 0 file descriptors, it needs 1",
        ),
        (
            Action::RemoveExtent { start: 7 },
            &[],
            "can't remove the extent at sector 7 from the image disk: there is none",
        ),
        (
            Action::AttachNic { nic: 1 },
            &[null.as_fd()],
            "can't attach network interface 1: this VM has 1 network interfaces",
        ),
        (
            Action::AttachNic { nic: 0 },
            &[null.as_fd(), null.as_fd()],
            "can't attach network interface 0: the request has 2 file descriptors, it needs 1",
        ),
        (
            Action::Snapshot,
            &[null.as_fd()],
            "can't make a snapshot of the VM: the request has 1 file descriptors, it needs 2",
        ),
        (Action::Snapshot, &[null.as_fd(), null.as_fd()], "can't make a snapshot of the VM: it runs"),
        (
            Action::AttachFs,
            &[null.as_fd()],
            "can't attach the fs server: the request has 1 file descriptors, it needs 2",
        ),
    ] {
        assert_eq!(setup.ask(action, fds), Err(text.to_owned()));
    }
    assert!(setup.ending.get().is_none());
}

#[test]
fn a_removed_extent_is_answered_for_when_its_file_is_closed() {
    let mut setup = Setup::new();
    let null = File::open("/dev/null").unwrap();
    setup.ask(Action::AddExtent { read_only: true }, &[null.as_fd()]).unwrap();
    assert_eq!(setup.ask(Action::RemoveExtent { start: 1 }, &[]), Ok(Done::Ok));
    assert_eq!(setup.device.lock().unwrap().extents, 0);
}

#[test]
fn stop_is_answered_before_the_vm_ends() {
    let mut setup = Setup::new();
    assert_eq!(setup.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(setup.ending.get(), Some(&Cause::Reason(ExitReason::Stopped)));
}

#[test]
fn an_owner_that_closes_its_socket_has_abandoned_the_vm() {
    let mut setup = Setup::new();
    drop(setup.owner);
    setup.events.run_until(&setup.ending).unwrap();
    assert_eq!(setup.ending.get(), Some(&Cause::Abandoned));
}

#[test]
fn an_owner_that_talks_nonsense_gets_its_vm_ended_with_the_cause() {
    let mut setup = Setup::new();
    setup.owner.send(&"nonsense", &[]).unwrap();
    setup.events.run_until(&setup.ending).unwrap();
    let Some(Cause::Reason(ExitReason::Failure(text))) = setup.ending.get() else { panic!() };
    assert!(text.starts_with("a request of the VM's owner can't be served"), "{text}");
}

#[test]
fn connections_the_owner_does_not_take_are_closed_beyond_a_bound_and_nothing_else_is_lost() {
    let mut setup = Setup::new();
    let mut guests = Vec::new();
    for port in 0..2000 {
        let (guest, host) = UnixStream::pair().unwrap();
        setup.outbox.post_connection(port, host.into());
        guest.set_nonblocking(true).unwrap();
        guests.push(guest);
    }
    let is_closed = |guest: &UnixStream| io::Read::read(&mut &*guest, &mut [0]).is_ok_and(|n| n == 0);
    assert!(guests.iter().any(is_closed), "bounded");
    let kept = guests.iter().filter(|guest| !is_closed(guest)).count();

    setup.outbox.post(FromVmm::Event(Event::Started { marks: Vec::new() }));
    let mut connected = 0;
    loop {
        match setup.read() {
            FromVmm::Event(Event::GuestConnected { .. }) => connected += 1,
            FromVmm::Event(Event::Started { .. }) => break,
            other => panic!("{other:?}"),
        }
        setup.events.finish().unwrap();
    }
    assert_eq!(connected, kept);
}

proptest::proptest! {
    #[test]
    fn nothing_an_owner_asks_for_harms_the_vmm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
        hostile::run(&bytes);
    }
}
