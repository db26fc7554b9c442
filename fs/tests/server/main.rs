//! The real `monohull-fs`, asked over the relay's protocol. Needs root: each test mounts in a namespace of its own.

// A failure of the test itself should stop it, also outside of the test functions.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod client;
mod hostile;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use monohull_fs_protocol::{self as protocol, Request, SLOT_SIZE};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use client::{
    FORGET, GETATTR, GETXATTR, LOOKUP, OPENDIR, READ, READ_WRITE, READDIRPLUS, READLINK, RENAME, ROOT,
    SETXATTR, SYMLINK, UNLINK, entries, string, with_server,
};

#[test]
fn what_the_host_writes_the_guest_reads_and_the_other_way_round() {
    with_server(|client| {
        let rw = client.walk("rw").unwrap();
        fs::write(client.data("a"), "from the host").unwrap();
        let (a, size, _) = client.lookup(rw, "a").unwrap();
        assert_eq!(size, 13);
        let handle = client.open(a, READ_WRITE).unwrap();
        assert_eq!(client.read(a, handle, 4096).unwrap(), b"from the host");
        client.write(a, handle, b"by the guest!").unwrap();
        assert_eq!(fs::read(client.data("a")).unwrap(), b"by the guest!");
        let large: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        client.write(a, handle, &large).unwrap();
        assert_eq!(client.read(a, handle, 240 << 10).unwrap(), large);
        assert_eq!(client.lookup(rw, "none"), Err(2));
        assert_eq!(client.ask(FORGET, a, &1_u64.to_le_bytes(), 0), Err(0), "no reply");
    });
}

#[test]
fn a_listing_of_a_root_brings_what_need_not_be_asked_for() {
    with_server(|client| {
        // Its name begins as that of a root.
        let root = client.walk("rw").unwrap();
        fs::create_dir(client.data("d")).unwrap();
        fs::write(client.data("d/file"), "x").unwrap();
        fs::write(client.data("d/other"), "y").unwrap();
        let directory = client.lookup(root, "d").unwrap().0;
        let opened = client.ask(OPENDIR, directory, &[0; 8], 16).unwrap();
        let mut arguments = opened[..8].to_vec();
        arguments.extend(0_u64.to_le_bytes());
        arguments.extend(4096_u32.to_le_bytes());
        arguments.extend([0; 20]);
        let mut listed = entries(&client.ask(READDIRPLUS, directory, &arguments, 4096).unwrap());
        listed.sort();
        let names: Vec<&str> = listed.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, [".", "..", "file", "other"]);
        assert!(listed[2..].iter().all(|(_, node, life)| *node != 0 && *life == 1), "{listed:?}");
        assert_eq!(client.lookup(directory, "file").unwrap().0, listed[2].1);
    });
}

#[test]
fn a_read_only_export_refuses_whatever_would_change_it() {
    with_server(|client| {
        fs::write(client.data("a"), "x").unwrap();
        let ro = client.walk("ro").unwrap();
        let a = client.lookup(ro, "a").unwrap().0;
        assert_eq!(client.open(a, 0).map(drop), Ok(()));
        assert_eq!(client.open(a, READ_WRITE), Err(30));
        assert_eq!(client.mkdir(ro, "d", 0o755), Err(30));
        assert_eq!(client.mknod(ro, "f", 0o100_644), Err(30));
        assert_eq!(client.ask(UNLINK, ro, &string("a"), 0), Err(30));
        let rename = [&ro.to_le_bytes()[..], &string("a"), &string("b")].concat();
        assert_eq!(client.ask(RENAME, ro, &rename, 0), Err(30));
        let xattr = [&1_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), b"user.x\0v"].concat();
        assert_eq!(client.ask(SETXATTR, a, &xattr, 0), Err(30));
        assert_eq!(fs::read(client.data("a")).unwrap(), b"x");
    });
}

#[test]
fn the_root_is_not_the_guests_and_nothing_is_above_it() {
    with_server(|client| {
        assert_eq!(client.mkdir(ROOT, "x", 0o755), Err(30));
        let above = client.lookup(ROOT, "..");
        assert!(above.is_err() || above.unwrap().0 == ROOT);
        let rw = client.walk("rw").unwrap();
        // A name has no slash, and is no way out of an export.
        assert!(client.lookup(rw, "../../etc").is_err());
        assert!(client.lookup(rw, "/etc").is_err());
        let parent = client.lookup(rw, "..");
        assert!(parent.is_err() || client.lookup(parent.unwrap().0, "etc").is_err());
    });
}

