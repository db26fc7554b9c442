//! These need root: a client may be any user.

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use super::*;

fn listen(path: &Path) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    listener
}

fn reach(sockets: &Arc<Sockets>, path: &Path, client: Client) -> Reachable {
    let socket = File::options().read(true).custom_flags(libc::O_PATH).open(path).unwrap();
    sockets.add(HostSocket { path: path.into(), socket: socket.into(), client })
}

/// The guest's end of a connection for which the agent has sent `preamble`.
async fn connect(sockets: &Arc<Sockets>, preamble: &[u8]) -> UnixStream {
    let (mut guest, host) = UnixStream::pair().unwrap();
    guest.write_all(preamble).await.unwrap();
    sockets.serve(host);
    guest
}

/// What the guest reads to the end; nothing if it is refused.
async fn all(mut guest: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Unread bytes make the end a reset.
    let _ = guest.read_to_end(&mut bytes).await;
    bytes
}

#[tokio::test]
async fn a_connection_continues_and_ends_one_way_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let listener = listen(&dir.path().join("s"));
    let sockets = Arc::<Sockets>::default();
    let reachable = reach(&sockets, &dir.path().join("s"), Client::default());
    assert_eq!(reachable.name(), "0");
    let mut guest = connect(&sockets, b"\x010question").await;
    guest.shutdown().await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(all(guest).await, b"answer");
}

#[tokio::test]
async fn the_server_sees_the_user_that_the_spec_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = listen(&path);
    let sockets = Arc::<Sockets>::default();
    let client = Client { uid: 1000, gid: 1001, groups: vec![7] };
    let _reachable = reach(&sockets, &path, client);
    let _guest = connect(&sockets, b"\x010").await;
    let (server, _) = listener.accept().await.unwrap();
    let peer = server.peer_cred().unwrap();
    assert_eq!((peer.uid(), peer.gid()), (1000, 1001));
    assert_eq!(nix::unistd::geteuid().as_raw(), 0, "and only for the connection");
}

#[tokio::test]
async fn a_socket_that_the_user_may_not_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = listen(&path);
    nix::unistd::chown(&path, Some(0.into()), Some(7.into())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    let sockets = Arc::<Sockets>::default();
    let client = |groups| Client { uid: 1000, gid: 1000, groups };
    let _excluded = reach(&sockets, &path, client(vec![]));
    assert!(all(connect(&sockets, b"\x010").await).await.is_empty());
    let _member = reach(&sockets, &path, client(vec![7]));
    let _guest = connect(&sockets, b"\x011").await;
    _listener.accept().await.unwrap();
}

#[tokio::test]
async fn another_socket_in_its_place_is_not_reached() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = listen(&path);
    let sockets = Arc::<Sockets>::default();
    let _reachable = reach(&sockets, &path, Client::default());
    drop(first);
    fs::remove_file(&path).unwrap();
    let _second = listen(&path);
    assert!(all(connect(&sockets, b"\x010").await).await.is_empty());
}

#[tokio::test]
async fn a_guest_reaches_nothing_but_what_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = listen(&path);
    let sockets = Arc::<Sockets>::default();
    let reachable = reach(&sockets, &path, Client::default());
    let long = [&[255], &[b'0'; 255][..]].concat();
    for preamble in [&b"\x011"[..], b"\x00", b"\x02/s", b"\x02\xff\xff", &long] {
        assert!(all(connect(&sockets, preamble).await).await.is_empty(), "{preamble:?}");
    }
    drop(reachable);
    assert!(all(connect(&sockets, b"\x010").await).await.is_empty(), "nor what it has no longer");
}

#[tokio::test]
async fn connections_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _listener = listen(&path);
    let sockets = Arc::<Sockets>::default();
    let _reachable = reach(&sockets, &path, Client::default());
    let _held = sockets.connections.clone().acquire_many_owned(MAX_CONNECTIONS as u32).await.unwrap();
    assert!(all(connect(&sockets, b"\x010").await).await.is_empty());
}
