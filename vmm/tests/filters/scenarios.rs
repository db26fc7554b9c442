//! What VMMs do, from their guest's first instruction on: between them, these need every rule of the filters.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use monohull_fs_protocol as fs_protocol;
use monohull_vmm::api::{Action, Done, ExitReason, FdRole};

use super::driver::{BALLOON, BUFFERS, HOST_DIRECTORIES, NETWORK, Ring, SOCKETS, WRITE, reg};
use super::guests;
use super::program::Program;
use super::requests::disk::{self, DATA, DISCARD, FLUSH, IN, OUT, WRITE_ZEROES};
use super::requests::memory::{BLOCK, PLUG, REGION, UNPLUG};
use super::requests::network::{self, tap};
use super::requests::sockets::{self, FIRST_HOST_PORT, HEADER_LEN, PACKET, Packet, REQUEST};
use super::subject::{Killed, Subject};
use super::vm::{Setup, file};

/// Does something with the VMM that is this program.
pub(crate) type Scenario = fn(&Path) -> Result<(), Killed>;

/// The scenarios by their names: those that cost little and need much come first.
pub(crate) const SCENARIOS: [(&str, Scenario); 13] = [
    ("boot, print and reset", print_and_reset),
    ("pause, resume and stop", pause_and_stop),
    ("host directories", host_directories),
    ("sockets", sockets),
    ("image disk", disk),
    ("network", network),
    ("snapshot", snapshot),
    ("entropy and given memory", entropy_and_balloon),
    ("added memory", add_memory),
    ("an instruction that can't be emulated", fail),
    ("an owner that does not read", owner_that_does_not_read),
    ("snapshot of many CPUs", large_snapshot),
    ("limited devices", limited),
];

/// Where the image disk's first and second extent are, and how many sectors each has.
const FIRST: u64 = 2048;
const SECOND: u64 = 4096;
const SECTORS: u64 = 64;
/// Where a guest gets packets of its sockets.
const RECEIVED: u32 = BUFFERS + 0x8000;
/// What it sends in one, and how often: more than a socket of the host holds, and less than that and the VMM together.
const CHUNK: u32 = 32 << 10;
const CHUNKS: u32 = 9;
/// How an owner gives its guest a word: by a balloon of 256 pages.
const WORD: Action = Action::SetBalloon { mib: 1 };

impl Program {
    fn wait_word(&mut self) {
        self.wait32(BALLOON.at(reg::CONFIG), 256);
    }

    /// Waits for a packet of a stream with this operation.
    fn wait_packet(&mut self, operation: u32) {
        self.wait32(RECEIVED + 28, operation << 16 | 1);
    }
}

fn print_and_reset(binary: &Path) -> Result<(), Killed> {
    let mut subject = Subject::start(binary, Setup::new(&guests::print_and_reset(b"hello")))?;
    subject.told(b"hello")?;
    assert_eq!(subject.end()?, ExitReason::GuestShutdown);
    Ok(())
}

fn pause_and_stop(binary: &Path) -> Result<(), Killed> {
    let mut setup = Setup::new(&guests::SPIN);
    setup.config.vcpus = 2;
    let mut subject = Subject::start_without_console(binary, setup)?;
    for _ in 0..5 {
        subject.have(Action::Pause, &[])?;
        subject.have(Action::Resume, &[])?;
    }
    subject.stop()
}

fn snapshot(binary: &Path) -> Result<(), Killed> {
    snapshot_of(binary, 2)
}

/// So many CPUs that a buffer for their state grows after it has become large.
fn large_snapshot(binary: &Path) -> Result<(), Killed> {
    snapshot_of(binary, 72)
}

fn snapshot_of(binary: &Path, cpus: u8) -> Result<(), Killed> {
    let mut setup = Setup::new(&guests::count());
    setup.config.vcpus = cpus;
    let mut subject = Subject::start(binary, setup)?;
    subject.told(&[1, 2, 3])?;
    subject.have(Action::Pause, &[])?;
    let [state, memory] = [file(b""), file(b"")];
    let saved = subject.have(Action::Snapshot, &[state.as_fd(), memory.as_fd()])?;
    assert!(matches!(saved, Done::Saved(_)), "{saved:?}");
    let mut copy = Setup::without_kernel().with(FdRole::State, state).with(FdRole::Memory, memory);
    copy.config.vcpus = cpus;
    Subject::start(binary, copy)?.stop()
}

/// An address beyond the guest's memory.
const NOTHING: u32 = 0x3000_0000;

fn fail(binary: &Path) -> Result<(), Killed> {
    let mut program = Program::new();
    program.jump_to(NOTHING);
    let reason = Subject::start(binary, Setup::new(&program.code()))?.end()?;
    assert!(matches!(reason, ExitReason::Failure(_)), "{reason}");
    Ok(())
}

