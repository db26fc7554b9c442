//! Port-forward: TCP connections that somebody makes *in the pod's network namespace* to an address of the pod's, such
//! as localhost, reach the guest.
//!
//! `kubectl port-forward` ends in containerd entering the namespace and dialling localhost there, while the application
//! listens in the guest. A socket lookup program gives every such connection to one listening socket of ours, whatever
//! its port; each becomes a vsock stream, and the agent dials the same address in the guest. See
//! docs/decisions/0004-port-forward.md.

mod bpf;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use monohull_protocol::FORWARD_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::vsock::{Vsock, VsockError};

/// Connections that nobody has accepted yet.
const BACKLOG: i32 = 128;

/// Why connections can't be forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// No socket for them.
    #[error("cannot listen for connections to be forwarded")]
    Listen(#[source] io::Error),
    /// The kernel can't give them to it.
    #[error("cannot redirect the namespace's connections (needs Linux 5.9 with CONFIG_BPF_SYSCALL)")]
    Redirect(#[source] io::Error),
    /// The guest can't be reached.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The guest closed the stream before it was connected.
    #[error("lost the guest while it connected")]
    Lost(#[source] io::Error),
    /// Nobody listens there.
    #[error("the guest does not connect to {0}")]
    Refused(SocketAddr),
}

/// Takes the namespace's connections until it is dropped.
#[derive(Debug)]
pub(crate) struct Forward {
    listener: TcpListener,
    _link: bpf::Link,
}

impl Forward {
    /// For the network namespace of the calling thread.
    pub(crate) fn install() -> Result<Self, ForwardError> {
        let listener = listen().map_err(ForwardError::Listen)?;
        let link = bpf::give_connections_to(&listener).map_err(ForwardError::Redirect)?;
        Ok(Self { listener, _link: link })
    }

    /// Forwards connections, for as long as it is polled.
    pub(crate) async fn serve(&self, vsock: &Arc<Vsock>) -> io::Error {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(forward(stream, vsock.clone()));
                }
                // The client was faster to leave.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return error,
            }
        }
    }
}

/// Whether the kernel takes the program: what `monohull check` tells.
pub(crate) fn probe() -> io::Result<()> {
    bpf::probe()
}

fn listen() -> io::Result<TcpListener> {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, listen, setsockopt,
        socket, sockopt,
    };
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let new = |family| socket(family, SockType::Stream, flags, None);
    // One socket for both versions of IP. Nobody reaches it by its own port from outside: what comes in on the
    // namespace's interfaces goes to the guest before this kernel looks at it.
    let socket = match new(AddressFamily::Inet6) {
        Ok(socket) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0);
            bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?;
            socket
        }
        Err(nix::errno::Errno::EAFNOSUPPORT) => {
            let socket = new(AddressFamily::Inet)?;
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
            bind(socket.as_raw_fd(), &SockaddrIn::from(any))?;
            socket
        }
        Err(error) => return Err(error.into()),
    };
    listen(&socket, Backlog::new(BACKLOG)?)?;
    TcpListener::from_std(socket.into())
}

async fn forward(mut client: TcpStream, vsock: Arc<Vsock>) {
    let forwarded = async {
        let to = client.local_addr().map_err(ForwardError::Listen)?;
        let mut guest = connect(&vsock, SocketAddr::new(to.ip().to_canonical(), to.port())).await?;
        // What one side's end or error means to the other is TCP's business.
        let _ = copy_bidirectional(&mut client, &mut guest).await;
        Ok::<_, ForwardError>(())
    };
    if let Err(error) = forwarded.await {
        tracing::info!(error = %crate::text::chain(&error), "a connection is not forwarded");
        // A reset is as near to "connection refused" as one gets after accepting.
        let _ = client.set_zero_linger();
    }
}

/// A stream to whoever listens on `address` in the guest.
async fn connect(vsock: &Vsock, address: SocketAddr) -> Result<tokio::net::UnixStream, ForwardError> {
    let mut guest = vsock.connect(FORWARD_PORT).await?;
    guest.write_all(&preamble(address)).await.map_err(ForwardError::Lost)?;
    match guest.read_u8().await.map_err(ForwardError::Lost)? {
        0 => Ok(guest),
        _ => Err(ForwardError::Refused(address)),
    }
}

/// The address as agent.proto has it.
fn preamble(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 18];
    let (to_ip, to_port) = bytes.split_at_mut(16);
    to_ip.copy_from_slice(&ip.octets());
    to_port.copy_from_slice(&address.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// Runs `test` in a thread with a new network namespace whose loopback device is up.
    fn in_new_namespace(test: impl AsyncFnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                crate::network::bring_up_loopback().await.unwrap();
                test().await;
            });
        });
        thread.join().unwrap();
    }

    /// Plays the VMM and the guest for one connection: answers `status` and then sends back all it reads, preamble
    /// included.
    async fn guest(listener: UnixListener, status: u8) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 13];
        stream.read_exact(&mut request).await.unwrap();
        assert_eq!(&request, b"CONNECT 1026\n");
        stream.write_all(b"OK 1\n").await.unwrap();
        let mut preamble = [0; 18];
        stream.read_exact(&mut preamble).await.unwrap();
        stream.write_u8(status).await.unwrap();
        if status == 0 {
            stream.write_all(&preamble).await.unwrap();
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.unwrap();
        }
    }

    /// Connects to `address` in a namespace with a [`Forward`]; what comes back after "hello" and a half-close.
    async fn talk(address: SocketAddr, status: u8) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let (vsock, listener) = Vsock::listen(dir.path()).unwrap();
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        tokio::spawn(guest(UnixListener::from_std(listener).unwrap(), status));
        let forward = Forward::install().unwrap();
        let talk = async {
            let mut client = TcpStream::connect(address).await?;
            client.write_all(b"hello").await?;
            client.shutdown().await?;
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await?;
            Ok(answer)
        };
        let vsock = Arc::new(vsock);
        tokio::select! {
            result = talk => result,
            error = forward.serve(&vsock) => panic!("{error}"),
        }
    }

    #[test]
    fn connections_to_any_port_of_localhost_reach_the_guest_by_their_address() {
        in_new_namespace(async || {
            for address in ["127.0.0.1:80", "127.8.9.1:5000", "[::1]:443"] {
                let address: SocketAddr = address.parse().unwrap();
                let answer = talk(address, 0).await.unwrap();
                assert_eq!(answer, [&preamble(address)[..], b"hello"].concat());
            }
        });
    }

    #[test]
    fn a_connection_that_the_guest_refuses_is_reset() {
        in_new_namespace(async || {
            let error = talk((Ipv4Addr::LOCALHOST, 80).into(), 111).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn the_newest_of_two_forwards_has_the_connections() {
        in_new_namespace(async || {
            let _older = Forward::install().unwrap();
            let address = (Ipv4Addr::LOCALHOST, 80).into();
            let answer = talk(address, 0).await.unwrap();
            assert_eq!(answer, [&preamble(address)[..], b"hello"].concat());
        });
    }

    #[test]
    fn a_forward_ends_even_if_a_forked_process_has_its_descriptors() {
        in_new_namespace(async || {
            let forward = Forward::install().unwrap();
            let _inherited = forward._link.duplicate().unwrap();
            drop(forward);
            let error = TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }

    #[test]
    fn without_a_forward_nothing_is_redirected() {
        in_new_namespace(async || {
            drop(Forward::install().unwrap());
            let error = TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        });
    }
}
