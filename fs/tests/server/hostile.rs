//! A guest that asks for files by names that are none, for nodes that it has not been given, and for more than there is.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::client::{
    Answer, BATCH_FORGET, CREATE, Client, FORGET, GETATTR, GETXATTR, LINK, LOOKUP, MKDIR, MKNOD, OPEN,
    OPENDIR, READ, READ_WRITE, READDIR, READDIRPLUS, REMOVEXATTR, RENAME, RMDIR, ROOT, SETXATTR, SYMLINK,
    UNLINK, WRITE, string, with_server,
};

/// Names that no file of a directory has, as they are sent: the zero that ends them is part of it.
fn bad_names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "..",
        ".",
        "",
        "/",
        "sub/file",
        "sub/new",
        "sub/",
        "sub/.",
        "/ro",
        "/rw/file",
        "/rw/new",
        "../x",
        "../file",
        "../../secret",
        "../../ro/file",
        "/etc/passwd",
        "sub/../../file",
        "./new",
    ]
    .map(string)
    .to_vec();
    // Longer than any name, without an end, and nothing at all.
    names.extend([string(&"x".repeat(256)), string(&"../".repeat(1000)), b"../secret".to_vec(), Vec::new()]);
    names
}

/// Requests that make or remove what `name` names in the directory `parent`, and those that move `other` there.
fn changes(client: &mut Client, parent: u64, name: &[u8], other: &[u8]) -> Vec<(&'static str, Answer)> {
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    let node = parent.to_le_bytes();
    let file = client.lookup(parent, "file").map(|(node, ..)| node).unwrap();
    let requests: [(&str, u32, Vec<u8>); 11] = [
        ("mkdir", MKDIR, [&numbers(&[0o755, 0])[..], name].concat()),
        ("mknod", MKNOD, [&numbers(&[0o100_644, 0, 0, 0])[..], name].concat()),
        ("device", MKNOD, [&numbers(&[0o020_644, 0x103, 0, 0])[..], name].concat()),
        ("create", CREATE, [&numbers(&[0o102, 0o644, 0, 0])[..], name].concat()),
        ("symlink", SYMLINK, [name, b"target\0"].concat()),
        ("unlink", UNLINK, name.to_vec()),
        ("rmdir", RMDIR, name.to_vec()),
        ("rename from", RENAME, [&node[..], name, other].concat()),
        ("rename to", RENAME, [&node[..], other, name].concat()),
        ("link", LINK, [&file.to_le_bytes()[..], name].concat()),
        ("lookup", LOOKUP, name.to_vec()),
    ];
    requests.map(|(what, operation, arguments)| (what, client.ask(operation, parent, &arguments, 256))).into()
}

/// All paths below a directory.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            paths.extend(tree(&entry.path()));
        }
        paths.push(entry.path());
    }
    paths.sort();
    paths
}

/// CVE-2026-47243: a guest that makes and reaches files outside of what is shared with it.
#[test]
fn names_that_lead_out_of_a_directory_or_nowhere_are_refused() {
    with_server(|client| {
        fs::write(client.directory.join("secret"), "secret").unwrap();
        fs::create_dir_all(client.data("d/sub")).unwrap();
        for file in ["d/file", "d/other", "d/sub/file", "file"] {
            fs::write(client.data(file), "x").unwrap();
        }
        let before = tree(&client.directory);
        let directory = client.walk("rw/d").unwrap();
        for name in bad_names() {
            for (what, answer) in changes(client, directory, &name, &string("other")) {
                assert!(answer.is_err(), "{what} {:?} is refused", String::from_utf8_lossy(&name));
            }
            assert_eq!(tree(&client.directory), before);
        }
        assert_eq!(fs::read(client.directory.join("secret")).unwrap(), b"secret");
    });
}

#[test]
fn what_follows_the_end_of_a_name_is_not_part_of_it() {
    with_server(|client| {
        let rw = client.walk("rw").unwrap();
        let name = [&0o755_u32.to_le_bytes()[..], &[0; 4], b"d\0/../../x\0"].concat();
        let made = client.ask(MKDIR, rw, &name, 128);
        let inside = made.is_ok() && client.data("d").is_dir();
        assert!(made.is_err() || inside);
        assert!(!client.directory.join("x").exists());
    });
}

#[test]
fn a_directory_that_becomes_a_link_under_a_guests_hands_leads_nowhere() {
    static OVER: AtomicBool = AtomicBool::new(false);
    with_server(|client| {
        let outside = client.directory.join("outside");
        for directory in [outside.clone(), client.data("d")] {
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("file"), directory.to_str().unwrap()).unwrap();
        }
        symlink(&outside, client.data("link")).unwrap();
        let (one, other) = (client.data("d"), client.data("link"));
        let swapping = std::thread::spawn(move || {
            while !OVER.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        });
        for _ in 0..500 {
            let Ok(file) = client.walk("rw/d/file") else { continue };
            let Ok(handle) = client.open(file, READ_WRITE) else { continue };
            let read = client.read(file, handle, 4096).unwrap();
            assert_ne!(read, outside.to_str().unwrap().as_bytes(), "the link was followed");
        }
        OVER.store(true, Ordering::Relaxed);
        swapping.join().unwrap();
    });
}

