//! A guest's kernel and its VMM, as a server sees them.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use monohull_fs_protocol::{self as protocol, Reply, Request};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Operations (linux/fuse.h).
pub(crate) const LOOKUP: u32 = 1;
pub(crate) const FORGET: u32 = 2;
pub(crate) const GETATTR: u32 = 3;
pub(crate) const SYMLINK: u32 = 6;
pub(crate) const READLINK: u32 = 5;
pub(crate) const MKNOD: u32 = 8;
pub(crate) const MKDIR: u32 = 9;
pub(crate) const UNLINK: u32 = 10;
pub(crate) const RENAME: u32 = 12;
pub(crate) const OPEN: u32 = 14;
pub(crate) const READ: u32 = 15;
pub(crate) const WRITE: u32 = 16;
pub(crate) const SETXATTR: u32 = 21;
pub(crate) const GETXATTR: u32 = 22;
pub(crate) const RMDIR: u32 = 11;
pub(crate) const LINK: u32 = 13;
pub(crate) const REMOVEXATTR: u32 = 24;
pub(crate) const CREATE: u32 = 35;
pub(crate) const BATCH_FORGET: u32 = 42;
pub(crate) const INIT: u32 = 26;
pub(crate) const OPENDIR: u32 = 27;
pub(crate) const READDIR: u32 = 28;
pub(crate) const READDIRPLUS: u32 = 44;

pub(crate) const ROOT: u64 = 1;
pub(crate) const READ_WRITE: i32 = 2;

/// A guest's kernel and its VMM.
pub(crate) struct Client {
    channel: OwnedFd,
    memory: File,
    server: Child,
    pub(crate) directory: PathBuf,
    pub(crate) ids: (u32, u32),
}

