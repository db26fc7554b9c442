//! UNIX sockets of the host: a listener in the guest, each of whose connections continues on the host.

use std::os::fd::AsRawFd;
use std::path::Path;

use monohull_protocol::SOCKET_PORT;
use rustix::fs::{AtFlags, Gid, Mode, Uid, chmodat, chownat};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::error::{Doing, Error, Result, chain};
use crate::{kmsg, paths};

/// A listener. It ends when this is dropped; connections end with either of their sides.
#[derive(Debug)]
pub(crate) struct Socket(JoinHandle<()>);

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Who may connect, as on the host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Access {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Access {
    fn parse(options: &[String]) -> Result<Self> {
        let mut access = Self::default();
        for option in options {
            let bad = || Error::Invalid(format!("socket option {option:?}"));
            let (key, value) = option.split_once('=').ok_or_else(bad)?;
            let (field, radix) = match key {
                "mode" => (&mut access.mode, 8),
                "uid" => (&mut access.uid, 10),
                "gid" => (&mut access.gid, 10),
                _ => return Err(bad()),
            };
            *field = u32::from_str_radix(value, radix).map_err(|_| bad())?;
        }
        Ok(access)
    }
}

impl Socket {
    /// Listens at `relative` below `directory` for connections to the host's socket `name`.
    pub(crate) fn listen(name: &str, directory: &Path, relative: &Path, options: &[String]) -> Result<Self> {
        let access = Access::parse(options)?;
        let preamble = preamble(name)?;
        let what = || format!("listen on {} in {}", relative.display(), directory.display());
        let file = relative
            .file_name()
            .ok_or_else(|| Error::Invalid(format!("{} names no file", relative.display())))?;
        let parent = paths::make_directories(directory, relative.parent().unwrap_or(Path::new("")))?;
        // An address has 107 bytes, which a container's id may exceed.
        let address = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(file);
        let listener = UnixListener::bind(address).doing(what)?;
        let (uid, gid) = (Uid::from_raw(access.uid), Gid::from_raw(access.gid));
        chownat(&parent, file, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing(what)?;
        chmodat(&parent, file, Mode::from_raw_mode(access.mode & 0o7777), AtFlags::empty()).doing(what)?;
        Ok(Self(tokio::spawn(accept(listener, preamble))))
    }
}

/// How the host learns which of its sockets a stream is for (agent.proto).
fn preamble(name: &str) -> Result<Vec<u8>> {
    let length = u8::try_from(name.len()).ok().filter(|length| *length > 0);
    let length = length.ok_or_else(|| Error::Invalid(format!("{name:?} is not the name of a socket")))?;
    Ok([&[length], name.as_bytes()].concat())
}

async fn accept(listener: UnixListener, preamble: Vec<u8>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let preamble = preamble.clone();
                tokio::spawn(async move {
                    let host = VsockAddr::new(VMADDR_CID_HOST, SOCKET_PORT);
                    match VsockStream::connect(host).await {
                        Ok(host) => join(client, host, &preamble).await,
                        Err(error) => {
                            kmsg::error(format!("connect to the host's port {SOCKET_PORT}: {error}"));
                        }
                    }
                });
            }
            // The client was faster to leave.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                kmsg::error(format!("accept connections to a socket: {}", chain(&error)));
                return;
            }
        }
    }
}

/// Passes data on until both sides have ended.
async fn join(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut host: impl AsyncRead + AsyncWrite + Unpin,
    preamble: &[u8],
) {
    if host.write_all(preamble).await.is_ok() {
        // What one side's end or error means to the other is their business.
        let _ = copy_bidirectional(&mut client, &mut host).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[test]
    fn options_say_who_may_connect() {
        let options = |all: &[&str]| all.iter().map(|&option| option.to_owned()).collect::<Vec<_>>();
        let access = Access::parse(&options(&["mode=660", "uid=5", "gid=999"])).unwrap();
        assert_eq!(access, Access { mode: 0o660, uid: 5, gid: 999 });
        for bad in ["mode", "mode=9", "uid=-1", "size=1"] {
            assert!(Access::parse(&options(&[bad])).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_have_a_length() {
        assert_eq!(preamble("12").unwrap(), b"\x0212");
        assert!(preamble("").is_err() && preamble(&"x".repeat(256)).is_err());
    }

    #[tokio::test]
    async fn a_stream_begins_with_its_name_and_ends_one_way_at_a_time() {
        let (mut client, accepted) = duplex(64);
        let (dialled, mut host) = duplex(64);
        tokio::spawn(join(accepted, dialled, b"\x010"));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        host.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "\x010question");
        host.write_all(b"answer").await.unwrap();
        drop(host);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn a_listener_has_the_hosts_mode_however_long_its_path() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("c".repeat(76));
        std::fs::create_dir(&directory).unwrap();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let options = ["mode=620".into(), format!("uid={uid}"), format!("gid={gid}")];
        let _socket = Socket::listen("0", &directory, Path::new("binds/0"), &options).unwrap();
        let metadata = directory.join("binds/0").metadata().unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, 0o620);
    }
}