fn entropy_and_balloon(binary: &Path) -> Result<(), Killed> {
    let rings = [0, 1, 2].map(|index| Ring::new(BALLOON, index, 128));
    let mut program = Program::new();
    program.draw_entropy();
    // VIRTIO_BALLOON_F_PAGE_REPORTING.
    program.bring_up(BALLOON, 1 << 5, &rings);
    program.chain(&rings[2], &[(0x80_0000, 0x1000, WRITE)]);
    program.round_trip(&rings[2]);
    program.print(b'k');
    let mut subject = Subject::start(binary, Setup::new(&program.code()))?;
    subject.told(b"k")?;
    subject.stop()
}

fn add_memory(binary: &Path) -> Result<(), Killed> {
    let mut program = Program::new();
    program.wait_requested(BLOCK);
    program.bring_up_memory_device();
    program.ask_memory(PLUG, REGION, 1);
    program.ask_memory(UNPLUG, REGION, 1);
    program.print(b'k');
    let (setup, _) = full(program);
    let mut subject = Subject::start(binary, setup)?;
    assert_eq!(subject.have(Action::SetMemory { mib: 2 }, &[])?, Done::Memory { plugged_mib: 0 });
    subject.told(b"\0\0\0\0k")?;
    subject.stop()
}

/// A VM with every device, and the address of its sockets.
fn full(program: Program) -> (Setup, SocketAddr) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("monohull-filters-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let mut setup = Setup::new(&program.code());
    setup.config.hotplug_mib = 256;
    setup.config.nics = 1;
    (setup.with(FdRole::Vsock, UnixListener::bind_addr(&address).unwrap()), address)
}

/// A file in memory: it can't be told to be zeroes, and nothing waits for a disk.
fn extent() -> File {
    let mut file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all(&[1; (SECTORS * 512) as usize]).unwrap();
    file
}

/// Some block device, of which nothing is read.
fn block_device() -> File {
    let names = std::fs::read_dir("/sys/class/block").unwrap();
    let mut paths = names.map(|name| Path::new("/dev").join(name.unwrap().file_name()));
    paths.find_map(|path| File::open(path).ok()).expect("this test needs a block device, which may be empty")
}

fn disk(binary: &Path) -> Result<(), Killed> {
    let mut program = Program::new();
    program.wait_capacity(SECOND + SECTORS);
    program.request(IN, FIRST, &[(DATA.into(), 512, WRITE)]);
    program.request(OUT, FIRST, &[(DATA.into(), 512, 0)]);
    program.request(FLUSH, 0, &[]);
    for kind in [DISCARD, WRITE_ZEROES] {
        disk::range(&mut program, FIRST, 8, 0);
        program.request(kind, 0, &[(DATA.into(), 16, 0)]);
    }
    program.request(OUT, SECOND, &[(DATA.into(), 512, 0)]);
    program.print(b'k');
    let mut subject = Subject::start(binary, Setup::new(&program.code()))?;
    for _ in 0..2 {
        subject.have(Action::AddExtent { read_only: false }, &[extent().as_fd()])?;
    }
    subject.told(b"\0\0\0\0\0\0k")?;
    // It has been written to since it was flushed, as the other has, which the end of the VM flushes.
    subject.have(Action::RemoveExtent { start: FIRST }, &[])?;
    // Whether it is empty or not.
    let _ = subject.ask(Action::AddExtent { read_only: true }, &[block_device().as_fd()])?;
    subject.stop()
}

fn network(binary: &Path) -> Result<(), Killed> {
    let bring_up = |program: &mut Program| {
        program.bring_up(NETWORK, network::FEATURES, &network::rings());
        program.send_frame(100);
    };
    // Which frames a driver wants, while there is a tap, and what its reset makes of it.
    let choose = |program: &mut Program| {
        let [rx, tx] = network::rings();
        let control = Ring::new(NETWORK, 2, 64);
        program.bring_up(NETWORK, network::FEATURES | network::CONTROL_FEATURES, &[rx, tx, control]);
        for switch in [0, 1, 0] {
            program.command(&control, &[0, 0, switch]);
        }
    };
    let mut program = Program::new();
    bring_up(&mut program);
    program.print(b'!');
    program.wait_word();
    choose(&mut program);
    bring_up(&mut program);
    program.print(b'k');
    let (setup, _) = full(program);
    let mut subject = Subject::start(binary, setup)?;
    subject.told(b"!")?;
    subject.have(Action::AttachNic { nic: 0 }, &[tap().as_fd()])?;
    subject.have(WORD, &[])?;
    subject.told(b"k")?;
    subject.stop()
}

