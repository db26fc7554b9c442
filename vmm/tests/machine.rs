//! The real `monohull-vmm`, driven through its client, with guests of a few hand-assembled instructions on /dev/kvm.

// A failure of the test itself should stop it, also outside of the test functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use monohull_vmm::api::{Action, Done, Event, ExitReason, FdRole, FromVmm};
use monohull_vmm::ipc::Channel;

mod guests;
mod vm;

use vm::{Setup, binary, elf, file, wait};

#[test]
fn a_guest_that_prints_and_resets_has_shut_down() {
    let (mut output, console) = std::io::pipe().unwrap();
    let vm = Setup::new(&guests::print_and_reset(b"hello\n")).with(FdRole::Console, console).start();

    assert_eq!(vm.run(), (ExitReason::GuestShutdown, 0));

    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
}

#[test]
fn the_start_is_marked_step_by_step() {
    let vm = Setup::new(&guests::print_and_reset(b"")).start();
    let marks = vm.expect_started();
    let names: Vec<&str> = marks.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["vmm exec", "jailed", "kvm ready", "devices ready", "kernel loaded", "vcpus run"]);
    assert!(marks.is_sorted_by_key(|(_, us)| *us));
    assert_eq!(vm.end().0, ExitReason::GuestShutdown);
}

#[test]
fn a_guest_finds_the_boot_parameters_linux_expects() {
    // The guest checks the zero page by itself and resets only when it is right.
    let vm = Setup::new(&guests::check_boot_parameters()).with(FdRole::Initramfs, file(b"initramfs")).start();
    assert_eq!(vm.run(), (ExitReason::GuestShutdown, 0));
}

#[test]
fn a_triple_fault_is_told() {
    let vm = Setup::new(&guests::TRIPLE_FAULT).start();
    assert_eq!(vm.run(), (ExitReason::TripleFault, 1));
}

#[test]
fn stop_ends_an_idle_guest_and_a_busy_one() {
    for code in [&guests::HALT[..], &guests::SPIN[..]] {
        let vm = Setup::new(code).start();
        vm.expect_started();
        assert_eq!(vm.ask(Action::Stop, &[]), Ok(Done::Ok));
        assert_eq!(vm.end(), (ExitReason::Stopped, 0));
    }
}

