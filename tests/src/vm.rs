//! A pod's guest on the bare VMM, with nothing of containerd, shim or runtime: booted, saved, and forked.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use monohull_vmm::api::{
    Action, Done, Event, FdRole, FromVmm, Rates, Reply, Request, Saved, VmConfig, WorkingSet, user_of,
};
use monohull_vmm::client::Vmm;
use nix::mount::{MsFlags, mount, umount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const VMM: &str = "/usr/libexec/monohull/monohull-vmm";
const KERNEL: &str = "/usr/share/monohull/vmlinux";
const INITRAMFS: &str = "/usr/share/monohull/initramfs.cpio";
/// Host port that the agent dials when it can serve (`agent.proto`).
const AGENT_PORT: u32 = 1024;
/// A VM that says nothing for this long has failed.
const PATIENCE_MS: u16 = 60_000;

/// When the steps of a start were done, from just before the VMM was started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The guest's CPUs run, by the VMM's own account.
    pub cpus_run: Duration,
    /// The agent has connected.
    pub agent_ready: Duration,
    /// It has answered CreateSandbox.
    pub answered: Duration,
}

/// A pod's guest.
#[derive(Debug)]
pub struct Guest {
    vmm: Vmm,
    /// Kept open, like the guest's owner does.
    _vsock: UnixListener,
    agent: Option<UnixStream>,
    begun: Instant,
    begun_us: u64,
    cpus_run: Duration,
}

/// The files of a snapshot.
#[derive(Debug)]
pub struct Snapshot {
    state: File,
    memory: File,
}

impl Guest {
    /// Boots kernel and agent as they are installed.
    pub fn boot() -> io::Result<Self> {
        let [kernel, initramfs] = [File::open(KERNEL)?, File::open(INITRAMFS)?];
        let files = vec![(FdRole::Kernel, kernel.into()), (FdRole::Initramfs, initramfs.into())];
        Self::start(files, WorkingSet::default())
    }

    /// Starts from a snapshot.
    pub fn fork(snapshot: &Snapshot) -> io::Result<Self> {
        Self::fork_with(snapshot, WorkingSet::default())
    }

    /// Starts from a snapshot, of which this will soon be used.
    pub fn fork_with(snapshot: &Snapshot, working_set: WorkingSet) -> io::Result<Self> {
        let (state, memory) = (snapshot.state.try_clone()?, snapshot.memory.try_clone()?);
        Self::start(vec![(FdRole::State, state.into()), (FdRole::Memory, memory.into())], working_set)
    }