/// A frame for 3 s and a request for 5: those that follow have to wait, however slow the guest is.
fn limited(binary: &Path) -> Result<(), Killed> {
    let mut program = Program::new();
    program.wait_capacity(FIRST + SECTORS);
    program.bring_up(NETWORK, network::FEATURES, &network::rings());
    program.request(IN, FIRST, &[(DATA.into(), 512, WRITE)]);
    program.send_frame(100);
    program.send_frame(100);
    program.request(IN, FIRST, &[(DATA.into(), 512, WRITE)]);
    program.print(b'k');
    let (mut setup, _) = full(program);
    setup.config.rates.disk.bytes = 102;
    setup.config.rates.nics.bytes = 33;
    let mut subject = Subject::start(binary, setup)?;
    subject.have(Action::AttachNic { nic: 0 }, &[tap().as_fd()])?;
    subject.have(Action::AddExtent { read_only: true }, &[extent().as_fd()])?;
    subject.told(b"\0\0k")?;
    subject.stop()
}

fn host_directories(binary: &Path) -> Result<(), Killed> {
    let rings = [0, 1].map(|index| Ring::new(HOST_DIRECTORIES, index, 64));
    let mut program = Program::new();
    program.bring_up(HOST_DIRECTORIES, 0, &rings);
    program.chain(&rings[1], &[(BUFFERS.into(), 40, 0), ((BUFFERS + 0x100).into(), 64, WRITE)]);
    for _ in 0..2 {
        program.round_trip(&rings[1]);
        program.print(b'k');
    }
    let (setup, _) = full(program);
    let mut subject = Subject::start(binary, setup)?;
    let (server, theirs) = fs_protocol::channel().unwrap();
    let memory = fs_protocol::memory().unwrap();
    subject.have(Action::AttachFs, &[theirs.as_fd(), memory.as_fd()])?;
    drop(theirs);
    subject.wait(server.as_fd())?;
    let Ok(Some(request)) = fs_protocol::receive::<fs_protocol::Request>(server.as_fd()) else {
        return Err(subject.killed());
    };
    fs_protocol::send(server.as_fd(), &fs_protocol::Reply { slot: request.slot, length: 16 }).unwrap();
    subject.told(b"k")?;
    // The second one gets no answer but that the server has gone.
    subject.wait(server.as_fd())?;
    drop(server);
    subject.told(b"k")?;
    subject.stop()
}

fn sockets(binary: &Path) -> Result<(), Killed> {
    let mut program = Program::new();
    program.bring_up(SOCKETS, 0, &sockets::rings());
    program.offer_receive_buffers(4096);
    // A client, and what it and the guest say.
    program.wait_packet(1);
    let answer = Packet { host_port: FIRST_HOST_PORT, op: 2, ..REQUEST };
    program.write_packet(answer);
    program.send_packet(0);
    program.write_packet(Packet { op: 5, length: 5, ..answer });
    program.store_bytes(PACKET + HEADER_LEN, b"hello");
    program.send_packet(5);
    program.wait_packet(5);
    // The guest has nothing more to say.
    program.write_packet(Packet { op: 4, flags: 2, ..answer });
    program.send_packet(0);
    // A connection of the guest's, and more than the host's socket takes at once.
    program.write_packet(Packet { guest_port: 2, ..REQUEST });
    program.send_packet(0);
    program.write_packet(Packet { guest_port: 2, op: 5, length: CHUNK, ..REQUEST });
    program.repeat(CHUNKS, |program| program.send_packet(CHUNK));
    program.print(b'f');
    program.wait_word();
    program.reset(SOCKETS);
    program.print(b'k');
    let (setup, address) = full(program);
    let mut subject = Subject::start(binary, setup)?;
    let mut client = UnixStream::connect_addr(&address).unwrap();
    client.write_all(b"CONNECT 1\n").unwrap();
    subject.read(&mut client, b"OK 1073741824\nhello".len())?;
    let _ = client.write(b"and you?");
    let mut connection = UnixStream::from(subject.connection()?);
    subject.told(b"f")?;
    subject.read(&mut connection, (CHUNK * CHUNKS) as usize)?;
    subject.have(WORD, &[])?;
    subject.told(b"k")?;
    subject.stop()
}

/// More answers than its socket and its VMM hold, and the last message after them.
fn owner_that_does_not_read(binary: &Path) -> Result<(), Killed> {
    let mut program = Program::new();
    program.bring_up(SOCKETS, 0, &sockets::rings());
    program.offer_receive_buffers(4096);
    program.wait_packet(1);
    program.reset_machine();
    let (setup, address) = full(program);
    let mut subject = Subject::start_without_console(binary, setup)?;
    subject.flood();
    let mut client = UnixStream::connect_addr(&address).unwrap();
    let _ = client.write(b"CONNECT 1\n");
    // Its end is that of the guest, whose VMM has still to tell of it.
    subject.wait(client.as_fd())?;
    subject.lives()?;
    assert_eq!(subject.end()?, ExitReason::GuestShutdown);
    Ok(())
}
