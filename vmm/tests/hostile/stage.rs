//! Two VMs: one whose guest is hostile, and its neighbour.

use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use monohull_vmm::api::{Action, Done, Event, ExitReason, FdRole, FromVmm, Reply, Request};
use monohull_vmm::client::Vmm;

use super::driver::{BALLOON, BUFFERS, ENTROPY, Ring, WRITE, reg};
use super::program::Program;
use super::vm::{Setup, wait};

/// Within what a VMM answers its owner, and a neighbour gets what it asks its devices for. Without an attack that is a
/// millisecond; the rest is for a test machine that has other things to do.
pub(crate) const PROMPT: Duration = Duration::from_secs(2);
/// Memory that the guest of [`full`] can be given.
pub(crate) const HOTPLUG_MIB: u32 = 256;
/// Most memory that a VMM has of its own, its guest's not counted, in KiB. Idle, the one built for tests has 5 MiB.
const MOST_KIB: u64 = 32 << 10;
/// Most descriptors that a VMM has: those of its devices, and of 256 connections that its guest may have opened.
const MOST_DESCRIPTORS: usize = 512;

/// A hostile guest.
pub(crate) struct Attacker {
    vmm: Vmm,
    console: PipeReader,
    next_id: u64,
    /// Connections of the guest that its owner has been told of.
    pub(crate) connections: u64,
}

impl Attacker {
    /// Starts `code`.
    pub(crate) fn start(code: &[u8]) -> Self {
        Self::start_with(Setup::new(code))
    }

    pub(crate) fn start_with(setup: Setup) -> Self {
        let (console, output) = std::io::pipe().unwrap();
        let vm = setup.with(FdRole::Console, output).start();
        vm.expect_started();
        Self { vmm: vm.vmm, console, next_id: 1, connections: 0 }
    }

    /// The next bytes that it prints.
    pub(crate) fn told<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            wait(self.console.as_fd());
            self.console.read_exact(std::slice::from_mut(byte)).unwrap();
        }
        bytes
    }

    /// Asks its VMM for something, which it has to answer promptly. What the guest has the VMM tell meanwhile is dropped.
    pub(crate) fn ask(&mut self, action: Action, fds: &[BorrowedFd<'_>]) -> Result<Done, String> {
        let (id, began) = (self.next_id, Instant::now());
        self.next_id += 1;
        self.vmm.send(&Request { id, action }, fds).unwrap();
        let result = loop {
            match self.receive() {
                FromVmm::Reply(reply) if reply.id == id => break reply.result,
                FromVmm::Reply(Reply { id, .. }) => panic!("an answer to {id}, which was not asked"),
                FromVmm::Event(Event::GuestConnected { .. }) => self.connections += 1,
                FromVmm::Event(Event::Exited { reason }) => panic!("the VM has ended: {reason}"),
                FromVmm::Event(_) => {}
            }
        };
        let took = began.elapsed();
        assert!(took < PROMPT, "the VMM answers after {took:?}");
        result
    }

    fn receive(&self) -> FromVmm {
        wait(self.vmm.socket());
        self.vmm.receive().unwrap().expect("the VMM is there").0
    }

    /// Shows that the VMM serves its owner, and has not grown.
    pub(crate) fn is_served(&mut self) {
        assert_eq!(self.ask(Action::SetBalloon { mib: 0 }, &[]), Ok(Done::Ok));
        let (kib, descriptors) = (self.own_kib(), self.descriptors());
        assert!(kib < MOST_KIB, "the VMM has {kib} KiB of its own");
        assert!(descriptors < MOST_DESCRIPTORS, "the VMM has {descriptors} descriptors open");
    }

    /// Memory of the VMM that is not its guest's: all that is mapped but the largest mapping.
    fn own_kib(&self) -> u64 {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.vmm.pid())).unwrap();
        let sizes = |name: &str| -> Vec<u64> {
            let lines = maps.lines().filter_map(|line| line.strip_prefix(name));
            lines.map(|line| line.trim().trim_end_matches(" kB").parse().unwrap()).collect()
        };
        let resident = sizes("Rss:");
        let guest = sizes("Size:").iter().zip(&resident).max().map_or(0, |(_, rss)| *rss);
        resident.iter().sum::<u64>() - guest
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.vmm.pid())).unwrap().count()
    }

    /// Its end by itself: the reason that the VMM gives, and that it is the VMM's last word.
    pub(crate) fn end(mut self) -> ExitReason {
        let reason = loop {
            if let FromVmm::Event(Event::Exited { reason }) = self.receive() {
                break reason;
            }
        };
        wait(self.vmm.pidfd());
        let status = self.vmm.wait().unwrap();
        assert!(status.code().is_some(), "the VMM has ended by itself, not by a signal: {status}");
        reason
    }

    /// Ends it as an owner does.
    pub(crate) fn stop(mut self) {
        assert_eq!(self.ask(Action::Stop, &[]), Ok(Done::Ok));
        assert_eq!(self.end(), ExitReason::Stopped);
    }
}

