//! The socket device (virtio 1.2 §5.10): streams between the guest's vsock ports and UNIX sockets of the host.
//!
//! The host connects by a listening socket and the line `CONNECT <port>\n`, answered with `OK <host port>\n`; a
//! connection the guest opens is handed to the VMM's owner as one end of a socket pair. No vhost module is needed, and
//! context identifiers need not be unique on a host.

mod connection;
mod device;
mod handshake;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod muxer;
mod packet;
pub(crate) mod persist;
mod socket;
#[cfg(test)]
mod tests;

pub use device::Vsock;
