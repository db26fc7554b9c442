//! Answers the requests that the VMM relays, with `virtiofsd`'s file system.
//!
//! `virtiofsd` reads requests from virtqueues. Each thread has a queue of its own, in memory that is shared with nobody,
//! whose descriptors point into the slots.

#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use monohull_fs_protocol::{self as protocol, MEMORY_SIZE, Reply, Request, SLOT_SIZE};
use nix::sched::{CloneFlags, unshare};
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::server::Server;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::cache::{Cache, Exchange, MOMENT};
use crate::jail::Jail;
use crate::names;

type Memory = GuestMemoryMmap<BitmapMmapRegion>;
type Region = GuestRegionMmap<BitmapMmapRegion>;

/// Threads that serve: so many requests may wait for a disk, and others are still answered.
const THREADS: usize = 4;
/// Where a thread's queue is, after the slots.
const QUEUE: u64 = MEMORY_SIZE;
/// Size of its memory, a page.
const QUEUE_MEMORY: usize = 4096;
/// Its descriptor table, available ring and used ring (virtio 1.2 §2.7), of which the last is never used.
const TABLE: GuestAddress = GuestAddress(QUEUE);
const AVAIL: GuestAddress = GuestAddress(QUEUE + 1024);
const AVAIL_INDEX: GuestAddress = GuestAddress(AVAIL.0 + 2);
const USED: GuestAddress = GuestAddress(QUEUE + 2048);
/// Descriptors: one for the request, one for the reply.
const QUEUE_SIZE: u16 = 2;
/// Lengths of `struct fuse_in_header` and `struct fuse_out_header`, with which a request and a reply begin (linux/fuse.h),
/// and where in the former the operation and the number of the request are.
const IN_HEADER: u32 = 40;
const OUT_HEADER: u32 = 16;
const OPERATION: u64 = 4;
const UNIQUE: u64 = 8;
/// Operations that have no reply: FORGET, BATCH_FORGET.
const WITHOUT_REPLY: [u32; 2] = [2, 42];
/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The relay can't be served.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Descriptors that are not what they should be.
    #[error("cannot use the relay's socket and memory")]
    Setup(#[source] io::Error),
    /// The file system can't be made.
    #[error("cannot open the shared directories")]
    FileSystem(#[source] io::Error),
    /// A thread can't be had.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread has panicked.
    #[error("a thread has panicked")]
    Panic,
    /// The VMM broke the protocol.
    #[error("the VMM broke the relay's protocol")]
    Protocol,
    /// The socket failed.
    #[error("the relay's socket failed")]
    Socket(#[source] io::Error),
}

/// A server before its jail: the socket, and the slots, mapped.
pub struct Relay {
    channel: OwnedFd,
    slots: Arc<Region>,
}

/// What all threads share.
struct Shared {
    channel: OwnedFd,
    slots: Arc<Region>,
    server: Server<PassthroughFs>,
    cache: Cache,
}

/// One thread's way to hand a slot to `virtiofsd`.
struct Hand {
    memory: Memory,
    queue: Queue,
    turn: u16,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("channel", &self.channel).finish_non_exhaustive()
    }
}

impl Relay {
    /// Takes the server's end of the socket and the memory file.
    pub fn new(channel: OwnedFd, memory: OwnedFd) -> Result<Self, RelayError> {
        let memory = File::from(memory);
        protocol::check_memory(&memory).map_err(RelayError::Setup)?;
        let size = usize::try_from(MEMORY_SIZE).map_err(|e| RelayError::Setup(io::Error::other(e)))?;
        let slots = MmapRegion::from_file(FileOffset::new(memory, 0), size)
            .map_err(|error| RelayError::Setup(io::Error::other(error)))?;
        let slots = region(slots, GuestAddress(0)).map_err(RelayError::Setup)?;
        Ok(Self { channel, slots })
    }

    /// Serves the directory `/` until the VMM closes the socket. A thread that can't go on says so to `end`, which ends the
    /// process: those that wait for requests can't be told, for shutdown(2) is none of the jail's system calls.
    pub fn serve(self, jail: Jail, end: fn(&RelayError) -> !) -> Result<(), RelayError> {
        let files = PassthroughFs::new(config(jail)).map_err(RelayError::FileSystem)?;
        let shared = Arc::new(Shared {
            channel: self.channel,
            slots: self.slots,
            server: Server::new(files),
            cache: Cache::default(),
        });
        let mut threads = Vec::new();
        for number in 1..THREADS {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("serve {number}"));
            threads.push(thread.spawn(move || shared.serve(end)).map_err(RelayError::Thread)?);
        }
        shared.serve(end);
        for thread in threads {
            thread.join().map_err(|_| RelayError::Panic)?;
        }
        Ok(())
    }
}