/// A guest that goes about its business: whenever it is asked to, it has its own device serve it, and says so.
pub(crate) struct Neighbour {
    guest: Attacker,
    asked: bool,
}

impl Neighbour {
    pub(crate) fn new() -> Self {
        let mut program = Program::new();
        program.draw_entropy();
        let ring = Ring::new(ENTROPY, 0, 8);
        program.chain(&ring, &[(BUFFERS.into(), 64, WRITE)]);
        let code = program.forever(|program| {
            for pages in [256, 0] {
                // What its owner has to say comes as the size of its balloon.
                program.wait32(BALLOON.at(reg::CONFIG), pages);
                program.round_trip(&ring);
                program.print(b'.');
            }
        });
        Self { guest: Attacker::start(&code), asked: false }
    }

    /// Shows that it is served promptly, by its devices and by its VMM.
    pub(crate) fn is_served(&mut self) {
        let began = Instant::now();
        self.asked = !self.asked;
        assert_eq!(self.guest.ask(Action::SetBalloon { mib: self.asked.into() }, &[]), Ok(Done::Ok));
        assert_eq!(&self.guest.told(), b".");
        let took = began.elapsed();
        assert!(took < PROMPT, "the neighbour has waited for {took:?}");
    }
}

/// A VM that boots `code` and has every device, the socket device listening at `listener`.
pub(crate) fn full(code: &[u8], listener: UnixListener) -> Setup {
    let mut setup = Setup::new(code);
    setup.config.hotplug_mib = HOTPLUG_MIB;
    setup.config.nics = 1;
    setup.with(FdRole::Vsock, listener)
}

/// A listener without a path, and its address.
pub(crate) fn listener() -> (UnixListener, SocketAddr) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("monohull-hostile-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    (UnixListener::bind_addr(&address).unwrap(), address)
}

/// Runs an attack that never ends beside a neighbour. Both VMMs serve their owners meanwhile, and the neighbour's its guest.
pub(crate) fn endure(attacker: Attacker) {
    endure_while(attacker, |_| {});
}

/// [`endure`], with something that the owner does again and again.
pub(crate) fn endure_while(mut attacker: Attacker, mut act: impl FnMut(&mut Attacker)) {
    let mut neighbour = Neighbour::new();
    // The attack has begun when the guest says so.
    assert_eq!(&attacker.told(), b"!");
    for _ in 0..20 {
        attacker.is_served();
        act(&mut attacker);
        neighbour.is_served();
    }
    assert_eq!(attacker.ask(Action::Pause, &[]), Ok(Done::Ok));
    assert_eq!(attacker.ask(Action::Resume, &[]), Ok(Done::Ok));
    attacker.stop();
    neighbour.is_served();
}

/// Runs an attack that ends, and of whose end the guest tells, beside a neighbour.
pub(crate) fn survive(attacker: &mut Attacker) {
    let mut neighbour = Neighbour::new();
    neighbour.is_served();
    assert_eq!(&attacker.told(), b"k", "the guest has got through");
    attacker.is_served();
    neighbour.is_served();
}
