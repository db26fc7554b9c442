//! Snapshots by the real `monohull-vmm`, of guests of a few hand-assembled instructions on /dev/kvm.

// A failure of the test itself should stop it, also outside of the test functions.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use monohull_vmm::api::{Action, Done, ExitReason, FdRole, WorkingSet};

// A part of these is used.
#[allow(dead_code)]
#[path = "hostile/driver.rs"]
mod driver;
mod guests;
#[allow(dead_code)]
#[path = "hostile/program.rs"]
mod program;
#[path = "hostile/requests/mod.rs"]
mod requests;
mod vm;

use driver::WRITE;
use program::Program;
use requests::disk::{DATA, IN, OUT};
use vm::{Setup, Vm, file};

/// Where the extents of these tests are, and how many sectors each has.
const WRITABLE: u64 = 2048;
const READ_ONLY: u64 = 4096;
const SECTORS: u64 = 8;
/// What the writable one begins with: more than any status.
const FIRST_NUMBER: u8 = 0x10;

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
        self.fork_with(WorkingSet::default())
    }

    fn fork_with(&self, working_set: WorkingSet) -> Printing {
        let (output, console) = std::io::pipe().unwrap();
        let mut setup = self.setup().with(FdRole::Console, console);
        setup.config.working_set = working_set;
        Printing::started(setup, output)
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
fn what_a_copy_is_said_to_use_changes_nothing_of_what_it_does() {
    let mut original = Printing::boot(&guests::count());
    first_of_sequence(&mut original);
    let snapshot = Snapshot::of(&original.vm);
    let counter = snapshot.counter();
    // All of the memory, its holes included, and what is beyond its end.
    let all = vec![(0, 8192), (8000, 500), (u32::MAX, u32::MAX), (7, 0)];
    for (written, used) in [(Vec::new(), all.clone()), (all.clone(), all.clone()), (all, Vec::new())] {
        let mut copy = snapshot.fork_with(WorkingSet { written, used });
        let first = first_of_sequence(&mut copy);
        assert!([counter as u8, (counter + 1) as u8].contains(&first), "{first} after {counter}");
        assert_eq!(snapshot.counter(), counter);
        copy.stop();
    }
    original.stop();
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
    assert_eq!(
        names,
        ["vmm exec", "jailed", "kvm ready", "devices ready", "state restored", "memory mapped", "vcpus run"]
    );
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
    assert_eq!(vm.ask(Action::Resume, &[]), Ok(Done::Ok));
    assert_eq!(vm.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(vm.end().0, ExitReason::Stopped);
}

/// A guest that counts in a sector, and tries to write to what is read-only. Each round it prints the status of its read, the
/// number, and the status of both writes.
fn count_on_disk() -> Vec<u8> {
    let sector = |flags| [(DATA.into(), 512, flags)];
    let mut program = Program::new();
    program.wait_capacity(READ_ONLY + SECTORS);
    program.forever(|program| {
        program.request(IN, WRITABLE, &sector(WRITE));
        program.print_from(DATA, 1);
        program.increment32(DATA);
        program.request(OUT, WRITABLE, &sector(0));
        program.request(OUT, READ_ONLY, &sector(0));
    })
}

fn extent(byte: u8) -> File {
    file(&[byte; (SECTORS * 512) as usize])
}

fn first_byte(file: &File) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    byte[0]
}

/// Reads some rounds of [`count_on_disk`], and returns the number of the first that is complete.
fn first_round(vm: &mut Printing) -> u8 {
    let is_number = |byte: &u8| *byte >= FIRST_NUMBER;
    let bytes = vm.read::<40>();
    let at = bytes.iter().position(is_number).unwrap();
    let rounds: Vec<_> = bytes[at..].chunks_exact(4).collect();
    for (round, expected) in rounds.iter().zip(bytes[at]..) {
        assert_eq!(*round, [expected, 0, 1, 0], "{bytes:?}");
    }
    bytes[at]
}

#[test]
fn a_disk_goes_on_in_copies_with_the_files_that_they_are_given() {
    let mut original = Printing::boot(&count_on_disk());
    let (written, read) = (extent(FIRST_NUMBER), extent(0xaa));
    original.vm.ask(Action::AddExtent { read_only: false }, &[written.as_fd()]).unwrap();
    original.vm.ask(Action::AddExtent { read_only: true }, &[read.as_fd()]).unwrap();
    assert_eq!(first_round(&mut original), FIRST_NUMBER);
    let snapshot = Snapshot::of(&original.vm);
    let number = first_byte(&written);

    let files = [extent(number), extent(number)];
    for file in &files {
        let (output, console) = std::io::pipe().unwrap();
        let mut setup = snapshot.setup().with(FdRole::Console, console);
        setup.config.paused = true;
        let mut copy = Printing::started(setup, output);
        let restore = |start, read_only, file: &File| {
            copy.vm.ask(Action::RestoreExtent { start, read_only }, &[file.as_fd()])
        };
        assert_eq!(restore(READ_ONLY, true, &read), Ok(Done::Ok));
        assert_eq!(restore(WRITABLE, false, file), Ok(Done::Ok));
        assert_eq!(copy.vm.ask(Action::Resume, &[]), Ok(Done::Ok));
        let first = first_round(&mut copy);
        assert!((number - 1..=number + 1).contains(&first), "{first} after {number}");
        copy.stop();
        assert!(first_byte(file) > number);
    }
    assert_eq!(first_byte(&written), number, "the original's is its own");
    assert_eq!(first_byte(&read), 0xaa);
    assert_eq!(original.vm.ask(Action::Resume, &[]), Ok(Done::Ok));
    first_round(&mut original);
    original.stop();
}

#[test]
fn a_copy_does_not_run_before_it_has_the_files_of_its_original() {
    let vm = Setup::new(&guests::HALT).start();
    vm.expect_started();
    let files = [extent(1), extent(2)];
    for (file, read_only) in files.iter().zip([false, true]) {
        vm.ask(Action::AddExtent { read_only }, &[file.as_fd()]).unwrap();
    }
    let snapshot = Snapshot::of(&vm);
    assert!(
        snapshot
            .setup()
            .refusal()
            .contains("disk has 2 extents, whose files it needs before it runs: start it paused")
    );

    let mut setup = snapshot.setup();
    setup.config.paused = true;
    let copy = setup.start();
    let marks = copy.expect_started();
    assert!(marks.iter().all(|(name, _)| name != "vcpus run"), "{marks:?}");
    let refused = |start, read_only, file: &File, text: &str| {
        let error = copy.ask(Action::RestoreExtent { start, read_only }, &[file.as_fd()]).unwrap_err();
        assert!(error.contains(text), "{error}");
    };
    refused(0, false, &files[0], "no extent of the snapshot that waits for its file begins at sector 0");
    refused(
        READ_ONLY,
        false,
        &files[1],
        "has 8 read-only sectors in the snapshot, the file given for it 8 writable",
    );
    refused(
        WRITABLE,
        true,
        &files[0],
        "has 8 writable sectors in the snapshot, the file given for it 8 read-only",
    );
    refused(WRITABLE, false, &file(&[0; 512]), "the file given for it 1 writable sectors");
    refused(WRITABLE, false, &File::open("/dev/null").unwrap(), "opened with flags");
    for (start, read_only, missing) in [(WRITABLE, false, 2), (READ_ONLY, true, 1)] {
        let error = copy.ask(Action::Resume, &[]).unwrap_err();
        assert!(error.contains(&format!("{missing} extents of its image disk have no file yet")), "{error}");
        let file = &files[usize::from(read_only)];
        assert_eq!(copy.ask(Action::RestoreExtent { start, read_only }, &[file.as_fd()]), Ok(Done::Ok));
    }
    refused(WRITABLE, false, &files[0], "no extent of the snapshot that waits");
    // It can be copied before it has ever run.
    Snapshot::of(&copy);
    assert_eq!(copy.ask(Action::Resume, &[]), Ok(Done::Ok));
    assert_eq!(copy.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(copy.end().0, ExitReason::Stopped);
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