/// How the guest sees the files: as the host does at that moment. It may cache what it reads, but asks at every use
/// whether that is still true, if not [`Cache`] says otherwise.
fn config(jail: Jail) -> Config {
    Config {
        entry_timeout: Duration::ZERO,
        attr_timeout: Duration::from_nanos(MOMENT.into()),
        cache_policy: CachePolicy::Auto,
        root_dir: "/".into(),
        xattr: true,
        proc_sfd_rawfd: Some(jail.descriptors),
        announce_submounts: true,
        // For roots. Of what else is listed so, the guest forgets the attributes at once.
        readdirplus: true,
        killpriv_v2: true,
        guest_fd_limit: jail.files,
        ..Config::default()
    }
}

fn region(mapping: MmapRegion<BitmapMmapRegion>, at: GuestAddress) -> io::Result<Arc<Region>> {
    Region::new(mapping, at).map(Arc::new).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

impl Shared {
    /// Serves until the socket ends.
    fn serve(&self, end: fn(&RelayError) -> !) {
        if let Err(error) = self.serve_requests() {
            end(&error);
        }
    }

    fn serve_requests(&self) -> Result<(), RelayError> {
        // Extended attributes are reached through the working directory, which must be the thread's own.
        unshare(CloneFlags::CLONE_FS).map_err(|error| RelayError::Thread(error.into()))?;
        let mut hand = Hand::new(self.slots.clone()).map_err(RelayError::Thread)?;
        while let Some(request) =
            protocol::receive::<Request>(self.channel.as_fd()).map_err(RelayError::Socket)?
        {
            if !request.is_valid() {
                return Err(RelayError::Protocol);
            }
            let length = hand.answer(&self.server, request).unwrap_or(0);
            self.cache.pass(&Answered { memory: &hand.memory, request, length });
            match protocol::send(self.channel.as_fd(), &Reply { slot: request.slot, length }) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(RelayError::Socket(error)),
            }
        }
        Ok(())
    }
}

/// A request that has been answered.
struct Answered<'a> {
    memory: &'a Memory,
    request: Request,
    length: u32,
}

impl Answered<'_> {
    fn at(&self, offset: u32) -> GuestAddress {
        GuestAddress(u64::from(self.request.slot) * u64::from(SLOT_SIZE) + u64::from(offset))
    }
}

impl Exchange for Answered<'_> {
    fn request<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        within(self.request.length, offset, N)?;
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, self.at(offset)).ok()?;
        Some(bytes)
    }

    fn reply<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        within(self.length, offset, N)?;
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, self.at(protocol::reply_offset(self.request.length) + offset))
            .ok()?;
        Some(bytes)
    }

    fn change(&self, offset: u32, bytes: &[u8]) {
        if within(self.length, offset, bytes.len()).is_some() {
            let at = self.at(protocol::reply_offset(self.request.length) + offset);
            // The slot is mapped: this does not fail.
            let _ = self.memory.write_slice(bytes, at);
        }
    }
}

/// Whether `count` bytes at `offset` end within `length`.
fn within(length: u32, offset: u32, count: usize) -> Option<()> {
    let end = offset.checked_add(u32::try_from(count).ok()?)?;
    (end <= length).then_some(())
}

