//! What a network device is joined to: a tap device of the host.
#![allow(unsafe_code)] // The tun driver is configured by ioctls.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, c_int, c_uint, ifreq};

use super::HEADER;

/// What the other side of a port may leave undone in the frames it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offloads {
    pub(crate) checksum: bool,
    pub(crate) tso4: bool,
    pub(crate) tso6: bool,
}

/// A source and sink of Ethernet frames with a [`HEADER`] each. It does not block.
pub(crate) trait Port: AsFd + std::fmt::Debug + Send {
    /// Says what frames may be received with.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Receives one frame, cut off at the end of `frame`. An empty one says that the port is gone.
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Sends one frame.
    fn send(&self, frame: &[u8]) -> io::Result<()>;
}

/// A descriptor that is not a usable tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel does not know it as one.
    #[error("can't read the tap's flags; pass a descriptor of /dev/net/tun after TUNSETIFF")]
    Query(#[source] io::Error),
    /// It speaks another format.
    #[error("the tap has flags {0:#06x}; make it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    Flags(c_int),
    /// It can't be set up.
    #[error("can't set the tap's header size, offloads or non-blocking mode")]
    Configure(#[source] io::Error),
}

/// A tap device.
#[derive(Debug)]
pub(crate) struct Tap {
    file: File,
}

impl Tap {
    /// Sets a tap up for frames with a [`HEADER`] and no offloads.
    pub(crate) fn new(file: File) -> Result<Self, TapError> {
        let flags = ioctl::flags(&file).map_err(TapError::Query)?;
        let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::Flags(flags));
        }
        let tap = Self { file };
        tap.configure().map_err(TapError::Configure)?;
        Ok(tap)
    }

    fn configure(&self) -> io::Result<()> {
        // HEADER fits.
        ioctl::set_header_size(&self.file, HEADER as c_int)?;
        self.set_offloads(Offloads::default())?;
        let flags = OFlag::from_bits_retain(fcntl(&self.file, FcntlArg::F_GETFL)?);
        fcntl(&self.file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Port for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let mut flags = 0;
        if offloads.checksum {
            flags |= TUN_F_CSUM;
            // The tun driver refuses segmentation without checksums.
            flags |= if offloads.tso4 { TUN_F_TSO4 } else { 0 };
            flags |= if offloads.tso6 { TUN_F_TSO6 } else { 0 };
        }
        ioctl::set_offload(&self.file, flags)
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // The tun driver takes a frame whole or not at all.
        (&self.file).write(frame).map(drop)
    }
}

/// The tun driver's requests (include/uapi/linux/if_tun.h).
mod ioctl {
    use std::mem::size_of;

    use super::{AsRawFd, File, c_int, c_uint, ifreq, io};

    mod raw {
        #![allow(missing_docs, unreachable_pub)] // What nix makes is public.
        use super::{c_int, c_uint, ifreq, size_of};
        nix::ioctl_write_ptr!(tun_set_vnet_hdr_sz, b'T', 216, c_int);
        nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<c_uint>()));
        nix::ioctl_read_bad!(tun_get_iff, nix::request_code_read!(b'T', 210, size_of::<c_uint>()), ifreq);
    }

    /// TUNGETIFF: the flags of the device.
    pub(super) fn flags(file: &File) -> io::Result<c_int> {
        // SAFETY: ifreq is plain old data, for which zeroes are valid.
        let mut request: ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one ifreq, despite the size in the request's number, and `request` is one.
        unsafe { raw::tun_get_iff(file.as_raw_fd(), &mut request) }?;
        // SAFETY: TUNGETIFF fills in the flags; every bit pattern of a short is valid, and all members begin there.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(c_int::from(flags))
    }

    /// TUNSETVNETHDRSZ: bytes of the header before each frame.
    pub(super) fn set_header_size(file: &File, size: c_int) -> io::Result<()> {
        // SAFETY: the kernel reads one int, which `size` is for the time of the call.
        unsafe { raw::tun_set_vnet_hdr_sz(file.as_raw_fd(), &size) }?;
        Ok(())
    }

    /// TUNSETOFFLOAD: the TUN_F_* that frames we read may have.
    pub(super) fn set_offload(file: &File, flags: c_uint) -> io::Result<()> {
        // The flags use a few low bits only.
        let flags = c_int::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the argument is a value, no pointer.
        unsafe { raw::tun_set_offload(file.as_raw_fd(), flags) }?;
        Ok(())
    }
}
