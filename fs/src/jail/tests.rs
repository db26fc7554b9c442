use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use nix::fcntl::{RenameFlags, openat, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;

/// A jail is for good, and for a process with one thread: a child that fork made is one.
#[test]
#[allow(unsafe_code)]
fn what_is_shared_is_all_that_there_is() {
    let tree = tempfile::tempdir().unwrap();
    let (mut told, tell) = std::io::pipe().unwrap();
    // SAFETY: the child ends below without returning; the C library keeps its allocator usable in the child.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let failure = std::panic::catch_unwind(|| inside(tree.path())).err();
            let text = failure.as_ref().and_then(|failure| failure.downcast_ref::<String>());
            let text = text.map_or(if failure.is_some() { "failed" } else { "" }, String::as_str);
            let _ = (&tell).write_all(text.as_bytes());
            // SAFETY: ends the child without running what the parent has registered for its own end.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let mut text = String::new();
            told.read_to_string(&mut text).unwrap();
            assert_eq!(text, "");
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
    }
}

fn inside(tree: &Path) {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    mount(Some("tree"), tree, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let shared = tree.join("shared");
    fs::create_dir(&shared).unwrap();
    mount(Some("shared"), &shared, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(shared.join("program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(shared.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    // Opened before, a directory still leads somewhere: the server is never given one.
    let outside = File::open("/").unwrap();
    let landlock = landlock_version() >= 2;

    let jail = enter(tree).unwrap();

    // What a guest may ask for, in a mount that came from outside.
    for directory in ["/shared/a", "/shared/b"] {
        // mkdir(2), which the standard library takes, is not a call of the server's.
        mkdirat(nix::fcntl::AT_FDCWD, directory, Mode::from_bits_retain(0o755)).unwrap();
    }
    fs::write("/shared/a/file", "text").unwrap();
    let from = File::open("/shared/a").unwrap();
    let to = File::open("/shared/b").unwrap();
    renameat2(&from, "file", &to, "file", RenameFlags::RENAME_NOREPLACE).unwrap();
    assert_eq!(fs::read_to_string("/shared/b/file").unwrap(), "text");
    // By the descriptor of it, as the server opens whatever a guest names.
    let name = std::os::fd::AsRawFd::as_raw_fd(&to).to_string();
    openat(&jail.descriptors, name.as_str(), OFlag::O_RDONLY, Mode::empty()).unwrap();

    assert!(fs::read("/etc/passwd").is_err() && fs::read("/proc/self/status").is_err());
    if landlock {
        let way_back = openat(&outside, "etc/passwd", OFlag::O_RDONLY, Mode::empty());
        assert_eq!(way_back.map(drop), Err(Errno::EACCES));
    }
}

/// How much the running kernel's Landlock knows; 2 is the first that allows renaming into other directories.
#[allow(unsafe_code)]
fn landlock_version() -> i64 {
    use nix::libc::{SYS_landlock_create_ruleset, syscall};
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes a null pointer, and returns a number.
    unsafe {
        syscall(SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, LANDLOCK_CREATE_RULESET_VERSION)
    }
}
