//! A VM under test.

// Each test program uses a part of it.
#![allow(dead_code)]
// A failure of the test itself should stop it.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use monohull_vmm::api::{
    Action, Done, Event, ExitReason, FdRole, FromVmm, Rates, Reply, Request, VmConfig, WorkingSet, user_of,
};
use monohull_vmm::client::Vmm;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Where guests are loaded and entered: where Linux is.
pub(crate) const ENTRY: u64 = 16 << 20;
/// A test whose VM is silent for this long has failed.
const PATIENCE_MS: u16 = 60_000;

/// A VM under test and everything it said so far.
pub(crate) struct Vm {
    pub(crate) vmm: Vmm,
}

/// What a VM is made of, when a test does not say otherwise.
pub(crate) struct Setup {
    pub(crate) config: VmConfig,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Setup {
    /// A VM that boots `code`.
    pub(crate) fn new(code: &[u8]) -> Self {
        Self::without_kernel().with(FdRole::Kernel, elf(code))
    }

    pub(crate) fn without_kernel() -> Self {
        let config = VmConfig {
            name: "test".into(),
            user: user_of(std::process::id()),
            memory_mib: 32,
            hotplug_mib: 0,
            vcpus: 1,
            cmdline: String::new(),
            nics: 0,
            huge_pages: false,
            rates: Rates::default(),
            working_set: WorkingSet::default(),
            paused: false,
            fds: Vec::new(),
        };
        Self { config, fds: Vec::new() }.with(FdRole::Kvm, kvm())
    }

    pub(crate) fn with(mut self, role: FdRole, fd: impl Into<OwnedFd>) -> Self {
        self.config.fds.push(role);
        self.fds.push(fd.into());
        self
    }

    pub(crate) fn start(self) -> Vm {
        self.start_as(binary())
    }

    /// [`Self::start`], of this program.
    pub(crate) fn start_as(self, binary: &Path) -> Vm {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        Vm { vmm: Vmm::spawn(binary, &self.config, &fds, std::process::Stdio::inherit()).unwrap() }
    }

    /// Starts the VM and returns how it ended before any CPU ran.
    pub(crate) fn refusal(self) -> String {
        match self.start().next() {
            Some(FromVmm::Event(Event::Exited { reason: ExitReason::Failure(text) })) => text,
            other => panic!("{other:?}"),
        }
    }
}

impl Vm {
    /// The VM's next message; `None` when there are no more.
    pub(crate) fn next(&self) -> Option<FromVmm> {
        wait(self.vmm.socket());
        self.vmm.receive().unwrap().map(|(message, _)| message)
    }

    pub(crate) fn expect_started(&self) -> Vec<(String, u64)> {
        match self.next() {
            Some(FromVmm::Event(Event::Started { marks })) => marks,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn ask(&self, action: Action, fds: &[BorrowedFd<'_>]) -> Result<Done, String> {
        self.vmm.send(&Request { id: 7, action }, fds).unwrap();
        match self.next() {
            Some(FromVmm::Reply(Reply { id: 7, result })) => result,
            other => panic!("{other:?}"),
        }
    }

    /// The reason the VM gives for its end, as its last message, and the exit code of the process.
    pub(crate) fn end(mut self) -> (ExitReason, i32) {
        let Some(FromVmm::Event(Event::Exited { reason })) = self.next() else { panic!("no reason") };
        assert_eq!(self.next(), None, "nothing follows");
        wait(self.vmm.pidfd());
        (reason, self.vmm.wait().unwrap().code().unwrap())
    }

    /// What the kernel's log ended with, before the reason.
    pub(crate) fn last_words(&self) -> String {
        let Some(FromVmm::Event(Event::LastWords { text })) = self.next() else { panic!("no last words") };
        text
    }

    /// Starts, and how it ended.
    pub(crate) fn run(self) -> (ExitReason, i32) {
        self.expect_started();
        self.end()
    }
}

/// The program under test: the one just built or, where the tests were brought to another machine, the installed one.
pub(crate) fn binary() -> &'static Path {
    let built = Path::new(env!("CARGO_BIN_EXE_monohull-vmm"));
    if built.exists() { built } else { Path::new("/usr/libexec/monohull/monohull-vmm") }
}

pub(crate) fn wait(fd: BorrowedFd<'_>) {
    let mut ready = [PollFd::new(fd, PollFlags::POLLIN)];
    assert_eq!(poll(&mut ready, PollTimeout::from(PATIENCE_MS)), Ok(1), "the VM is silent");
}

pub(crate) fn kvm() -> File {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    kvm.expect("this test needs /dev/kvm: load the kvm module, or give this user access to it")
}

pub(crate) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// An ELF file that is entered, and has `code`, at [`ENTRY`].
pub(crate) fn elf(code: &[u8]) -> File {
    let mut image = Vec::new();
    // e_ident: 64 bits, little endian, version 1.
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // Executable, x86-64, version 1; entry; program headers follow, no section headers; no flags.
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([ENTRY, 64, 0].map(u64::to_le_bytes).concat());
    image.extend([0; 4]);
    // Size of this header; one program header of its size; no section headers.
    image.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // PT_LOAD, readable and executable; offset, virtual and physical address, size in file and in memory, alignment.
    image.extend([1u32, 5].map(u32::to_le_bytes).concat());
    let len = code.len() as u64;
    image.extend([120, ENTRY, ENTRY, len, len, 4096].map(u64::to_le_bytes).concat());
    assert_eq!(image.len(), 120);
    image.extend(code);
    file(&image)
}
