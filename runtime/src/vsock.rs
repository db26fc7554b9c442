//! The host side of a pod's vsock: the listening socket the VMM is given, and connections to the guest through it.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use monohull_protocol::STDIO_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::patience;
use crate::process::{Stdio, Streams};

const SOCKET: &str = "vsock.sock";
/// Longest answer to CONNECT: "OK 4294967295\n".
const MAX_ANSWER: usize = 14;
/// Turns a guest that does not accept into an error ([`patience`]).
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a connection to the guest can't be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The listening socket can't be made.
    #[error("cannot listen on {0}")]
    Listen(PathBuf, #[source] io::Error),
    /// The VMM does not take the connection.
    #[error("cannot connect to guest port {0}")]
    Connect(u32, #[source] io::Error),
    /// The guest or VMM did not answer as it should.
    #[error("guest port {0} refuses the connection")]
    Refused(u32),
    /// The guest did not answer in time.
    #[error("guest port {0} does not answer within {n} s: the guest is stuck or starved", n = DEADLINE.as_secs())]
    Timeout(u32),
}

/// Where a pod's vsock is. The directory is held open and the socket addressed through its descriptor, because a UNIX
/// socket's address is at most 107 bytes long and ids are up to 76 each.
#[derive(Debug)]
pub(crate) struct Vsock {
    dir: OwnedFd,
    /// The VMM's pid, from when there is one.
    vmm: OnceLock<i32>,
}

impl Vsock {
    /// Makes the listening socket in a pod's directory.
    pub(crate) fn listen(dir: &Path) -> Result<(Self, OwnedFd), VsockError> {
        let path = dir.join(SOCKET);
        let listen = || {
            let dir = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
            let vsock = Self { dir: dir.into(), vmm: OnceLock::new() };
            let listener = std::os::unix::net::UnixListener::bind(vsock.path())?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            Ok((vsock, listener.into()))
        };
        listen().map_err(|e| VsockError::Listen(path.clone(), e))
    }

    /// Says whose waiting for a CPU is no fault of the guest's.
    pub(crate) fn served_by(&self, vmm: i32) {
        let _ = self.vmm.set(vmm);
    }

    /// Removes the listening socket: nobody can connect to the guest any more.
    pub(crate) fn remove(self) -> Result<(), VsockError> {
        let path = self.path();
        fs::remove_file(&path).map_err(|e| VsockError::Listen(path, e))
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_raw_fd()).into()
    }

    /// Opens a stream to `port` in the guest, for as long as anyone listens there.
    pub(crate) async fn connect(&self, port: u32) -> Result<UnixStream, VsockError> {
        let connected = patience::within(DEADLINE, self.vmm.get().copied(), self.ask(port)).await;
        let (stream, answer) =
            connected.ok_or(VsockError::Timeout(port))?.map_err(|e| VsockError::Connect(port, e))?;
        let number = answer.strip_prefix("OK ").and_then(|n| n.strip_suffix('\n'));
        if number.is_some_and(|n| n.parse::<u32>().is_ok()) {
            Ok(stream)
        } else {
            Err(VsockError::Refused(port))
        }
    }

    /// Waits until the guest's kernel has said whether anyone listens on a port, or there is none to say it.
    pub(crate) async fn answers(&self) {
        let _ = self.ask(STDIO_PORT).await;
    }

    /// A stream, and what the VMM says of it.
    async fn ask(&self, port: u32) -> io::Result<(UnixStream, String)> {
        let mut stream = UnixStream::connect(self.path()).await?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
        let answer = read_line(&mut stream).await?;
        Ok((stream, answer))
    }

    /// Opens a stdio stream and tells the agent its name.
    pub(crate) async fn stdio(&self, name: &str) -> Result<UnixStream, VsockError> {
        let mut stream = self.connect(STDIO_PORT).await?;
        let mut preamble = vec![u8::try_from(name.len()).map_err(|_| VsockError::Refused(STDIO_PORT))?];
        preamble.extend_from_slice(name.as_bytes());
        stream.write_all(&preamble).await.map_err(|e| VsockError::Connect(STDIO_PORT, e))?;
        Ok(stream)
    }

    /// Opens the streams a process wants, all at once. `prefix` makes their names unique in the pod.
    pub(crate) async fn streams(
        &self,
        stdio: Stdio,
        prefix: u64,
    ) -> Result<(Streams, StreamNames), VsockError> {
        let names = StreamNames::new(stdio, prefix);
        let open = async |name: &str| match name {
            "" => Ok(None),
            name => self.stdio(name).await.map(Some),
        };
        let (stdin, stdout, stderr) =
            tokio::try_join!(open(&names.stdin), open(&names.stdout), open(&names.stderr))?;
        Ok((Streams { stdin, stdout, stderr }, names))
    }
}

