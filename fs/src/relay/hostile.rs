//! The body of the property test and the fuzz target. Needs root: the files it serves are in a mount namespace of its own.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;

use monohull_fs_protocol::SLOTS;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, chroot};

use super::*;

/// What the guest must not change, and must not read.
const PRECIOUS: &[u8] = b"what the guest may read and not change";
const SECRET: &[u8] = b"what is not shared with the guest";
/// Fills the slots around a request and its reply.
const UNTOUCHED: u8 = 0xa5;
/// The number of each request.
const NUMBER: u64 = 0x1122_3344_5566_7788;
/// Parts of names.
const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"file",
    b"rw",
    b"ro",
    b"r1",
    b"..",
    b".",
    b"",
    b"/",
    b"../outside",
    b"/outside/file",
    b"a/b",
    b"user.x",
    b"security.capability",
    b"\xff",
];
/// Operations whose replies begin with a node, and with a handle.
const NODES: [u32; 6] = [1, 6, 8, 9, 13, 35];
const HANDLES: [u32; 2] = [14, 27];

/// Bytes to make decisions of; zeroes when they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let count = N.min(self.0.len());
        taken[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        taken
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// A server without its jail and its socket, and what its guest has been given.
struct Guest {
    server: Server<PassthroughFs>,
    cache: Cache,
    hand: Hand,
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

/// Has a server answer the requests that `bytes` say. Each reply is as long as it says and fits its room, nothing else in the
/// slots is written to, and what is outside of the exports, or in one that is read-only, stays as it is.
pub fn run(bytes: &[u8]) {
    let bytes = bytes.to_vec();
    // A thread of its own: its mount namespace goes with it.
    let thread = std::thread::spawn(move || play(&mut Input(&bytes)));
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn play(input: &mut Input<'_>) {
    let descriptors = files();
    let mut guest = Guest::new(descriptors);
    guest.ask(26, 1, &[7_u32, 31, 0x2_0000, 1 << 27 | 1 << 5].map(u32::to_le_bytes).concat(), 64, input);
    while !input.0.is_empty() {
        let (operation, node) = (operation(input), pick(&guest.nodes, input));
        let arguments = arguments(operation, &guest, input);
        let room = [0, 16, 64, 160, 4096, 160, 160, 160][usize::from(input.u8()) % 8];
        guest.ask(operation, node, &arguments, room, input);
    }
    drop(guest);
    for (file, contents) in [("/outside/file", SECRET), ("/stage/file", PRECIOUS)] {
        assert!(fs::read(file).unwrap() == contents, "{file} has changed");
    }
    assert_eq!(fs::read_dir("/outside").unwrap().count(), 1, "something was made outside");
    assert_eq!(fs::read_dir("/stage").unwrap().count(), 1, "something was made in a read-only export");
    assert_eq!(fs::read_dir("/").unwrap().count(), 3);
}

/// Makes the files, and everything else unreachable. Returns `/proc/self/fd`.
fn files() -> File {
    let flags = libc_flags();
    let descriptors = File::options().read(true).custom_flags(flags).open("/proc/self/fd").unwrap();
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("this needs root");
    umask(Mode::empty());
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let options = Some("size=1m,nr_inodes=200");
    mount(Some("files"), "/tmp", Some("tmpfs"), MsFlags::MS_NODEV, options).unwrap();
    chroot("/tmp").unwrap();
    chdir("/").unwrap();
    for directory in ["/outside", "/stage", "/tree", "/tree/rw", "/tree/r1", "/tree/ro", "/tree/rw/a"] {
        fs::create_dir(directory).unwrap();
    }
    fs::write("/outside/file", SECRET).unwrap();
    fs::write("/stage/file", PRECIOUS).unwrap();
    fs::write("/tree/rw/file", "x").unwrap();
    std::os::unix::fs::symlink("/outside", "/tree/rw/b").unwrap();
    mount(Some("/stage"), "/tree/ro", none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, "/tree/ro", none, read_only, none).unwrap();
    descriptors
}

fn libc_flags() -> i32 {
    (nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW).bits()
}

fn pick(known: &[u64], input: &mut Input<'_>) -> u64 {
    match (input.u8(), known.len()) {
        (255, _) | (_, 0) => input.u64(),
        (index, count) => known[usize::from(index) % count],
    }
}

/// Mostly one that the server has.
fn operation(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => u32::from_le_bytes(input.take()),
        number => u32::from(number) % 54,
    }
}

/// The arguments of an operation: numbers, then names, in good form or not (linux/fuse.h).
fn arguments(operation: u32, guest: &Guest, input: &mut Input<'_>) -> Vec<u8> {
    // How many handles or nodes, 32-bit numbers, and names.
    let (handles, numbers, names) = match operation {
        1 | 10 | 11 | 22 | 24 => (0, 0, 1),
        6 => (0, 0, 2),
        9 => (0, 2, 1),
        8 | 35 => (0, 4, 1),
        12 => (1, 0, 2),
        13 => (1, 0, 1),
        14 | 27 | 34 => (0, 2, 0),
        21 => (0, 2, 2),
        45 => (1, 2, 2),
        18 | 25 | 29 | 30 | 20 => (1, 4, 0),
        15 | 16 | 28 | 44 => (1, 8, 0),
        43 | 46 => (1, 6, 0),
        _ => (input.u8() % 3, input.u8() % 16, input.u8() % 3),
    };
    let mut arguments = Vec::new();
    for _ in 0..handles {
        let from = if input.u8().is_multiple_of(4) { &guest.nodes } else { &guest.handles };
        arguments.extend(pick(from, input).to_le_bytes());
    }
    for _ in 0..numbers {
        let number = if input.u8() < 224 { u32::from(input.u8()) } else { u32::from_le_bytes(input.take()) };
        arguments.extend(number.to_le_bytes());
    }
    for _ in 0..names {
        arguments.extend(NAMES[usize::from(input.u8()) % NAMES.len()]);
        arguments.push(0);
    }
    match input.u8() {
        0 => arguments.truncate(usize::from(input.u8())),
        1 => arguments.extend(input.take::<24>()),
        2 => arguments.resize(arguments.len() + usize::from(input.u8()) * 64, b'x'),
        _ => {}
    }
    arguments
}

impl Guest {
    fn new(descriptors: File) -> Self {
        let (channel, memory) = (protocol::channel().unwrap().0, protocol::memory().unwrap());
        let relay = Relay::new(channel, memory).unwrap();
        let config = Config { root_dir: "/tree".into(), ..config(Jail { descriptors, files: 100 }) };
        Self {
            server: Server::new(PassthroughFs::new(config).unwrap()),
            cache: Cache::default(),
            hand: Hand::new(relay.slots).unwrap(),
            nodes: vec![1],
            handles: Vec::new(),
        }
    }

    /// Sends a request in the last slot but one, and looks at its reply.
    fn ask(&mut self, operation: u32, node: u64, arguments: &[u8], room: u32, input: &mut Input<'_>) {
        let length = 40 + arguments.len() as u32;
        let said = if input.u8() < 250 { length } else { u32::from(input.u8()) };
        let users = [u32::from(input.u8() / 128) * 1000, 0, 1, 0];
        let mut bytes = [said.to_le_bytes(), operation.to_le_bytes()].concat();
        bytes.extend([NUMBER, node].map(u64::to_le_bytes).concat());
        bytes.extend(users.map(u32::to_le_bytes).concat());
        bytes.extend(arguments);
        let request = Request { slot: SLOTS - 2, length, room };
        assert!(request.is_valid());
        let slot = u64::from(request.slot) * u64::from(SLOT_SIZE);
        let reply = slot + u64::from(protocol::reply_offset(length));
        // Before the request, behind it, and behind the reply.
        let around = [slot - 64, slot + u64::from(length), reply + u64::from(room)];
        let pad = (reply - slot - u64::from(length)) as usize;
        let memory = self.hand.memory.clone();
        for (at, count) in around.into_iter().zip([64, pad, 64]) {
            memory.write_slice(&vec![UNTOUCHED; count], GuestAddress(at)).unwrap();
        }
        memory.write_slice(&bytes, GuestAddress(slot)).unwrap();

        let answered = self.hand.answer(&self.server, request).unwrap_or(0);
        self.look(operation, reply, answered, room);
        if input.u8() == 255 {
            // A VMM may change what it has been told.
            let told = input.take::<32>();
            memory.write_slice(&told[..told.len().min(room as usize)], GuestAddress(reply)).unwrap();
        }
        self.cache.pass(&Answered { memory: &memory, request, length: answered });
        for (at, count) in around.into_iter().zip([64, pad, 64]) {
            let mut bytes = vec![0; count];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            assert!(
                bytes.iter().all(|byte| *byte == UNTOUCHED),
                "operation {operation} wrote beside its reply"
            );
        }
    }

    /// Checks a reply, and keeps what it gives.
    fn look(&mut self, operation: u32, reply: u64, length: u32, room: u32) {
        assert!(length <= room, "operation {operation}: {length} bytes in room for {room}");
        if length == 0 {
            return;
        }
        let mut bytes = vec![0; length as usize];
        self.hand.memory.read_slice(&mut bytes, GuestAddress(reply)).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|found| found == SECRET), "operation {operation} leads out");
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (said, error) = (number(0) as u32, (number(0) >> 32) as i32);
        assert_eq!((said, number(8)), (length, NUMBER), "operation {operation}");
        assert!((-4095..=0).contains(&error) && (error == 0 || length == OUT_HEADER), "{operation}: {error}");
        if error == 0 && NODES.contains(&operation) && length >= OUT_HEADER + 128 {
            self.nodes.push(number(16));
        } else if error == 0 && HANDLES.contains(&operation) {
            self.handles.push(number(16));
        }
        if error == 0 && operation == 35 {
            self.handles.push(number(16 + 128));
        }
    }
}
