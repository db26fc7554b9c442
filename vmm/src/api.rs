//! The messages between a pod's owner (shim, `monohull run`) and its VMM.
//!
//! Transport: a `SOCK_SEQPACKET` UNIX socket that the VMM inherits as fd 3 ([`CONTROL_FD`]). Each message is one
//! packet of JSON, at most [`MAX_MESSAGE`] bytes; file descriptors travel with it by `SCM_RIGHTS`, at most
//! [`MAX_FDS`]. The first packet is a [`VmConfig`] with all the VM's descriptors; requests follow. The VMM opens no
//! path after reading it. It ends when the socket closes: a VM never outlives its owner.

use serde::{Deserialize, Serialize};

/// The descriptor on which a VMM finds its owner's socket.
pub const CONTROL_FD: i32 = 3;
/// Largest message in bytes, in both directions.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most descriptors in one message.
pub const MAX_FDS: usize = 16;
/// Context identifier of every guest; VMs do not share an address space of their vsocks.
pub const GUEST_CID: u64 = 3;
/// The most memory in MiB, and the most that can be added: all addresses stay below 2^43, which any host can map.
pub const MAX_MEMORY_MIB: u32 = 2 << 20;
/// The guest can reach added memory in steps of this; it gets and gives back less at a time.
pub const MEMORY_STEP_MIB: u32 = 128;
/// What [`user_of`] adds to a process id. From here to 2^31 no user database and no user namespace has numbers, by
/// convention (systemd's "Users, Groups, UIDs and GIDs").
const FIRST_USER: u32 = 0x7000_0000;

/// The [`VmConfig::user`] of a VMM whose owner is process `owner`: another for each owner that lives.
pub fn user_of(owner: u32) -> u32 {
    // Process ids have 22 bits at most (PID_MAX_LIMIT).
    FIRST_USER | (owner & 0x3f_ffff)
}

/// Bytes per sector of the image disk (virtio 1.2 §5.2.2).
pub const SECTOR: u64 = 512;

/// What the VM is made of: the first message.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Name of the pod. Its beginning is what ps(1) and top(1) show of the VMM: `vmm:NAME`, 15 bytes in all.
    pub name: String,
    /// User and group number that the VMM runs as, not 0 ([`user_of`]).
    pub user: u32,
    /// Guest memory in MiB, at least 32.
    pub memory_mib: u32,
    /// The most memory in MiB that [`Action::SetMemory`] can add later, rounded down to [`MEMORY_STEP_MIB`]; 0 for no
    /// memory device. What has not been added costs nothing.
    pub hotplug_mib: u32,
    /// CPUs announced to the guest, at least 1. The guest starts with one (`maxcpus=1`); the agent puts more online.
    pub vcpus: u8,
    /// Appended to the kernel command line the VMM makes.
    pub cmdline: String,
    /// Number of network interfaces. All start with their link down; [`Action::AttachNic`] brings them up.
    pub nics: u8,
    /// Back guest memory with transparent huge pages: a faster cold boot for more resident memory.
    pub huge_pages: bool,
    /// How fast its devices are at most.
    pub rates: Rates,
    /// For a VM that starts from a snapshot: what its guest will soon use.
    pub working_set: WorkingSet,
    /// Its CPUs do not run until [`Action::Resume`]. A VM whose snapshot had extents has to begin so: it is given their files
    /// first ([`Action::RestoreExtent`]).
    pub paused: bool,
    /// What each descriptor of this message is, in their order.
    pub fds: Vec<FdRole>,
}

/// What the guest of a snapshot will soon use, as runs of pages of 4 KiB of the memory file: (first page, number of pages).
///
/// The VM gets these before its CPUs run, together, instead of one by one whenever its guest comes to a page. It makes the guest
/// faster, no more: empty is right, too.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// What it writes to, of which it gets a copy.
    pub written: Vec<(u32, u32)>,
    /// All that it uses, which KVM maps where it can (Linux 6.11).
    pub used: Vec<(u32, u32)>,
}