/// Names of a process's streams; empty for one that is not wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamNames {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl StreamNames {
    fn new(stdio: Stdio, prefix: u64) -> Self {
        let name = |wanted, name| if wanted { format!("{prefix}.{name}") } else { String::new() };
        Self {
            stdin: name(stdio.stdin, "in"),
            stdout: name(stdio.stdout, "out"),
            stderr: name(stdio.stderr && !stdio.terminal, "err"),
        }
    }
}

/// Reads one short line, byte by byte: what follows it belongs to the stream.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < MAX_ANSWER && line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await?);
    }
    String::from_utf8(line).map_err(|_| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn listen(dir: &Path) -> (Vsock, UnixListener) {
        let (vsock, listener) = Vsock::listen(dir).unwrap();
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true).unwrap();
        (vsock, UnixListener::from_std(listener).unwrap())
    }

    /// Plays the VMM: answers every connection with `answer`, then sends back all it reads.
    async fn serve(listener: UnixListener, answer: &'static str) -> Vec<u8> {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        // A client that is refused leaves bytes unread: then the end is a reset.
        let _ = stream.read_to_end(&mut all).await;
        all
    }

    #[tokio::test]
    async fn a_stream_is_opened_named_and_then_raw() {
        let dir = tempfile::tempdir().unwrap();
        let (vsock, listener) = listen(dir.path());
        let server = tokio::spawn(serve(listener, "OK 1073741824\nhello"));
        let stdio = Stdio { stdout: true, ..Stdio::default() };
        let (mut streams, names) = vsock.streams(stdio, 7).await.unwrap();
        assert!(streams.stdin.is_none() && streams.stderr.is_none());
        assert_eq!(names, StreamNames { stdout: "7.out".into(), ..StreamNames::default() });
        let mut hello = [0; 5];
        streams.stdout.as_mut().unwrap().read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        drop(streams);
        assert_eq!(server.await.unwrap(), b"CONNECT 1025\n\x057.out");
    }

    #[tokio::test]
    async fn answers_that_are_not_ok_are_refused() {
        for answer in ["OK x\n", "KO 1\n", "OK 00000000000000000000", "\n"] {
            let dir = tempfile::tempdir().unwrap();
            let (vsock, listener) = listen(dir.path());
            let server = tokio::spawn(serve(listener, answer));
            assert!(matches!(vsock.connect(9).await, Err(VsockError::Refused(9))), "{answer:?}");
            server.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_long_directory_is_no_obstacle_and_the_socket_is_private() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("n".repeat(76)).join("p".repeat(76));
        fs::create_dir_all(&dir).unwrap();
        let (vsock, _listener) = listen(&dir);
        assert_eq!(fs::metadata(dir.join(SOCKET)).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(vsock.path()).await.unwrap();
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let stdio = Stdio { terminal: true, stdin: true, stdout: true, stderr: true, size: None };
        assert_eq!(StreamNames::new(stdio, 1).stderr, "");
    }
}
