//! `monohull-vmm`: runs the one VM whose configuration arrives on fd 3.

// Adopting a descriptor by its number has no safe interface.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use monohull_vmm::Marks;
use monohull_vmm::api::{CONTROL_FD, ExitReason};
use nix::sys::socket::{SockType, getsockopt, sockopt};

const HELP: &str = "\
monohull-vmm runs the virtual machine of one pod. It is started by the containerd shim or by `monohull run`,
which hand it a socket as file descriptor 3; there is no other way to use it.

  --filters  print the system calls that its threads may make once it runs, and what for
  --version  print the version
  --help     print this";

/// What a program of Rust that panics exits with.
const PANICKED: i32 = 101;

fn main() -> ExitCode {
    exit_on_panic();
    share_heap();
    let mut marks = Marks::new();
    marks.note("vmm exec");
    match std::env::args().nth(1).as_deref() {
        None => {}
        Some("--version") => {
            println!("monohull-vmm {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--filters") => {
            print!("{}", monohull_vmm::filters());
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(_) => return usage(),
    }
    let Some(socket) = control_socket() else { return usage() };
    #[cfg(debug_assertions)]
    leave_out();
    match monohull_vmm::run(socket, marks) {
        Some(ExitReason::Stopped | ExitReason::GuestShutdown) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Ends the process when any thread panics. Aborting would be another signal than SIGABRT: the first process of a process id
/// namespace gets none that it does not handle.
fn exit_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(PANICKED);
    }));
}

/// Has all threads allocate from one heap. glibc would give them heaps of their own, and look into files of /proc and /sys
/// for how many there may be and how they may shrink: a jailed process is killed for that.
fn share_heap() {
    // SAFETY: it sets a number of malloc's, while there is one thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Does without a rule of its filters when it is called `without-RULE-CLASS`, which a test does
/// (`vmm/tests/filters`). Fewer calls are all that a name can bring about, and that only in a program which is built for tests.
#[cfg(debug_assertions)]
fn leave_out() {
    let path = std::env::args().next().unwrap_or_default();
    let Some(name) = path.rsplit('/').next().and_then(|name| name.strip_prefix("without-")) else { return };
    let left_out =
        name.split_once('-').and_then(|(rule, class)| monohull_vmm::leave_out(rule.parse().ok()?, class));
    if left_out.is_none() {
        eprintln!("there is no rule {name}");
        std::process::exit(2);
    }
}

fn usage() -> ExitCode {
    eprintln!("{HELP}");
    ExitCode::from(2)
}

/// Descriptor 3, if it is a socket of the kind that an owner hands over.
fn control_socket() -> Option<OwnedFd> {
    // SAFETY: only borrowed, to ask the kernel what it is: if it is not open, the answer is an error.
    let fd = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    if getsockopt(&fd.as_fd(), sockopt::SockType) != Ok(SockType::SeqPacket) {
        return None;
    }
    // SAFETY: it is open, and nothing in this process has opened it: it was inherited.
    Some(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) })
}