/// Runs a test with a server whose root has an export `rw` and one, `ro`, of the same directory.
pub(crate) fn with_server(test: impl FnOnce(&mut Client) + Send + 'static) {
    // Outside of the thread: a directory can't be removed where something is mounted in it.
    let directory = tempfile::tempdir().unwrap();
    let top = directory.path().to_owned();
    // A thread of its own: its mount namespace goes with it.
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("this test needs root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let (tree, data) = (top.join("tree"), top.join("data"));
        fs::create_dir(&data).unwrap();
        fs::create_dir(&tree).unwrap();
        mount(Some("tree"), &tree, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        mount(none, &tree, none, MsFlags::MS_SHARED, none).unwrap();
        export(&data, &tree, "rw");
        let (channel, theirs) = protocol::channel().unwrap();
        let memory = protocol::memory().unwrap();
        let server = Command::new(env!("CARGO_BIN_EXE_monohull-fs"))
            .arg(&tree)
            .stdin(theirs)
            .stdout(memory.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut client = Client { channel, memory: memory.into(), server, directory: top, ids: (0, 0) };
        let mut init = Vec::new();
        for number in [7_u32, 31, 0x20000, 1 << 27 | 1 << 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] {
            init.extend(number.to_le_bytes());
        }
        let reply = client.ask(INIT, 0, &init, 64).expect("INIT");
        assert_eq!(reply[..4], 7_u32.to_le_bytes());
        // While the server runs.
        let read_only = directory_read_only(&client.directory.join("stage"), &data);
        export(&read_only, &tree, "ro");
        test(&mut client);
        drop(client.channel);
        assert!(client.server.wait().unwrap().success(), "it ends with its socket");
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Mounts `source` read-only on a new directory. A mount that is made read-only in the tree would not be so elsewhere.
fn directory_read_only(stage: &Path, source: &Path) -> PathBuf {
    let none: Option<&str> = None;
    fs::create_dir(stage).unwrap();
    mount(Some(source), stage, none, MsFlags::MS_BIND, none).unwrap();
    let options = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, stage, none, options, none).unwrap();
    stage.to_owned()
}

fn export(source: &Path, tree: &Path, name: &str) {
    let none: Option<&str> = None;
    fs::create_dir(tree.join(name)).unwrap();
    mount(Some(source), &tree.join(name), none, MsFlags::MS_BIND, none).unwrap();
}

/// A reply without its header, or its error number.
pub(crate) type Answer = Result<Vec<u8>, i32>;

impl Client {
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.directory.join("data").join(name)
    }

    /// Sends a request in slot 0, as the user `ids`.
    pub(crate) fn ask(&mut self, operation: u32, node: u64, arguments: &[u8], room: u32) -> Answer {
        let length = 40 + arguments.len() as u32;
        let mut request = Vec::new();
        request.extend(length.to_le_bytes());
        request.extend(operation.to_le_bytes());
        request.extend(77_u64.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend(self.ids.0.to_le_bytes());
        request.extend(self.ids.1.to_le_bytes());
        request.extend([0; 8]);
        request.extend(arguments);
        self.relay(&request, 16 + room)
    }

    pub(crate) fn relay(&mut self, request: &[u8], room: u32) -> Answer {
        self.memory.write_all_at(request, 0).unwrap();
        let length = request.len() as u32;
        protocol::send(&self.channel, &Request { slot: 0, length, room }).unwrap();
        let reply: Reply = protocol::receive(&self.channel).unwrap().expect("the server is there");
        assert_eq!(reply.slot, 0);
        let mut bytes = vec![0; reply.length as usize];
        self.memory.read_exact_at(&mut bytes, protocol::reply_offset(length).into()).unwrap();
        if bytes.is_empty() {
            return Err(0);
        }
        assert_eq!(bytes[8..16], 77_u64.to_le_bytes());
        match i32::from_le_bytes(bytes[4..8].try_into().unwrap()) {
            0 => Ok(bytes.split_off(16)),
            error => Err(-error),
        }
    }

    /// The node of a name, and its attributes: size and mode.
    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> Result<(u64, u64, u32), i32> {
        let entry = self.ask(LOOKUP, parent, &string(name), 128)?;
        let number = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        let mode = u32::from_le_bytes(entry[40 + 60..40 + 64].try_into().unwrap());
        Ok((number(0), number(40 + 8), mode))
    }

    pub(crate) fn walk(&mut self, path: &str) -> Result<u64, i32> {
        path.split('/').try_fold(ROOT, |node, name| Ok(self.lookup(node, name)?.0))
    }

    pub(crate) fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Answer {
        self.ask(MKDIR, parent, &[&mode.to_le_bytes()[..], &[0; 4], &string(name)].concat(), 128)
    }

    pub(crate) fn mknod(&mut self, parent: u64, name: &str, mode: u32) -> Answer {
        self.ask(MKNOD, parent, &[&mode.to_le_bytes()[..], &[0; 12], &string(name)].concat(), 128)
    }

    pub(crate) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let reply = self.ask(OPEN, node, &[&flags.to_le_bytes()[..], &[0; 4]].concat(), 16)?;
        Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
    }

    pub(crate) fn write(&mut self, node: u64, handle: u64, data: &[u8]) -> Answer {
        let mut arguments = Vec::new();
        arguments.extend(handle.to_le_bytes());
        arguments.extend(0_u64.to_le_bytes());
        arguments.extend((data.len() as u32).to_le_bytes());
        arguments.extend([0; 20]);
        arguments.extend(data);
        self.ask(WRITE, node, &arguments, 8)
    }

    pub(crate) fn read(&mut self, node: u64, handle: u64, size: u32) -> Answer {
        let mut arguments = Vec::new();
        arguments.extend(handle.to_le_bytes());
        arguments.extend(0_u64.to_le_bytes());
        arguments.extend(size.to_le_bytes());
        arguments.extend([0; 20]);
        self.ask(READ, node, &arguments, size)
    }
}

/// The entries of a listing with attributes: name, node, and for how long the name may be believed.
pub(crate) fn entries(listing: &[u8]) -> Vec<(String, u64, u64)> {
    let (mut entries, mut rest) = (Vec::new(), listing);
    while !rest.is_empty() {
        let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().unwrap());
        let length = u32::from_le_bytes(rest[128 + 16..128 + 20].try_into().unwrap()) as usize;
        let name = String::from_utf8(rest[128 + 24..128 + 24 + length].to_vec()).unwrap();
        entries.push((name, number(0), number(16)));
        rest = &rest[(128 + 24 + length).next_multiple_of(8)..];
    }
    entries
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}
