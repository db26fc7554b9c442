//! The control socket: requests in, replies and events out.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod hostile;

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::api::{Action, Done, Event, ExitReason, FromVmm, Reply, Request, Saved};
use crate::devices;
use crate::devices::blk::{ImageDisk, RemovedExtent};
use crate::devices::fs::Fs;
use crate::devices::net::Net;
use crate::ending::{Cause, Ending};
use crate::ipc::{Channel, IpcError};
use crate::jail::filter::Class;
use crate::side_thread::SideThread;
use crate::threads::Starter;

/// Messages that wait for the owner to read. At the limit no further request is read, and further connections of the
/// guest are refused.
const MAX_WAITING: usize = 64;

/// Stack in bytes of a thread that closes an extent: it makes two system calls and a message.
const CLOSER_STACK: usize = 64 << 10;

/// Why a device did not do what the owner asked.
pub(crate) type DeviceError = Box<dyn Error + Send + Sync>;

/// The image disk, as the owner reaches it.
pub(crate) trait Disk: Send {
    /// Appends a file or block device. Returns where: first sector, and number of sectors.
    fn add_extent(&mut self, file: File, read_only: bool) -> Result<(u64, u64), DeviceError>;

    /// Gives the extent at sector `start` that a snapshot told of its file.
    fn restore_extent(&mut self, file: File, start: u64, read_only: bool) -> Result<(), DeviceError>;

    /// Takes away the extent that begins at sector `start`.
    fn remove_extent(&mut self, start: u64) -> Result<RemovedExtent, DeviceError>;

    /// Brings everything the guest has written onto stable storage.
    fn flush(&mut self) -> io::Result<()>;
}

/// A network interface, as the owner reaches it.
pub(crate) trait Nic: Send {
    /// Connects it to a tap device and brings its link up.
    fn attach(&mut self, tap: File) -> Result<(), DeviceError>;
}

/// The memory device, as the owner reaches it.
pub(crate) trait Memory: Send {
    /// Sets how much memory the guest should have beyond its first, in MiB. Returns how much it has.
    fn request(&mut self, mib: u32) -> Result<u32, DeviceError>;
}

/// The balloon, as the owner reaches it.
pub(crate) trait Balloon: Send {
    /// Sets how much memory the guest is to give up.
    fn set_target(&mut self, mib: u32);

    /// Calls `tell`, once, when the guest has reported so much free memory since its start.
    fn await_reports(&mut self, mib: u32, tell: Box<dyn FnOnce() + Send>);
}

/// The device for host directories, as the owner reaches it.
pub(crate) trait HostDirectories: Send {
    /// Connects it to its server.
    fn attach(&mut self, channel: OwnedFd, memory: File) -> Result<(), DeviceError>;
}

/// The VM itself, as the owner reaches it.
pub(crate) trait Machine: Send {
    /// Stops its CPUs.
    fn pause(&mut self) -> Result<(), DeviceError>;

    /// Lets its CPUs run on.
    fn resume(&mut self) -> Result<(), DeviceError>;

    /// Writes what is needed to go on from here into two empty files.
    fn save(&mut self, state: File, memory: File) -> Result<Saved, DeviceError>;
}

impl Disk for ImageDisk {
    fn add_extent(&mut self, file: File, read_only: bool) -> Result<(u64, u64), DeviceError> {
        let extent = ImageDisk::add_extent(self, file, read_only)?;
        Ok((extent.start, extent.sectors))
    }

    fn restore_extent(&mut self, file: File, start: u64, read_only: bool) -> Result<(), DeviceError> {
        Ok(ImageDisk::restore_extent(self, file, start, read_only)?)
    }

    fn remove_extent(&mut self, start: u64) -> Result<RemovedExtent, DeviceError> {
        Ok(ImageDisk::remove_extent(self, start)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_all()
    }
}

impl Nic for Net {
    fn attach(&mut self, tap: File) -> Result<(), DeviceError> {
        Ok(Net::attach(self, tap)?)
    }
}

impl Memory for devices::mem::Mem {
    fn request(&mut self, mib: u32) -> Result<u32, DeviceError> {
        Ok(to_mib(devices::mem::Mem::request(self, mib)?.plugged))
    }
}

/// Sizes of a VM's memory fit.
pub(crate) fn to_mib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 20).unwrap_or(u32::MAX)
}

