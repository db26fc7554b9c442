//! What a network device is joined to: a tap device of the host.
#![allow(unsafe_code)] // The tun driver is configured by ioctls.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, IFF_NO_PI, IFF_TAP,
    IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, c_int, c_uint, ifreq, sock_filter, sock_fprog,
};

use super::HEADER;
use super::control::Mac;

const BROADCAST: Mac = [0xff; 6];

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

    /// Says which groups' frames are passed, beside those for single stations and for everybody; `None` for all.
    fn set_groups(&self, groups: Option<&[Mac]>) -> io::Result<()>;

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

    fn set_groups(&self, groups: Option<&[Mac]>) -> io::Result<()> {
        match groups {
            Some(groups) => ioctl::attach_filter(&self.file, &mut program(groups)),
            None => ioctl::detach_filter(&self.file),
        }
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(frame)
    }

    fn send(&self, frame: &[u8]) -> io::Result<()> {
        // The tun driver takes a frame whole or not at all.
        (&self.file).write(frame).map(drop)
    }
}

/// The filter that passes frames for single stations, for everybody and for these groups: classic BPF
/// (Documentation/networking/filter.rst), which sees a frame from its destination on.
fn program(groups: &[Mac]) -> Vec<sock_filter> {
    let code = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let load = |size, at| code(BPF_LD | BPF_ABS | size, 0, 0, at);
    let skip_unless = |test, value, skip| code(BPF_JMP | BPF_K | test, 0, skip, value);
    let pass = code(BPF_RET | BPF_K, 0, 0, u32::MAX);
    // Bit 0 of the first byte tells groups, and everybody, from stations.
    let mut program = vec![load(BPF_B, 0), code(BPF_JMP | BPF_K | BPF_JSET, 1, 0, 1), pass, load(BPF_W, 0)];
    for &[a, b, c, d, e, f] in groups.iter().chain([&BROADCAST]) {
        program.extend([
            skip_unless(BPF_JEQ, u32::from_be_bytes([a, b, c, d]), 4),
            load(BPF_H, 4),
            skip_unless(BPF_JEQ, u32::from_be_bytes([0, 0, e, f]), 1),
            pass,
            load(BPF_W, 0),
        ]);
    }
    program.push(code(BPF_RET | BPF_K, 0, 0, 0));
    program
}

/// The tun driver's requests (include/uapi/linux/if_tun.h).
mod ioctl {
    use std::mem::size_of;

    use super::{AsRawFd, File, c_int, c_uint, ifreq, io, sock_filter, sock_fprog};

    mod raw {
        #![allow(missing_docs, unreachable_pub)] // What nix makes is public.
        use super::{c_int, c_uint, ifreq, size_of, sock_fprog};
        nix::ioctl_write_ptr!(tun_attach_filter, b'T', 213, sock_fprog);
        nix::ioctl_write_ptr!(tun_detach_filter, b'T', 214, sock_fprog);
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

    /// TUNATTACHFILTER: what the program refuses does not reach the device. It takes the place of the one before.
    pub(super) fn attach_filter(file: &File, program: &mut [sock_filter]) -> io::Result<()> {
        let len = program.len().try_into().map_err(io::Error::other)?;
        let program = sock_fprog { len, filter: program.as_mut_ptr() };
        // SAFETY: the kernel reads one sock_fprog and copies the `len` instructions it points to, all alive during the call.
        unsafe { raw::tun_attach_filter(file.as_raw_fd(), &program) }?;
        Ok(())
    }

    /// TUNDETACHFILTER: everything reaches the device.
    pub(super) fn detach_filter(file: &File) -> io::Result<()> {
        let none = sock_fprog { len: 0, filter: std::ptr::null_mut() };
        // SAFETY: the kernel reads nothing of the argument, which is valid all the same.
        unsafe { raw::tun_detach_filter(file.as_raw_fd(), &none) }?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::devices::net::control::MOST_GROUPS;

    /// The frames for these addresses that the filter for `groups` passes, by the kernel's account: what is sent to a UNIX socket goes
    /// through its filter as what is sent to a tap does.
    fn passed(groups: &[Mac], to: &[Mac]) -> Vec<Mac> {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut program = program(groups);
        let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the kernel reads one sock_fprog and copies the instructions it points to, all alive during the call.
        let attached = unsafe {
            nix::libc::setsockopt(
                theirs.as_raw_fd(),
                nix::libc::SOL_SOCKET,
                nix::libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<sock_fprog>() as u32,
            )
        };
        assert_eq!(attached, 0, "{}", io::Error::last_os_error());
        theirs.set_nonblocking(true).unwrap();
        for address in to {
            ours.send(&[&address[..], &[2; 54]].concat()).unwrap();
        }
        let mut frame = [0; 60];
        std::iter::from_fn(|| theirs.recv(&mut frame).ok().map(|_| frame[..6].try_into().unwrap())).collect()
    }

    #[test]
    fn a_tap_passes_what_is_for_one_station_for_everybody_and_for_the_groups() {
        let group = |last| [0x33, 0x33, 0, 0, 0, last];
        let station = [2, 0x33, 0, 0, 0, 1];
        let all = [
            station,
            group(1),
            group(2),
            group(22),
            BROADCAST,
            [1, 0, 0x5e, 0, 0, 1],
            [0x33, 0x33, 0, 1, 0, 1],
        ];
        assert_eq!(passed(&[], &all), [station, BROADCAST]);
        assert_eq!(passed(&[group(22), group(1)], &all), [station, group(1), group(22), BROADCAST]);
        let many: Vec<_> = (0..MOST_GROUPS as u8).map(group).collect();
        assert_eq!(passed(&many, &[group(63), group(64)]), [group(63)]);
    }
}