    fn start(mut files: Vec<(FdRole, OwnedFd)>, working_set: WorkingSet) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let vsock = UnixListener::bind(directory.path().join("vsock"))?;
        files.push((FdRole::Kvm, File::options().read(true).write(true).open("/dev/kvm")?.into()));
        files.push((FdRole::Vsock, vsock.try_clone()?.into()));
        let config = VmConfig {
            name: "bare".into(),
            user: user_of(std::process::id()),
            memory_mib: 128,
            hotplug_mib: 1024,
            vcpus: 1,
            cmdline: String::new(),
            nics: 1,
            huge_pages: false,
            rates: Rates::default(),
            working_set,
            paused: false,
            fds: files.iter().map(|(role, _)| *role).collect(),
        };
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(|(_, fd)| fd.as_fd()).collect();
        let (begun, begun_us) = (Instant::now(), monotonic_us()?);
        let vmm = Vmm::spawn(Path::new(VMM), &config, &fds, Stdio::inherit()).map_err(io::Error::other)?;
        let mut guest = Self { vmm, _vsock: vsock, agent: None, begun, begun_us, cpus_run: Duration::ZERO };
        match guest.next()? {
            FromVmm::Event(Event::Started { marks }) => {
                let last = marks.last().map_or(begun_us, |(_, us)| *us);
                guest.cpus_run = Duration::from_micros(last.saturating_sub(guest.begun_us));
                Ok(guest)
            }
            other => Err(io::Error::other(format!("the VM did not start: {other:?}"))),
        }
    }

    /// The next message. The agent's connection is kept.
    fn next(&mut self) -> io::Result<FromVmm> {
        let mut ready = [PollFd::new(self.vmm.socket(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(PATIENCE_MS))? == 0 {
            return Err(io::Error::other("the VM is silent"));
        }
        let gone = || io::Error::other("the VMM has gone without a word");
        let (message, fds) = self.vmm.receive()?.ok_or_else(gone)?;
        if matches!(message, FromVmm::Event(Event::GuestConnected { port: AGENT_PORT })) {
            self.agent = fds.into_iter().next().map(UnixStream::from);
        }
        Ok(message)
    }

    /// Waits until the agent has connected.
    pub fn wait_for_agent(&mut self) -> io::Result<()> {
        while self.agent.is_none() {
            if let message @ FromVmm::Event(Event::Exited { .. }) = self.next()? {
                return Err(io::Error::other(format!("the guest has no agent: {message:?}")));
            }
        }
        Ok(())
    }

    /// Asks the agent for a sandbox. Returns its answer, a ttrpc response as it is.
    pub fn create_sandbox(&mut self) -> io::Result<Vec<u8>> {
        // id, hostname, entropy, realtime_ns (a varint of 1 << 60), cpus.
        let realtime = [4 << 3, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        let fields = [field(1, b"fork"), field(2, b"fork"), field(3, &[7; 32])].concat();
        self.call("CreateSandbox", &[&fields[..], &realtime, &[7 << 3, 1]].concat())
    }

    /// Makes a call to the agent, over the connection it has opened.
    fn call(&mut self, method: &str, payload: &[u8]) -> io::Result<Vec<u8>> {
        self.wait_for_agent()?;
        let agent = self.agent.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        agent.set_read_timeout(Some(Duration::from_millis(PATIENCE_MS.into())))?;
        agent.write_all(&request(method, payload))?;
        let mut header = [0; 10];
        agent.read_exact(&mut header)?;
        let [l0, l1, l2, l3, ..] = header;
        let mut answer = vec![0; u32::from_be_bytes([l0, l1, l2, l3]).min(1 << 20) as usize];
        agent.read_exact(&mut answer)?;
        Ok(answer)
    }

    /// How many times its CPUs have left the guest, by KVM's account in debugfs.
    pub fn exits(&self) -> io::Result<u64> {
        let debugfs = tempfile::tempdir()?;
        mount(None::<&str>, debugfs.path(), Some("debugfs"), MsFlags::empty(), None::<&str>)?;
        let vm = format!("{}-", self.vmm.pid());
        let exits = fs::read_dir(debugfs.path().join("kvm")).and_then(|mut vms| {
            let of_this = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&vm);
            let vm = vms.find_map(|entry| entry.ok().filter(of_this)).ok_or(io::ErrorKind::NotFound)?;
            fs::read_to_string(vm.path().join("exits"))
        });
        umount(debugfs.path())?;
        exits?.trim().parse().map_err(io::Error::other)
    }

    /// [`Self::create_sandbox`], and when all of the start was done.
    pub fn measure(&mut self) -> io::Result<Start> {
        self.wait_for_agent()?;
        let agent_ready = self.begun.elapsed();
        self.create_sandbox()?;
        Ok(Start { cpus_run: self.cpus_run, agent_ready, answered: self.begun.elapsed() })
    }

    /// Asks the VMM for something.
    pub fn ask(&mut self, action: Action, fds: &[BorrowedFd<'_>]) -> io::Result<Done> {
        self.vmm.send(&Request { id: 1, action }, fds)?;
        loop {
            match self.next()? {
                FromVmm::Reply(Reply { result, .. }) => return result.map_err(io::Error::other),
                FromVmm::Event(Event::Exited { reason }) => return Err(io::Error::other(reason)),
                FromVmm::Event(_) => {}
            }
        }
    }

    /// Gives the guest more memory, and waits until it has taken it.
    pub fn add_memory(&mut self, mib: u32) -> io::Result<()> {
        self.ask(Action::SetMemory { mib }, &[])?;
        loop {
            match self.next()? {
                FromVmm::Event(Event::MemoryReached { mib: reached }) if reached == mib => return Ok(()),
                FromVmm::Event(Event::Exited { reason }) => return Err(io::Error::other(reason)),
                _ => {}
            }
        }
    }

    /// Pauses the VM and saves it into memory files. It stays paused.
    ///
    /// The agent has answered something before: a connection that it is still making would fail in the copies.
    pub fn snapshot(&mut self) -> io::Result<(Snapshot, Saved)> {
        self.call("Stats", &[])?;
        self.ask(Action::Pause, &[])?;
        let directory = tempfile::tempdir_in("/dev/shm")?;
        let create =
            |name| File::options().read(true).write(true).create_new(true).open(directory.path().join(name));
        let snapshot = Snapshot { state: create("state")?, memory: create("memory")? };
        match self.ask(Action::Snapshot, &[snapshot.state.as_fd(), snapshot.memory.as_fd()])? {
            Done::Saved(saved) => Ok((snapshot, saved)),
            other => Err(io::Error::other(format!("the VM was not saved: {other:?}"))),
        }
    }
}

fn monotonic_us() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    u64::try_from(Duration::from(now).as_micros()).map_err(io::Error::other)
}

/// A field of bytes in protobuf: its number and kind, its length (below 128), the bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

/// A ttrpc request: a header of length, stream and type, then a `Request` in protobuf.
fn request(method: &str, payload: &[u8]) -> Vec<u8> {
    let request =
        [field(1, b"monohull.agent.v1.Agent"), field(2, method.as_bytes()), field(3, payload)].concat();
    let mut frame = Vec::from((request.len() as u32).to_be_bytes());
    frame.extend(1u32.to_be_bytes());
    frame.extend([1, 0]);
    frame.extend(request);
    frame
}