#[test]
fn stop_ends_a_guest_whose_other_cpus_were_never_started() {
    let mut setup = Setup::new(&guests::HALT);
    setup.config.vcpus = 4;
    let vm = setup.start();
    vm.expect_started();
    assert_eq!(vm.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(vm.end(), (ExitReason::Stopped, 0));
}

#[test]
fn a_vm_does_not_outlive_its_control_socket() {
    let (channel, theirs) = Channel::pair().unwrap();
    let config = Setup::new(&guests::HALT);
    let fds: Vec<BorrowedFd<'_>> = config.fds.iter().map(AsFd::as_fd).collect();
    // Started by hand, without a death signal: only the socket ties it to this process.
    let mut child = guests::spawn_with_control(binary(), theirs.into());
    channel.send(&config.config, &fds).unwrap();
    let (message, _) = channel.receive::<FromVmm>().unwrap().unwrap();
    assert!(matches!(message, FromVmm::Event(Event::Started { .. })));

    drop(channel);

    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn a_vmm_whose_owner_goes_before_the_configuration_ends() {
    let (channel, theirs) = Channel::pair().unwrap();
    let mut child = guests::spawn_with_control(binary(), theirs.into());
    drop(channel);
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn dropping_the_client_kills_the_vm() {
    let vm = Setup::new(&guests::SPIN).start();
    vm.expect_started();
    let pidfd = vm.vmm.pidfd().try_clone_to_owned().unwrap();
    drop(vm);
    wait(pidfd.as_fd());
}

#[test]
fn a_guest_kernels_panic_is_told_by_its_text() {
    let panics = |record: &str, reason: ExitReason| {
        let vm = Setup::new(&guests::leave_record_and_reset(record)).start();
        vm.expect_started();
        assert!(vm.last_words().ends_with(record));
        assert_eq!(vm.end(), (reason, 1));
    };
    let record = "====1.0-D\nPanic#1 Part1\n<0>[    1.0] Kernel panic - not syncing: VFS: no root\n";
    panics(record, ExitReason::GuestPanic("VFS: no root".into()));
    let record = "<0>[    1.0] Kernel panic - not syncing: System is deadlocked on memory\n";
    panics(record, ExitReason::GuestOutOfMemory("System is deadlocked on memory".into()));
}

#[test]
fn unknown_ports_and_addresses_do_not_stop_a_guest() {
    let vm = Setup::new(&guests::touch_nothings()).start();
    assert_eq!(vm.run(), (ExitReason::GuestShutdown, 0));
}

#[test]
fn a_guest_finds_its_virtio_devices_behind_their_registers() {
    let vm = Setup::new(&guests::find_virtio_devices()).start();
    assert_eq!(vm.run(), (ExitReason::GuestShutdown, 0));
}

#[test]
fn extents_are_appended_one_after_the_other_and_odd_ones_refused() {
    let vm = Setup::new(&guests::HALT).start();
    vm.expect_started();
    let add = |bytes: usize| vm.ask(Action::AddExtent { read_only: true }, &[file(&vec![0; bytes]).as_fd()]);
    let Ok(Done::ExtentAdded { start, sectors: 3 }) = add(3 * 512) else { panic!("refused") };
    let Ok(Done::ExtentAdded { start: next, sectors: 1 }) = add(512) else { panic!("refused") };
    assert!(next >= start + 3);
    let refused = add(511).unwrap_err();
    assert!(
        refused.starts_with("can't add an extent to the image disk: ") && refused.contains("511"),
        "{refused}"
    );
    assert_eq!(vm.ask(Action::SetBalloon { mib: 4 }, &[]), Ok(Done::Ok));
    assert_eq!(vm.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(vm.end().0, ExitReason::Stopped);
}

#[test]
fn memory_is_there_from_the_moment_it_is_added() {
    let mut setup = Setup::new(&guests::wait_for_memory_at_4_gib());
    setup.config.hotplug_mib = 300;
    let vm = setup.start();
    vm.expect_started();
    let refused = vm.ask(Action::SetMemory { mib: 257 }, &[]).unwrap_err();
    assert!(refused.ends_with("257 MiB are more than the 256 MiB this VM can be given"), "{refused}");
    assert_eq!(vm.ask(Action::SetMemory { mib: 1 }, &[]), Ok(Done::Memory { plugged_mib: 0 }));
    assert_eq!(vm.end(), (ExitReason::GuestShutdown, 0));
}

#[test]
fn requests_for_devices_the_vm_lacks_are_refused_and_it_runs_on() {
    let vm = Setup::new(&guests::HALT).start();
    vm.expect_started();
    let refused = vm.ask(Action::AttachNic { nic: 0 }, &[file(b"").as_fd()]).unwrap_err();
    assert!(refused.contains("this VM has 0 network interfaces"), "{refused}");
    let refused = vm.ask(Action::AddExtent { read_only: true }, &[]).unwrap_err();
    assert!(refused.contains("0 file descriptors"), "{refused}");
    let refused = vm.ask(Action::SetMemory { mib: 1 }, &[]).unwrap_err();
    assert!(refused.contains("this VM has no memory device"), "{refused}");
    assert_eq!(vm.ask(Action::Stop, &[]), Ok(Done::Ok));
    assert_eq!(vm.end().0, ExitReason::Stopped);
}

#[test]
fn bad_configurations_are_refused_with_the_field_and_the_reason() {
    let setup = || Setup::new(&guests::HALT);
    let mut tiny = setup();
    tiny.config.memory_mib = 16;
    assert!(tiny.refusal().contains("memory_mib is 16, it must be from 32"));
    let mut none = setup();
    none.config.vcpus = 0;
    assert!(none.refusal().contains("vcpus is 0"));
    let mut long = setup();
    long.config.cmdline = "x".repeat(3000);
    assert!(long.refusal().contains("command line is"));
    let mut kernelless = setup();
    kernelless.config.fds.pop();
    kernelless.fds.pop();
    assert!(kernelless.refusal().contains("no Kernel descriptor"));
    let mut unnamed = setup();
    unnamed.config.fds.pop();
    assert!(unnamed.refusal().contains("names 1 descriptors, 2 came"));
}

#[test]
fn bad_files_are_refused_with_what_they_should_be() {
    let setup = |kernel: File| {
        let mut setup = Setup::new(&[]);
        setup.fds[1] = kernel.into();
        setup
    };
    assert!(setup(file(b"not a kernel")).refusal().contains("can't load the guest kernel"));
    let mut no_kvm = setup(elf(&guests::HALT));
    no_kvm.fds[0] = File::open("/dev/null").unwrap().into();
    assert!(no_kvm.refusal().contains("not an open /dev/kvm"));
    let too_large = setup(elf(&guests::HALT)).with(FdRole::Initramfs, file(&vec![0; 20 << 20]));
    assert!(too_large.refusal().contains("give the pod more memory"));
}

#[test]
fn the_binary_explains_itself_when_started_by_hand() {
    let run = |args: &[&str]| {
        std::process::Command::new(binary()).args(args).stdin(std::process::Stdio::null()).output().unwrap()
    };
    let version = run(&["--version"]);
    assert_eq!(version.stdout, format!("monohull-vmm {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
    assert!(String::from_utf8_lossy(&run(&["--help"]).stdout).contains("started by the containerd shim"));
    let alone = run(&[]);
    assert_eq!(alone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("started by the containerd shim"));
}
