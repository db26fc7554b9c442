//! Frames of the network device, and a real tap for them.

// Making a tap has no safe interface.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::super::driver::{BUFFERS, NETWORK, Ring, WRITE};
use super::super::program::Program;

pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
/// Checksums, segmentation and buffers that are joined (virtio 1.2 §5.1.3).
pub(crate) const FEATURES: u64 = 0b11 | 1 << 11 | 1 << 12 | 1 << 15;
/// A control queue, and filters for what is received (virtio 1.2 §5.1.3).
pub(crate) const CONTROL_FEATURES: u64 = 1 << 17 | 1 << 18;
/// Where a frame is, after its header of 12 bytes.
pub(crate) const FRAME: u32 = BUFFERS;

pub(crate) fn rings() -> [Ring; 2] {
    [0, 1].map(|index| Ring::new(NETWORK, index, 256))
}

/// A tap whose link is up, in a network namespace of its own.
pub(crate) fn tap() -> File {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: a structure of numbers, for which zero is good.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        // SAFETY: the kernel reads the structure, and writes the name of the new device into it.
        let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
        let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None).unwrap();
        // SAFETY: the kernel reads the structure.
        let up = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
        assert_eq!(up, 0, "{}", std::io::Error::last_os_error());
        tap
    };
    std::thread::spawn(make).join().unwrap()
}

impl Program {
    /// Says on the control queue, which is `ring`, what `command` is.
    pub(crate) fn command(&mut self, ring: &Ring, command: &[u8]) {
        self.store_bytes(FRAME, command);
        let length = u32::try_from(command.len()).unwrap();
        self.chain(ring, &[(FRAME.into(), length, 0), ((FRAME + 0x100).into(), 1, WRITE)]);
        self.round_trip(ring);
    }

    /// Sends `length` bytes from the header on, as two buffers.
    pub(crate) fn send_frame(&mut self, length: u32) {
        let ring = rings()[TX];
        let first = length / 3;
        self.chain(&ring, &[(FRAME.into(), first, 0), ((FRAME + first).into(), length - first, 0)]);
        self.offer(&ring);
        self.kick(&ring);
        self.wait_used_or_broken(&ring);
    }
}
