//! Streams from the host that continue as TCP connections in the pod: port-forward.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

/// Connects where the host asks (see agent.proto) and passes data on until both sides have ended.
pub(crate) async fn join(mut host: impl AsyncRead + AsyncWrite + Unpin) {
    let Ok(address) = read_address(&mut host).await else { return };
    match connect(address).await {
        Ok(mut target) => {
            if host.write_u8(0).await.is_ok() {
                // What one side's end or error means to the other is TCP's business.
                let _ = copy_bidirectional(&mut host, &mut target).await;
            }
        }
        Err(error) => {
            let errno = error.raw_os_error().and_then(|errno| u8::try_from(errno).ok());
            let _ = host.write_u8(errno.unwrap_or(u8::MAX)).await;
        }
    }
}

async fn read_address(host: &mut (impl AsyncRead + Unpin)) -> io::Result<SocketAddr> {
    let ip = Ipv6Addr::from(host.read_u128().await?);
    Ok(SocketAddr::new(ip.to_canonical(), host.read_u16().await?))
}

/// What listens on localhost may do so in either version of IP; who connects to "localhost" tries both.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let other = match address.ip() {
        ip if !ip.is_loopback() => return TcpStream::connect(address).await,
        IpAddr::V4(_) => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
    };
    match TcpStream::connect(address).await {
        // Its answer is the one that counts.
        Err(error) => TcpStream::connect(SocketAddr::new(other, address.port())).await.map_err(|_| error),
        connected => connected,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::net::TcpListener;

    use super::*;

    fn preamble(ip: Ipv6Addr, port: u16) -> Vec<u8> {
        [&ip.octets()[..], &port.to_be_bytes()[..]].concat()
    }

    #[tokio::test]
    async fn a_stream_is_joined_to_a_listener_and_ends_one_way_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mut host, agents) = duplex(64);
        tokio::spawn(join(agents));
        host.write_all(&preamble(Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port)).await.unwrap();
        assert_eq!(host.read_u8().await.unwrap(), 0);
        let (mut target, _) = listener.accept().await.unwrap();

        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut question = String::new();
        target.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        target.write_all(b"answer").await.unwrap();
        drop(target);
        let mut answer = String::new();
        host.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn localhost_is_tried_in_the_other_version_of_ip() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        connect((Ipv6Addr::LOCALHOST, port).into()).await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_listen_is_told_by_errno() {
        let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let (mut host, agents) = duplex(64);
        tokio::spawn(join(agents));
        host.write_all(&preamble(Ipv6Addr::LOCALHOST, unused)).await.unwrap();
        assert_eq!(i32::from(host.read_u8().await.unwrap()), libc::ECONNREFUSED);
    }
}
