//! What property tests and fuzz targets of messages share.

#![allow(clippy::unwrap_used)] // A mistake of the test itself should stop it.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::Channel;

/// Most bytes of an error that one side tells the other.
const LONGEST: usize = 4096;

/// Sends a packet of any kind. Returns whether there was room for it.
pub(crate) fn send(channel: &Channel, packet: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(&channel.socket, &[IoSlice::new(packet)], &mut ancillary, flags).is_ok()
}

/// An error's text is one line that can be printed, and no longer than one can read.
pub(crate) fn assert_line(text: &str) {
    assert!(!text.is_empty() && text.len() <= LONGEST, "{} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
