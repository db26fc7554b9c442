//! Snapshots by the real `monohull-vmm`, of guests of a few hand-assembled instructions on /dev/kvm.

// A failure of the test itself should stop it, also outside of the test functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use monohull_vmm::api::{Action, Done, ExitReason, FdRole};

mod guests;
mod vm;

use vm::{Setup, Vm, file};

/// A VM that prints into a pipe.
struct Printing {
    vm: Vm,
    output: PipeReader,
}

impl Printing {
    fn boot(code: &[u8]) -> Self {
        let (output, console) = std::io::pipe().unwrap();
        Self::started(Setup::new(code).with(FdRole::Console, console), output)
    }

    fn started(setup: Setup, output: PipeReader) -> Self {
        let vm = setup.start();
        vm.expect_started();
        Self { vm, output }
    }

    /// The next bytes it prints.
    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.output.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn stop(self) {
        assert_eq!(self.vm.ask(Action::Stop, &[]), Ok(Done::Ok));
        assert_eq!(self.vm.end(), (ExitReason::Stopped, 0));
    }
}

/// A snapshot's files.
struct Snapshot {
    state: File,
    memory: File,
}

impl Snapshot {
    /// Pauses a VM and saves it.
    fn of(vm: &Vm) -> Self {
        assert_eq!(vm.ask(Action::Pause, &[]), Ok(Done::Ok));
        let snapshot = Self { state: file(b""), memory: file(b"") };
        let done = vm.ask(Action::Snapshot, &snapshot.fds()).unwrap();
        let Done::Saved(saved) = done else { panic!("{done:?}") };
        assert_eq!(snapshot.state.metadata().unwrap().len(), saved.state_bytes);
        assert!(saved.memory_bytes > 0 && saved.memory_bytes < 1 << 20, "{saved:?}");
        snapshot
    }

    fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.state.as_fd(), self.memory.as_fd()]
    }

    /// A VM that is to start from it, without a console.
    fn setup(&self) -> Setup {
        Setup::without_kernel()
            .with(FdRole::State, self.state.try_clone().unwrap())
            .with(FdRole::Memory, self.memory.try_clone().unwrap())
    }

    fn fork(&self) -> Printing {
        let (output, console) = std::io::pipe().unwrap();
        Printing::started(self.setup().with(FdRole::Console, console), output)
    }

    fn counter(&self) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, guests::COUNTER).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Checks that a guest prints numbers one after the other, and returns the first.
fn first_of_sequence(vm: &mut Printing) -> u8 {
    let bytes = vm.read::<300>();
    let mut pairs = bytes.iter().zip(bytes.iter().skip(1));
    assert!(pairs.all(|(number, next)| *next == number.wrapping_add(1)), "{bytes:?}");
    bytes[0]
}