#[test]
fn nodes_and_handles_that_were_not_given_are_errors() {
    with_server(|client| {
        let rw = client.walk("rw").unwrap();
        fs::write(client.data("file"), "x").unwrap();
        let file = client.lookup(rw, "file").unwrap().0;
        for node in [0, 424_242, u64::MAX, file] {
            for handle in [0, 7, u64::MAX] {
                assert!(client.read(node, handle, 64).is_err(), "{node} {handle}");
                assert!(client.write(node, handle, b"no").is_err(), "{node} {handle}");
            }
            for operation in [GETATTR, OPEN, OPENDIR] {
                let known = node == file && operation != OPENDIR;
                assert!(client.ask(operation, node, &[0; 16], 128).is_err() || known, "{operation} {node}");
            }
        }
        assert_eq!(fs::read(client.data("file")).unwrap(), b"x");
        assert!(client.walk("rw/file").is_ok(), "and the server goes on");
    });
}

#[test]
fn counts_and_sizes_that_lie_are_errors_or_cut() {
    with_server(|client| {
        let rw = client.walk("rw").unwrap();
        fs::write(client.data("file"), "0123456789").unwrap();
        let file = client.lookup(rw, "file").unwrap().0;
        let handle = client.open(file, READ_WRITE).unwrap();
        // More is asked for than there is room for.
        let mut arguments = [handle.to_le_bytes(), 0_u64.to_le_bytes()].concat();
        arguments.extend(u32::MAX.to_le_bytes());
        arguments.extend([0; 20]);
        let read = client.ask(READ, file, &arguments, 4);
        assert!(read.is_err() || read.unwrap().len() <= 4);
        // More is said to be written than is sent.
        let written = client.ask(WRITE, file, &[&arguments[..], b"ab"].concat(), 8);
        assert!(written.is_err() || fs::metadata(client.data("file")).unwrap().len() <= 10);
        let opened = client.ask(OPENDIR, rw, &[0; 8], 16).unwrap();
        let listing = [&opened[..8], &u64::MAX.to_le_bytes(), &u32::MAX.to_le_bytes(), &[0; 20]].concat();
        let listed = client.ask(READDIRPLUS, rw, &listing, 4096);
        assert!(listed.is_err() || listed.unwrap().len() <= 4096);
        for count in [u32::MAX, 1000] {
            let batch = [&count.to_le_bytes()[..], &[0; 4]].concat();
            assert!(client.ask(BATCH_FORGET, ROOT, &batch, 0).is_err());
        }
        assert!(client.walk("rw/file").is_ok(), "and the server goes on");
        // What a guest forgets too often it does not know any more, be it the root.
        for node in [0, u64::MAX, file, ROOT] {
            assert_eq!(client.ask(FORGET, node, &u64::MAX.to_le_bytes(), 0), Err(0), "no reply");
        }
        assert_eq!(client.walk("rw"), Err(9));
    });
}

#[test]
fn extended_attributes_by_bad_names_and_sizes_are_refused() {
    with_server(|client| {
        let rw = client.walk("rw").unwrap();
        fs::write(client.data("file"), "x").unwrap();
        let file = client.lookup(rw, "file").unwrap().0;
        for name in [&b"\0"[..], b"no end", b"trusted.overlay.opaque\0", b"security.selinux\0", b"\xff\xff\0"]
        {
            let set = [&u32::MAX.to_le_bytes()[..], &[0; 4], name, b"v"].concat();
            assert!(client.ask(SETXATTR, file, &set, 0).is_err(), "{name:?}");
            let get = [&u32::MAX.to_le_bytes()[..], &[0; 4], name].concat();
            assert!(client.ask(GETXATTR, file, &get, 64).is_err(), "{name:?}");
            assert!(client.ask(REMOVEXATTR, file, name, 0).is_err(), "{name:?}");
        }
    });
}

#[test]
fn every_operation_with_nothing_or_with_noise_is_borne() {
    with_server(|client| {
        for operation in (0..64).chain([4096, u32::MAX]) {
            for arguments in [&[][..], &[0; 7], &[0xff; 64], &[0; 200]] {
                for room in [0, 1, 16, 4096] {
                    // What is answered is for each operation to say.
                    let _ = client.ask(operation, ROOT, arguments, room);
                }
            }
        }
        assert_eq!(client.ask(9999, ROOT, &[], 64), Err(38), "and the server goes on");
    });
}

/// Once each of these ended the server.
#[test]
fn a_request_without_room_for_its_reply_gets_none() {
    with_server(|client| {
        let rw = client.walk("rw").unwrap();
        fs::write(client.data("file"), "x").unwrap();
        let file = client.lookup(rw, "file").unwrap().0;
        let handle = client.open(file, READ_WRITE).unwrap();
        let listing =
            u64::from_le_bytes(client.ask(OPENDIR, rw, &[0; 8], 16).unwrap()[..8].try_into().unwrap());
        for (operation, node, handle) in
            [(READ, file, handle), (READDIR, rw, listing), (READDIRPLUS, rw, listing)]
        {
            for room in [0, 1, 15] {
                let mut request = [80_u32, operation].map(u32::to_le_bytes).concat();
                request.extend([77, node, 0, 0, handle, 0, 0, 0, 0].map(u64::to_le_bytes).concat());
                assert_eq!(client.relay(&request, room), Err(0), "{operation} {room}");
            }
        }
        assert!(client.walk("rw/file").is_ok(), "and the server goes on");
    });
}
