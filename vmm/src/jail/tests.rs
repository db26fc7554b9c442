use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::UdpSocket;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::api::user_of;

/// A jail is for good, and for a process with one thread: a child that fork made is one.
#[test]
#[allow(unsafe_code)]
fn there_is_no_way_out_of_a_jail() {
    let (mut told, tell) = io::pipe().unwrap();
    // SAFETY: the child ends below without returning; the C library keeps its allocator usable in the child.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let failure = std::panic::catch_unwind(inside).err();
            let text = failure.as_ref().and_then(|failure| failure.downcast_ref::<String>());
            let text = text.map_or(if failure.is_some() { "failed" } else { "" }, String::as_str);
            let _ = (&tell).write_all(text.as_bytes());
            // SAFETY: ends the child without running what the parent has registered for its own end.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let mut text = String::new();
            told.read_to_string(&mut text).unwrap();
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            assert_eq!(text, "");
        }
    }
}

fn inside() {
    // Opened before, a file can still be used, and so can a directory's descriptor: which the VMM is never given.
    let outside = File::open("/").unwrap();
    let landlock = enter(user_of(std::process::id())).unwrap();

    let names: Vec<_> = fs::read_dir("/").map(|entries| entries.flatten().collect()).unwrap_or_default();
    assert!(names.is_empty(), "{names:?}");
    assert!(File::open("/proc/self/status").is_err());
    assert!(File::create("/file").is_err());
    let way_back =
        rustix::fs::openat(&outside, "etc/passwd", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    // Landlock is what forbids this one, where the kernel has it.
    assert_eq!(way_back.is_err(), landlock != RulesetStatus::NotEnforced, "{way_back:?}");
    // Not even to itself: no interface of its network is up.
    let sent = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"anyone?", "127.0.0.1:9"));
    assert_eq!(sent.map_err(|error| error.kind()), Err(io::ErrorKind::NetworkUnreachable));
    for namespace in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWNET] {
        assert!(unshare(namespace).is_err(), "{namespace:?}");
    }
    assert!(setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err());
    let none: Option<&str> = None;
    assert_eq!(mount(none, "/", none, MsFlags::MS_REMOUNT, none), Err(Errno::EPERM));
    assert!(setrlimit(Resource::RLIMIT_CORE, 1, 1).is_err());
    assert_eq!(prctl::get_pdeathsig(), Ok(Some(Signal::SIGKILL)));
    assert_eq!(prctl::get_no_new_privs(), Ok(true));
}

#[test]
fn the_user_of_a_jail_is_not_root() {
    let error = enter(0).unwrap_err();
    assert_eq!(error.to_string(), "can't confine the VMM: its user is root");
}