#[test]
fn copies_go_on_where_the_snapshot_was_taken_and_independently() {
    let mut original = Printing::boot(&guests::count());
    assert_eq!(first_of_sequence(&mut original), 1);
    let snapshot = Snapshot::of(&original.vm);
    let counter = snapshot.counter();
    assert!(counter >= 300, "{counter}");

    let mut copies = [snapshot.fork(), snapshot.fork()];
    for copy in &mut copies {
        // The number itself if it was stored and not printed yet.
        let first = first_of_sequence(copy);
        assert!([counter as u8, (counter + 1) as u8].contains(&first), "{first} after {counter}");
    }

    // Each has a memory of its own, and the file that both started from is as it was. A copy can be copied.
    let again = Snapshot::of(&copies[0].vm);
    assert!(again.counter() > counter);
    assert_eq!(snapshot.counter(), counter);
    let first = first_of_sequence(&mut again.fork());
    assert!([again.counter() as u8, (again.counter() + 1) as u8].contains(&first));
    first_of_sequence(&mut copies[1]);
    original.stop();
    copies.into_iter().for_each(Printing::stop);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_when_resumed() {
    let mut vm = Printing::boot(&guests::count());
    first_of_sequence(&mut vm);
    for _ in 0..2 {
        assert_eq!(vm.vm.ask(Action::Pause, &[]), Ok(Done::Ok));
    }
    let before = Snapshot::of(&vm.vm).counter();
    assert_eq!(Snapshot::of(&vm.vm).counter(), before, "nothing runs");
    for _ in 0..2 {
        assert_eq!(vm.vm.ask(Action::Resume, &[]), Ok(Done::Ok));
    }
    // What was printed until then, and more.
    for _ in 0..=before / 256 {
        vm.read::<256>();
    }
    vm.stop();
}

#[test]
fn a_queue_in_use_is_used_on_by_the_copies() {
    let mut original = Printing::boot(&guests::draw_entropy());
    assert_eq!(first_of_sequence(&mut original), 1);
    let snapshot = Snapshot::of(&original.vm);
    let mut copies = [snapshot.fork(), snapshot.fork()];
    for copy in &mut copies {
        first_of_sequence(copy);
    }
    assert_eq!(original.vm.ask(Action::Resume, &[]), Ok(Done::Ok));
    first_of_sequence(&mut original);
}

#[test]
fn cpus_that_never_ran_or_are_halted_are_copied_as_such() {
    let mut setup = Setup::new(&guests::HALT);
    setup.config.vcpus = 4;
    let original = setup.start();
    original.expect_started();
    let snapshot = Snapshot::of(&original);
    let mut setup = snapshot.setup();
    setup.config.vcpus = 4;
    let copy = setup.start();
    copy.expect_started();
    assert_eq!(copy.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(copy.end(), (ExitReason::Stopped, 0));
}

#[test]
fn a_copys_start_is_marked_and_it_ends_like_any_vm() {
    let vm = Printing::boot(&guests::count());
    let snapshot = Snapshot::of(&vm.vm);
    let (_output, console) = std::io::pipe().unwrap();
    let copy = snapshot.setup().with(FdRole::Console, console).start();
    let names: Vec<_> = copy.expect_started().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["vmm exec", "jailed", "kvm ready", "devices ready", "state restored", "vcpus run"]);
    drop(vm);
    assert_eq!(copy.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(copy.end(), (ExitReason::Stopped, 0));
}

#[test]
fn what_a_snapshot_can_not_hold_is_refused_by_name_and_the_vm_goes_on() {
    let mut setup = Setup::new(&guests::HALT);
    setup.config.hotplug_mib = 256;
    let vm = setup.start();
    vm.expect_started();
    let files = || [file(b""), file(b"")];
    let ask = |files: &[File]| {
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        vm.ask(Action::Snapshot, &fds).map(drop)
    };
    let refused = |files: &[File], text: &str| {
        let error = ask(files).unwrap_err();
        assert!(error.starts_with("can't make a snapshot of the VM: ") && error.contains(text), "{error}");
    };
    refused(&files(), "the VM runs; pause it first");
    assert_eq!(vm.ask(Action::Pause, &[]), Ok(Done::Ok));
    refused(&[file(b"")], "1 file descriptors, it needs 2");
    refused(&[file(b"x"), file(b"")], "the state file to write is not an empty regular file");
    refused(
        &[file(b""), File::open("/dev/null").unwrap()],
        "the memory file to write is not an empty regular",
    );
    assert_eq!(ask(&files()), Ok(()));
    assert_eq!(vm.ask(Action::SetMemory { mib: 2 }, &[]), Ok(Done::Memory { plugged_mib: 0 }));
    refused(&files(), "128 MiB of added memory");
    let extent = file(&[0; 512]);
    vm.ask(Action::AddExtent { read_only: true }, &[extent.as_fd()]).unwrap();
    refused(&files(), "the image disk can't be saved or restored: it has 1 extents");
    assert_eq!(vm.ask(Action::Resume, &[]), Ok(Done::Ok));
    assert_eq!(vm.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(vm.end().0, ExitReason::Stopped);
}

#[test]
fn snapshots_that_do_not_fit_are_refused_before_a_cpu_runs() {
    let vm = Setup::new(&guests::HALT).start();
    vm.expect_started();
    let snapshot = Snapshot::of(&vm);
    let other = Snapshot::of(&vm);
    let mixed = Snapshot { state: snapshot.state.try_clone().unwrap(), memory: other.memory };
    assert!(mixed.setup().refusal().contains("not of the same snapshot"));

    let mut larger = snapshot.setup();
    larger.config.memory_mib = 64;
    assert!(larger.refusal().contains("has 32 memory_mib, the VM's configuration 64"));
    let with_kernel = snapshot.setup().with(FdRole::Kernel, file(b""));
    assert!(with_kernel.refusal().contains("has no kernel, initramfs or command line of its own"));
    let stateless = Setup::without_kernel().with(FdRole::Memory, snapshot.memory.try_clone().unwrap());
    assert!(stateless.refusal().contains("both a state and a memory file"));

    let len = snapshot.state.metadata().unwrap().len();
    let mut byte = [0];
    snapshot.state.read_exact_at(&mut byte, len / 2).unwrap();
    snapshot.state.write_all_at(&[byte[0] ^ 1], len / 2).unwrap();
    assert!(snapshot.setup().refusal().contains("damaged"));
    snapshot.state.set_len(len - 1).unwrap();
    assert!(snapshot.setup().refusal().contains("the state file has"));
}
