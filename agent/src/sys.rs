//! System calls that neither std nor rustix wraps, and the two constructors of theirs that are unsafe.
//!
//! The only unsafe code of the agent: most functions are one ioctl or system call on descriptors they borrow, with
//! arguments that live on their stack.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `_IO('R', 0x07)` and `_IOW('R', 0x03, int[2])` of linux/random.h.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `_IO(0x12, 105)` of linux/blkpg.h and `_IO(0x12, 93)` of linux/fs.h.
const BLKPG: libc::Ioctl = 0x1269;
const BLKROSET: libc::Ioctl = 0x125d;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
const BLKPG_DEL_PARTITION: libc::c_int = 2;
/// Most bytes that one RNDADDENTROPY takes here; more would not make the pool any better.
const ENTROPY_MAX: usize = 512;

/// `struct rand_pool_info` with room for its bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; ENTROPY_MAX],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    op: libc::c_int,
    flags: libc::c_int,
    size: libc::c_int,
    data: *mut libc::c_void,
}

/// `struct blkpg_partition`; offsets in bytes.
#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Adds `bytes` (the first 512 of them) to the kernel's random pool, credits them in full and reseeds the generator
/// from it. `random` is an open `/dev/random`.
pub(crate) fn add_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let mut info = RandPoolInfo { entropy_bits: 0, size: 0, bytes: [0; ENTROPY_MAX] };
    let mut size: libc::c_int = 0;
    for (to, from) in info.bytes.iter_mut().zip(bytes) {
        *to = *from;
        size += 1;
    }
    info.size = size;
    info.entropy_bits = size * 8;
    let fd = random.as_fd().as_raw_fd();
    // SAFETY: RNDADDENTROPY reads a rand_pool_info followed by `size` bytes, all within `info`; it keeps no pointer.
    check(unsafe { libc::ioctl(fd, RNDADDENTROPY, &raw const info) })?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    check(unsafe { libc::ioctl(fd, RNDRESEEDCRNG) })?;
    Ok(())
}

fn blkpg(disk: impl AsFd, op: libc::c_int, mut partition: BlkpgPartition) -> io::Result<()> {
    let size = libc::c_int::try_from(size_of::<BlkpgPartition>()).map_err(io::Error::other)?;
    let argument = BlkpgArgument { op, flags: 0, size, data: (&raw mut partition).cast() };
    // SAFETY: BLKPG reads a blkpg_ioctl_arg whose data points to a blkpg_partition; both outlive the call.
    check(unsafe { libc::ioctl(disk.as_fd().as_raw_fd(), BLKPG, &raw const argument) })?;
    Ok(())
}

/// Makes partition `number` (from 1) of `disk` from `length` bytes at byte `start`.
pub(crate) fn add_partition(disk: impl AsFd, number: u8, start: u64, length: u64) -> io::Result<()> {
    let start = start.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let length = length.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
    let (device_name, volume_name) = ([0; 64], [0; 64]);
    let partition = BlkpgPartition { start, length, number: number.into(), device_name, volume_name };
    blkpg(disk, BLKPG_ADD_PARTITION, partition)
}

/// Removes partition `number` of `disk`; EBUSY while it is open or mounted.
pub(crate) fn delete_partition(disk: impl AsFd, number: u8) -> io::Result<()> {
    let (device_name, volume_name) = ([0; 64], [0; 64]);
    let partition = BlkpgPartition { start: 0, length: 0, number: number.into(), device_name, volume_name };
    blkpg(disk, BLKPG_DEL_PARTITION, partition)
}

/// Makes a block device refuse writes.
pub(crate) fn set_read_only(device: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: BLKROSET reads one int.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKROSET, &raw const on) })?;
    Ok(())
}

/// Opens the other end of the pseudo terminal `master`, whatever mount namespace its devpts is in.
pub(crate) fn terminal_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor.
    let fd = check(unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just made `fd` for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends any signal, real-time ones and 0 (is it there?) included.
pub(crate) fn signal(pidfd: impl AsFd, signal: u32) -> io::Result<()> {
    let (fd, no_info) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: pidfd_send_signal with a null siginfo reads no memory of ours.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a descriptor's readiness something to await. It can be shared, and may outlive its readiness.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an OwnedFd names the same open descriptor until it is dropped, which is when the last of its owners is; one
    // of them is the AsyncFd, which deregisters it before it gives that up.
    unsafe { AsyncFd::register_with_interest(Arc::new(fd), interest) }.map_err(io::Error::from)
}

/// `struct bpf_insn`s by their size, and the numbers of linux/bpf.h that loading a device program takes.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what is missing for 0.
#[repr(C)]
struct BpfLoad {
    program_type: u32,
    instructions: u32,
    address: u64,
    license: u64,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct BpfAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: bpf(2) reads `size_of::<T>()` bytes of attributes, and what they point to; callers keep both alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { result.try_into().map_err(io::Error::other) }
}

/// Lets a BPF program decide over the use of devices by the processes of a cgroup, given its directory. It goes with the
/// cgroup.
pub(crate) fn restrict_devices(cgroup: impl AsFd, program: &[u64]) -> io::Result<()> {
    let license = c"Apache-2.0";
    let load = BpfLoad {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instructions: program.len().try_into().map_err(io::Error::other)?,
        address: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    let fd = loop {
        match bpf(BPF_PROG_LOAD, &load) {
            // A signal interrupted the verifier: what is EINTR elsewhere.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => break result?,
        }
    };
    // SAFETY: the kernel has just made `fd` for us; nobody else owns it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let number = |fd: RawFd| u32::try_from(fd).map_err(io::Error::other);
    let attach = BpfAttach {
        target: number(cgroup.as_fd().as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

/// Makes the children of the calling process, from the next one on, those of a new PID namespace.
pub(crate) fn new_pid_namespace() -> io::Result<()> {
    // SAFETY: unshare takes flags by value; CLONE_NEWPID changes nothing of the caller itself.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).map(drop)
}

/// Lets the kernel collect the calling process's dead children.
pub(crate) fn ignore_children() {
    // SAFETY: SIG_IGN is no handler of ours; for SIGCHLD it can't fail.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Takes over a descriptor that the parent process left open for us. EBADF if it is not open.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD on any number is harmless.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: it is open, and by contract with the parent nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