/// How fast the devices of a VM are at most.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// The image disk.
    pub disk: Rate,
    /// Each network interface, in each direction.
    pub nics: Rate,
}

/// How fast a device serves its guest at most. A second's worth may pass at once. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bytes per second.
    pub bytes: u64,
    /// Requests of the disk, or frames, per second.
    pub operations: u64,
}

/// The part that a descriptor of a [`VmConfig`] plays.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FdRole {
    /// `/dev/kvm`.
    Kvm,
    /// The guest kernel: an ELF `vmlinux`. Opened for this VM: its file offset is moved.
    Kernel,
    /// The initramfs, an uncompressed cpio archive. Opened for this VM: its file offset is moved.
    Initramfs,
    /// A listening UNIX stream socket: the host side of the guest's vsock. A client sends `CONNECT <port>\n` and, once
    /// the guest accepted, reads `OK <host port>\n`; after that the connection is the stream.
    Vsock,
    /// Where the guest's debug console is written. Without it there is no console device.
    Console,
    /// The state file of a snapshot ([`Action::Snapshot`]). With it and [`Self::Memory`], and without a kernel and an
    /// initramfs, the VM starts where that snapshot was taken. Its configuration must be that of the VM that was saved,
    /// but for the name and the huge pages; there is nothing to append to the command line.
    State,
    /// The memory file of the same snapshot. Any number of VMs may share it; it must not change while one of them runs.
    Memory,
}

/// What the owner asks of a running VM. The VMM answers each with a [`Reply`] that carries the same `id`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Request {
    /// Chosen by the owner.
    pub id: u64,
    /// What to do.
    pub action: Action,
}

/// The requests.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Appends the file or block device of this message's one descriptor to the image disk.
    /// Its size must be a multiple of [`SECTOR`] and not 0.
    AddExtent {
        /// The device refuses writes to a read-only extent, whatever the descriptor allows.
        read_only: bool,
    },
    /// Gives a VM that was started from a snapshot, and has not run since, the file or block device of an extent that it had
    /// there: this message's one descriptor. It must have as many sectors as the extent had.
    RestoreExtent {
        /// Its first sector, as it was when the VM was saved.
        start: u64,
        /// As when it was added. The device refuses writes to a read-only extent, whatever the descriptor allows.
        read_only: bool,
    },
    /// Takes an extent off the image disk: from now on the guest's requests for its sectors fail, and no later extent gets
    /// them. The answer comes when what the guest had written is durable and the VMM's descriptor is closed.
    RemoveExtent {
        /// Its first sector ([`Done::ExtentAdded`]).
        start: u64,
    },
    /// Gives network interface `nic` the tap device of this message's one descriptor (opened with `IFF_TAP`,
    /// `IFF_NO_PI` and `IFF_VNET_HDR`) and brings its link up. It takes the place of the one the interface has, if any.
    AttachNic {
        /// Index of the interface, from 0.
        nic: u8,
    },
    /// Sets the size of the balloon: memory taken from the guest, in MiB.
    SetBalloon {
        /// Target size.
        mib: u32,
    },
    /// Connects the device for host directories to its server, once: this message's two descriptors are the VMM's end of
    /// the relay's socket, and the relay's memory file (`monohull-fs-protocol`). When the server is lost, the guest's
    /// requests fail with EIO.
    AttachFs,
    /// Sets how much memory the guest should have beyond [`VmConfig::memory_mib`]. It takes or gives back blocks until
    /// that is so, which [`Event::MemoryReached`] tells; a guest may never give back what it uses.
    SetMemory {
        /// MiB, rounded up to a multiple of 2.
        mib: u32,
    },
    /// Asks for one [`Event::FreeReported`] when the guest has reported so much free memory since its start
    /// (VIRTIO_BALLOON_F_PAGE_REPORTING), counting again what it reports again.
    AwaitReports {
        /// MiB.
        mib: u32,
    },
    /// Stops all CPUs between two instructions. The guest's clocks go on. A paused VM serves requests, and its devices serve
    /// the host.
    Pause,
    /// Lets the CPUs of a paused VM run on. Refused for a copy that lacks the file of an extent.
    Resume,
    /// Saves the paused VM, which stays paused, into this message's two descriptors: its state and its memory, empty regular
    /// files open for writing. Of an extent it holds where it is; what is in its file is for the owner to keep, before the VM
    /// goes on. Refused for a VM that has a server for host directories, or added memory. When it fails, the files are of no
    /// use.
    Snapshot,
    /// Ends the VM without the guest's help: CPUs stop, queued disk writes are flushed. [`Event::Exited`] follows.
    Stop,
}