impl Balloon for devices::balloon::Balloon {
    fn set_target(&mut self, mib: u32) {
        devices::balloon::Balloon::set_target(self, mib);
    }

    fn await_reports(&mut self, mib: u32, tell: Box<dyn FnOnce() + Send>) {
        devices::balloon::Balloon::await_reports(self, u64::from(mib) << 20, tell);
    }
}

/// The device for host directories, with the thread that serves it from the moment it has a server.
#[derive(Debug)]
pub(crate) struct FsPort {
    device: Arc<Mutex<Fs>>,
    starter: Starter,
    thread: Option<SideThread>,
}

impl FsPort {
    /// Nothing serves `device` yet.
    pub(crate) fn new(device: Arc<Mutex<Fs>>, starter: Starter) -> Self {
        Self { device, starter, thread: None }
    }
}

impl HostDirectories for FsPort {
    fn attach(&mut self, channel: OwnedFd, memory: File) -> Result<(), DeviceError> {
        crate::lock(&self.device).attach(channel, memory)?;
        self.thread = Some(SideThread::start(&self.starter, "fs", vec![self.device.clone()])?);
        Ok(())
    }
}

/// The devices that requests reach, each by what it can be asked for.
#[derive(Clone, Default)]
pub(crate) struct Handles {
    /// The image disk.
    pub disk: Option<Arc<Mutex<dyn Disk>>>,
    /// The network interfaces, by their number.
    pub nics: Vec<Arc<Mutex<dyn Nic>>>,
    /// The balloon.
    pub balloon: Option<Arc<Mutex<dyn Balloon>>>,
    /// The device for host directories.
    pub fs: Option<Arc<Mutex<dyn HostDirectories>>>,
    /// The memory device.
    pub memory: Option<Arc<Mutex<dyn Memory>>>,
    /// The VM itself.
    pub machine: Option<Arc<Mutex<dyn Machine>>>,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").field("nics", &self.nics.len()).finish_non_exhaustive()
    }
}

/// The sending half of the control socket: messages leave in the order they were posted.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    inner: Arc<Mutex<Queue>>,
}

#[derive(Debug)]
struct Queue {
    channel: Arc<Channel>,
    waiting: VecDeque<(FromVmm, Option<OwnedFd>)>,
}

impl Outbox {
    /// The sending half of `channel`.
    pub(crate) fn new(channel: Arc<Channel>) -> Self {
        Self { inner: Arc::new(Mutex::new(Queue { channel, waiting: VecDeque::new() })) }
    }

    /// Sends a message, now or when the owner has read those before.
    pub(crate) fn post(&self, message: FromVmm) {
        let mut queue = crate::lock(&self.inner);
        queue.waiting.push_back((message, None));
        queue.send_waiting();
    }

    /// Tells the owner of a connection that the guest opened to host port `port`. Dropped, and with it the connection
    /// closed, when the owner does not keep up: what a guest may queue is bounded.
    pub(crate) fn post_connection(&self, port: u32, stream: OwnedFd) {
        let mut queue = crate::lock(&self.inner);
        if queue.waiting.len() < MAX_WAITING {
            queue.waiting.push_back((FromVmm::Event(Event::GuestConnected { port }), Some(stream)));
            queue.send_waiting();
        }
    }