impl Hand {
    fn new(slots: Arc<Region>) -> io::Result<Self> {
        let own = MmapRegion::new(QUEUE_MEMORY).map_err(io::Error::other)?;
        let memory = Memory::from_arc_regions(vec![slots, region(own, TABLE)?]).map_err(io::Error::other)?;
        let mut queue = Queue::new(QUEUE_SIZE).map_err(io::Error::other)?;
        queue.try_set_desc_table_address(TABLE).map_err(io::Error::other)?;
        queue.try_set_avail_ring_address(AVAIL).map_err(io::Error::other)?;
        queue.try_set_used_ring_address(USED).map_err(io::Error::other)?;
        queue.set_ready(true);
        Ok(Self { memory, queue, turn: 0 })
    }

    /// Has a request answered. Returns the length of the reply; nothing if the request makes no sense.
    fn answer(&mut self, server: &Server<PassthroughFs>, request: Request) -> Option<u32> {
        let slot = u64::from(request.slot) * u64::from(SLOT_SIZE);
        let reply = slot + u64::from(protocol::reply_offset(request.length));
        let operation: u32 = self.memory.read_obj(GuestAddress(slot + OPERATION)).ok()?;
        // `virtiofsd` panics where there is no room for the header of a reply that it wants to send.
        if request.room < OUT_HEADER && !WITHOUT_REPLY.contains(&operation) {
            return None;
        }
        if self.names_are_bad(operation, slot, request.length)? {
            return self.refuse(slot, reply);
        }
        self.describe(0, slot, request.length, if request.room > 0 { NEXT } else { 0 })?;
        self.describe(1, reply, request.room, WRITE)?;
        self.turn = self.turn.wrapping_add(1);
        self.memory.write_obj(self.turn, AVAIL_INDEX).ok()?;
        let chain = self.queue.iter(&self.memory).ok()?.next()?;
        let reader = Reader::new(&self.memory, chain.clone()).ok()?;
        let writer = Writer::new(&self.memory, chain).ok()?;
        let length = server.handle_message(reader, writer, None::<&mut ()>).ok()?;
        u32::try_from(length).ok()
    }

    /// Whether a request names files by what is no name. What the VMM changes after this look is bounded by the jail.
    fn names_are_bad(&self, operation: u32, slot: u64, length: u32) -> Option<bool> {
        if !names::has_any(operation) {
            return Some(false);
        }
        let mut bytes = [0; names::MOST];
        let count = usize::try_from(length.saturating_sub(IN_HEADER)).ok()?.min(bytes.len());
        let arguments = bytes.get_mut(..count)?;
        self.memory.read_slice(arguments, GuestAddress(slot + u64::from(IN_HEADER))).ok()?;
        Some(names::are_bad(operation, arguments))
    }

    /// Answers "invalid argument". Returns the length of the reply.
    fn refuse(&self, slot: u64, reply: u64) -> Option<u32> {
        let unique: [u8; 8] = self.memory.read_obj(GuestAddress(slot + UNIQUE)).ok()?;
        self.memory.write_obj(OUT_HEADER, GuestAddress(reply)).ok()?;
        self.memory.write_obj(-(nix::errno::Errno::EINVAL as i32), GuestAddress(reply + 4)).ok()?;
        self.memory.write_obj(unique, GuestAddress(reply + 8)).ok()?;
        Some(OUT_HEADER)
    }

    /// Writes a descriptor. The entries of the available ring are never written: they are all zero, as is the index of
    /// the first descriptor.
    fn describe(&self, index: u64, address: u64, length: u32, flags: u16) -> Option<()> {
        let at = |offset: u64| GuestAddress(QUEUE + 16 * index + offset);
        self.memory.write_obj(address, at(0)).ok()?;
        self.memory.write_obj(length, at(8)).ok()?;
        self.memory.write_obj(flags, at(12)).ok()?;
        self.memory.write_obj(1_u16, at(14)).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_a_guest_asks_for_harms_the_server(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::hostile::run(&bytes);
        }
    }
}
