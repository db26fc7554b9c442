//! The socket lookup program (Documentation/bpf/prog_sk_lookup.rst of Linux), and the bpf(2) calls that install it.
//!
//! It is this, in C:
//!
//! ```c
//! int lookup(struct bpf_sk_lookup *context) {
//!     if (context->protocol == IPPROTO_TCP) {
//!         __u32 key = 0;
//!         struct bpf_sock *socket = bpf_map_lookup_elem(&map, &key);
//!         if (socket) {
//!             bpf_sk_assign(context, socket, BPF_SK_LOOKUP_F_REPLACE);
//!             bpf_sk_release(socket);
//!         }
//!     }
//!     return SK_PASS;
//! }
//! ```
//!
//! Programs run in the order in which they were attached. Without the flag the first one's choice would stand: that of a
//! pod which was in this namespace before, for as long as a process that it has forked holds its descriptors.
#![allow(unsafe_code)] // bpf(2) has no wrapper: one call, with structures that live as long as it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

// linux/bpf.h
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;
/// Offset of `protocol` in `struct bpf_sk_lookup`.
const PROTOCOL: i16 = 12;
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;
const BPF_SK_LOOKUP_F_REPLACE: i32 = 1;
const IPPROTO_TCP: i32 = 6;

/// Part of `union bpf_attr` for each command.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _padding: u32,
    key: *const u32,
    value: *const u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: *const u64,
    license: *const libc::c_char,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct LinkDetach {
    link: u32,
}

/// A program's attachment to a namespace, which ends when this is dropped: a process that was forked and still has the
/// descriptor does not prolong it.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

#[cfg(test)]
impl Link {
    /// What a forked process has.
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It fails if the namespace is gone, and the attachment with it.
        let _ = bpf(BPF_LINK_DETACH, &LinkDetach { link: number(&self.0) });
    }
}

/// Gives all TCP connections to any local port of this thread's network namespace to `listener`, until the link is
/// dropped.
pub(super) fn give_connections_to(listener: &impl AsFd) -> io::Result<Link> {
    let map = map()?;
    let key = 0_u32;
    let value = u64::from(number(&listener.as_fd()));
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &MapUpdate { map: number(&map), _padding: 0, key: &raw const key, value: &raw const value, flags: 0 },
    )?;
    let program = load(&map)?;
    let namespace = File::open("/proc/thread-self/ns/net")?;
    let link = LinkCreate {
        program: number(&program),
        target: number(&namespace),
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    Ok(Link(made(bpf(BPF_LINK_CREATE, &link)?)?))
}

/// Whether the kernel takes the program.
pub(super) fn probe() -> io::Result<()> {
    load(&map()?).map(drop)
}

/// For one socket.
fn map() -> io::Result<OwnedFd> {
    made(bpf(
        BPF_MAP_CREATE,
        &MapCreate { kind: BPF_MAP_TYPE_SOCKMAP, key_size: 4, value_size: 8, max_entries: 1 },
    )?)
}

fn load(map: &OwnedFd) -> io::Result<OwnedFd> {
    let program = program(map.as_raw_fd());
    let attributes = ProgLoad {
        kind: BPF_PROG_TYPE_SK_LOOKUP,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr(),
        license: c"Apache-2.0".as_ptr(),
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"monohull\0\0\0\0\0\0\0\0",
        interface: 0,
        attach_type: BPF_SK_LOOKUP,
    };
    made(bpf(BPF_PROG_LOAD, &attributes)?)
}

/// Instructions as Documentation/bpf/standardization/instruction-set.rst of Linux encodes them.
fn program(map: i32) -> [u64; 19] {
    let code = |opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32| {
        u64::from(opcode)
            | u64::from(destination | source << 4) << 8
            | u64::from(offset.cast_unsigned()) << 16
            | u64::from(immediate.cast_unsigned()) << 32
    };
    let copy = |to, from| code(0xbf, to, from, 0, 0);
    let set = |to, value| code(0xb7, to, 0, 0, value);
    let call = |helper| code(0x85, 0, 0, 0, helper);
    [
        copy(6, 1),                        // r6 = context
        code(0x61, 2, 1, PROTOCOL, 0),     // r2 = context->protocol
        code(0x55, 2, 0, 14, IPPROTO_TCP), // if r2 != TCP goto pass
        code(0x62, 10, 0, -4, 0),          // key = 0
        code(0x18, 1, 1, 0, map),          // r1 = map, of two words
        0,
        copy(2, 10),
        code(0x07, 2, 0, 0, -4), // r2 = &key
        call(MAP_LOOKUP_ELEM),
        copy(7, 0),             // r7 = socket
        code(0x15, 7, 0, 6, 0), // if r7 == 0 goto pass
        copy(1, 6),
        copy(2, 7),
        set(3, BPF_SK_LOOKUP_F_REPLACE),
        call(SK_ASSIGN),
        copy(1, 7),
        call(SK_RELEASE),
        set(0, SK_PASS),        // pass:
        code(0x95, 0, 0, 0, 0), // return
    ]
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    let size = std::mem::size_of::<T>();
    // SAFETY: `attributes` is a structure of this module, `size` bytes of plain data without implicit padding and
    // borrowed for the call; the pointers in it are to values of the caller that outlive the call, and of the lengths
    // that its other fields say. The kernel only reads them.
    Ok(Errno::result(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) })?)
}

/// Takes over a descriptor that [`bpf`] has just made.
fn made(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the commands that this is called for return a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