#[test]
fn symbolic_links_are_the_guests_to_follow() {
    with_server(|client| {
        symlink("/etc/passwd", client.data("link")).unwrap();
        let rw = client.walk("rw").unwrap();
        let (link, _, mode) = client.lookup(rw, "link").unwrap();
        assert_eq!(mode & 0o170_000, 0o120_000);
        assert_eq!(client.ask(READLINK, link, &[], 4096).unwrap(), b"/etc/passwd");
        assert!(client.open(link, 0).is_err());
        client.ask(SYMLINK, rw, b"out\0../../..\0", 128).unwrap();
        let out = client.lookup(rw, "out").unwrap().0;
        assert_eq!(client.lookup(out, "etc"), Err(20), "a link is no directory");
    });
}

#[test]
fn files_get_the_owner_and_mode_of_who_makes_them() {
    with_server(|client| {
        fs::set_permissions(client.data(""), fs::Permissions::from_mode(0o777)).unwrap();
        let rw = client.walk("rw").unwrap();
        client.ids = (1000, 1001);
        client.mkdir(rw, "d", 0o1775).unwrap();
        client.mknod(rw, "f", 0o100_666).unwrap();
        let (d, f) = (fs::metadata(client.data("d")).unwrap(), fs::metadata(client.data("f")).unwrap());
        assert_eq!((d.uid(), d.gid(), d.mode() & 0o7777), (1000, 1001, 0o1775));
        assert_eq!((f.uid(), f.gid(), f.mode() & 0o7777), (1000, 1001, 0o666));
        client.ids = (0, 0);
        client.mknod(rw, "device", 0o020_600).unwrap();
        let device = client.lookup(rw, "device").unwrap().0;
        assert!(client.open(device, 0).is_err(), "a device of the host is never opened");
    });
}

#[test]
fn renames_replace_and_extended_attributes_stay() {
    with_server(|client| {
        fs::write(client.data("a"), "a").unwrap();
        fs::write(client.data("b"), "b").unwrap();
        let rw = client.walk("rw").unwrap();
        let a = client.lookup(rw, "a").unwrap().0;
        let xattr = [&5_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), b"user.x\0value"].concat();
        client.ask(SETXATTR, a, &xattr, 0).unwrap();
        let rename = [&rw.to_le_bytes()[..], &string("a"), &string("b")].concat();
        client.ask(RENAME, rw, &rename, 0).unwrap();
        assert_eq!(fs::read(client.data("b")).unwrap(), b"a");
        assert_eq!(client.lookup(rw, "a"), Err(2));
        let b = client.lookup(rw, "b").unwrap().0;
        assert_eq!(b, a, "the same file");
        let get = [&64_u32.to_le_bytes()[..], &[0; 4], b"user.x\0"].concat();
        assert_eq!(client.ask(GETXATTR, b, &get, 64).unwrap(), b"value");
    });
}

#[test]
fn requests_that_make_no_sense_get_an_error_or_nothing() {
    with_server(|client| {
        assert_eq!(client.ask(9999, ROOT, &[], 64), Err(38));
        assert_eq!(client.ask(GETATTR, 424_242, &[0; 16], 128), Err(9));
        assert_eq!(client.ask(LOOKUP, ROOT, b"no end", 128), Err(0));
        assert_eq!(client.ask(READ, ROOT, &[0; 3], 128), Err(0));
        assert_eq!(client.relay(&[0; 12], 64), Err(0));
        let rw = client.walk("rw");
        assert!(rw.is_ok(), "and the server goes on");
    });
}

#[test]
fn a_vmm_that_breaks_the_protocol_ends_the_server() {
    let (channel, theirs) = protocol::channel().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let memory = protocol::memory().unwrap();
    let ended = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("this test needs root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tree"), &path, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_monohull-fs"));
        let server = command.arg(&path).stdin(theirs).stdout(memory).stderr(std::process::Stdio::piped());
        let server = server.spawn().unwrap();
        protocol::send(&channel, &Request { slot: 3, length: SLOT_SIZE, room: 64 }).unwrap();
        let output = server.wait_with_output().unwrap();
        drop(channel);
        output
    });
    let output = ended.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "by itself, not by a signal");
    assert_eq!(output.stderr, b"monohull-fs: the VMM broke the relay's protocol\n");
}