    /// Sends the last message after all others, waiting for the owner where needed.
    pub(crate) fn finish(&self, reason: ExitReason) {
        self.post(FromVmm::Event(Event::Exited { reason }));
        let mut queue = crate::lock(&self.inner);
        while !queue.waiting.is_empty() {
            let channel = queue.channel.clone();
            let mut ready = [PollFd::new(channel.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) => queue.send_waiting(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn is_full(&self) -> bool {
        crate::lock(&self.inner).waiting.len() >= MAX_WAITING
    }

    fn send_waiting(&self) {
        crate::lock(&self.inner).send_waiting();
    }
}

impl Queue {
    /// Sends until the socket is full. What can't be sent for any other reason is dropped: the owner has gone, and the
    /// receiving half ends the VM.
    fn send_waiting(&mut self) {
        while let Some((message, fd)) = self.waiting.front() {
            let fd = fd.as_ref().map(AsFd::as_fd);
            match self.channel.send(message, fd.as_slice()) {
                Err(error) if error.would_block() => return,
                _ => drop(self.waiting.pop_front()),
            }
        }
    }
}

/// The receiving half of the control socket.
#[derive(Debug)]
pub(crate) struct Control {
    channel: Arc<Channel>,
    outbox: Outbox,
    handles: Handles,
    starter: Starter,
    ending: Ending,
}

impl Control {
    /// Serves `channel`, which becomes non-blocking. `outbox` is its sending half.
    pub(crate) fn new(
        channel: Arc<Channel>,
        outbox: Outbox,
        handles: Handles,
        starter: Starter,
        ending: Ending,
    ) -> io::Result<Self> {
        channel.set_nonblocking()?;
        Ok(Self { channel, outbox, handles, starter, ending })
    }

    /// Sends and receives until neither is possible, as an edge-triggered event demands.
    fn serve(&mut self) {
        loop {
            self.outbox.send_waiting();
            if self.outbox.is_full() || self.ending.get().is_some() {
                return;
            }
            match self.channel.receive::<Request>() {
                Ok(Some((request, fds))) => self.answer(request, fds),
                Ok(None) => self.ending.set(Cause::Abandoned),
                Err(error) if error.would_block() => return,
                Err(IpcError::Socket(_)) => self.ending.set(Cause::Abandoned),
                Err(error) => {
                    let text = crate::describe(&error);
                    let text = format!("a request of the VM's owner can't be served: {text}");
                    self.ending.set(Cause::Reason(ExitReason::Failure(text)));
                }
            }
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) {
        if let Action::RemoveExtent { start } = request.action {
            return self.remove_extent(request.id, start);
        }
        let stop = request.action == Action::Stop;
        let result = self.act(request.action, fds);
        self.outbox.post(FromVmm::Reply(Reply { id: request.id, result }));
        if stop {
            self.ending.set(Cause::Reason(ExitReason::Stopped));
        }
    }

    /// Closing an extent may wait for the host's disk, which nothing else must: a thread of its own does it and answers.
    fn remove_extent(&self, id: u64, start: u64) {
        let failed = move |why: &dyn std::fmt::Display| {
            format!("can't remove the extent at sector {start} from the image disk: {why}")
        };
        let outbox = self.outbox.clone();
        let answer = move |result| outbox.post(FromVmm::Reply(Reply { id, result }));
        let removed = match self.handles.disk.as_ref() {
            Some(disk) => {
                crate::lock(disk).remove_extent(start).map_err(|e| failed(&crate::describe(e.as_ref())))
            }
            None => Err(failed(&"this VM has none")),
        };
        let removed = match removed {
            Ok(removed) => removed,
            Err(why) => return answer(Err(why)),
        };
        let close = {
            let answer = answer.clone();
            move || answer(removed.close().map(|()| Done::Ok).map_err(|e| failed(&e)))
        };
        // What a thread that can't be started was to do is dropped with it, the file too.
        if let Err(error) = self.starter.start("extent", CLOSER_STACK, Class::Io, close) {
            answer(Err(failed(&error)));
        }
    }

    fn act(&mut self, action: Action, fds: Vec<OwnedFd>) -> Result<Done, String> {
        match action {
            Action::AddExtent { read_only } => {
                let failed =
                    |why: &dyn std::fmt::Display| format!("can't add an extent to the image disk: {why}");
                let file = only(fds).map_err(|why| failed(&why))?;
                let disk = self.handles.disk.as_ref().ok_or_else(|| failed(&"this VM has none"))?;
                let (start, sectors) = crate::lock(disk)
                    .add_extent(file, read_only)
                    .map_err(|error| failed(&crate::describe(error.as_ref())))?;
                Ok(Done::ExtentAdded { start, sectors })
            }
            Action::RestoreExtent { start, read_only } => {
                let failed = |why: &dyn std::fmt::Display| {
                    format!("can't restore the extent at sector {start} of the image disk: {why}")
                };
                let file = only(fds).map_err(|why| failed(&why))?;
                let disk = self.handles.disk.as_ref().ok_or_else(|| failed(&"this VM has none"))?;
                crate::lock(disk)
                    .restore_extent(file, start, read_only)
                    .map_err(|error| failed(&crate::describe(error.as_ref())))?;
                Ok(Done::Ok)
            }
            Action::AttachNic { nic } => {
                let failed =
                    |why: &dyn std::fmt::Display| format!("can't attach network interface {nic}: {why}");
                let tap = only(fds).map_err(|why| failed(&why))?;
                let device = self.handles.nics.get(usize::from(nic)).ok_or_else(|| {
                    failed(&format!("this VM has {} network interfaces", self.handles.nics.len()))
                })?;
                crate::lock(device).attach(tap).map_err(|error| failed(&crate::describe(error.as_ref())))?;
                Ok(Done::Ok)
            }
            Action::SetBalloon { mib } => {
                let balloon =
                    self.handles.balloon.as_ref().ok_or("can't set the balloon: this VM has none")?;
                crate::lock(balloon).set_target(mib);
                Ok(Done::Ok)
            }
            Action::AwaitReports { mib } => {
                let balloon =
                    self.handles.balloon.as_ref().ok_or("can't await reports: this VM has no balloon")?;
                let outbox = self.outbox.clone();
                let tell = move || outbox.post(FromVmm::Event(Event::FreeReported));
                crate::lock(balloon).await_reports(mib, Box::new(tell));
                Ok(Done::Ok)
            }
            Action::AttachFs => {
                let failed = |why: &dyn std::fmt::Display| format!("can't attach the fs server: {why}");
                let [channel, memory] = exactly(fds).map_err(|why| failed(&why))?;
                let fs = self.handles.fs.as_ref().ok_or_else(|| failed(&"this VM has no device for it"))?;
                crate::lock(fs)
                    .attach(channel, memory.into())
                    .map_err(|error| failed(&crate::describe(error.as_ref())))?;
                Ok(Done::Ok)
            }
            Action::SetMemory { mib } => {
                let failed =
                    |why: &dyn std::fmt::Display| format!("can't add {mib} MiB to the guest's memory: {why}");
                let memory =
                    self.handles.memory.as_ref().ok_or_else(|| failed(&"this VM has no memory device"))?;
                let plugged_mib = crate::lock(memory)
                    .request(mib)
                    .map_err(|error| failed(&crate::describe(error.as_ref())))?;
                Ok(Done::Memory { plugged_mib })
            }
            Action::Pause => self.machine("pause", |machine| machine.pause().map(|()| Done::Ok)),
            Action::Resume => self.machine("resume", |machine| machine.resume().map(|()| Done::Ok)),
            Action::Snapshot => {
                let [state, memory] =
                    exactly(fds).map_err(|why| format!("can't make a snapshot of the VM: {why}"))?;
                self.machine("make a snapshot of", |machine| {
                    machine.save(state.into(), memory.into()).map(Done::Saved)
                })
            }
            // Answered when it is done, see `answer`.
            Action::RemoveExtent { .. } | Action::Stop => Ok(Done::Ok),
        }
    }

    fn machine(
        &self,
        doing: &str,
        act: impl FnOnce(&mut dyn Machine) -> Result<Done, DeviceError>,
    ) -> Result<Done, String> {
        let machine = self.handles.machine.as_ref().ok_or_else(|| format!("can't {doing} the VM"))?;
        act(&mut *crate::lock(machine))
            .map_err(|error| format!("can't {doing} the VM: {}", crate::describe(error.as_ref())))
    }
}

/// The one descriptor a request must have.
fn only(fds: Vec<OwnedFd>) -> Result<File, String> {
    exactly(fds).map(|[fd]| fd.into())
}

/// The descriptors a request must have.
fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], String> {
    fds.try_into()
        .map_err(|fds: Vec<_>| format!("the request has {} file descriptors, it needs {N}", fds.len()))
}

impl MutEventSubscriber for Control {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.serve();
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Edge-triggered, so that room to send is an event whenever it comes and none while it is there.
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Err(error) = ops.add(Events::new_raw(self.channel.as_fd().as_raw_fd(), events)) {
            let text = format!("can't wait for requests: {error}");
            self.ending.set(Cause::Reason(ExitReason::Failure(text)));
        }
    }
}

#[cfg(test)]
mod tests;