/// What the VMM sends.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// The answer to a request.
    Reply(Reply),
    /// Something that happened.
    Event(Event),
}

/// The answer to the request with the same `id`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Reply {
    /// The request's.
    pub id: u64,
    /// What came of it; an error is one line that names what was being done.
    pub result: Result<Done, String>,
}

/// The results of requests that succeeded.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Done {
    /// Where on the image disk the new extent is.
    ExtentAdded {
        /// First sector.
        start: u64,
        /// Length in sectors.
        sectors: u64,
    },
    /// What the guest has of added memory. If it is what was asked for, no event follows.
    Memory {
        /// MiB.
        plugged_mib: u32,
    },
    /// How much a snapshot takes.
    Saved(Saved),
    /// Nothing to tell.
    Ok,
}

/// How much a snapshot takes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Saved {
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// Bytes of the memory file that are not holes.
    pub memory_bytes: u64,
}

/// Events, in the order they happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The guest's CPUs run, or will when they are told to ([`VmConfig::paused`]). Always the first message.
    Started {
        /// Steps of the start with their `CLOCK_MONOTONIC` time in microseconds.
        marks: Vec<(String, u64)>,
    },
    /// The guest opened a connection to host port `port`; this message's one descriptor, a UNIX stream socket, is the
    /// host's end of it.
    GuestConnected {
        /// The host port.
        port: u32,
    },
    /// The guest has as much added memory as the last [`Action::SetMemory`] said. At most once for each of them.
    MemoryReached {
        /// MiB.
        mib: u32,
    },
    /// The guest has reported as much free memory as the last [`Action::AwaitReports`] said.
    FreeReported,
    /// The end of the log of a guest's kernel that has panicked: lines of printable ASCII, 8 KiB at most, all the guest's words.
    LastWords {
        /// The lines.
        text: String,
    },
    /// The VM has ended. Always the last message.
    Exited {
        /// Why.
        reason: ExitReason,
    },
}

/// Why a VM ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The owner asked for it.
    #[error("stopped on request")]
    Stopped,
    /// The guest reset itself: the agent's orderly shutdown.
    #[error("guest shut down")]
    GuestShutdown,
    /// The guest kernel panicked.
    #[error("guest kernel panic: {0}")]
    GuestPanic(String),
    /// The guest kernel gave up for want of memory.
    #[error("guest out of memory: {0}; give the pod more memory")]
    GuestOutOfMemory(String),
    /// The VMM was killed for want of memory on the host. Its owner says so, it can't itself.
    #[error(
        "the host's OOM killer has killed the VMM: raise the pod's memory limit or its RuntimeClass's overhead, or free \
         memory on the host"
    )]
    HostOutOfMemory,
    /// The VMM was killed by somebody on the host. Its owner says so, it can't itself.
    #[error("VMM failure: killed by SIGKILL")]
    Killed,
    /// The virtual CPU shut down on an unhandled fault.
    #[error("guest triple fault")]
    TripleFault,
    /// The guest is of no use any more, for this reason. Only the owner says so.
    #[error("guest failure: {0}")]
    GuestFailure(String),
    /// The VMM or KVM failed.
    #[error("VMM failure: {0}")]
    Failure(String),
}
