//! The socket by which a pod's owner is asked to save the pod: a line of JSON each way, and that is all.
//!
//! It is in the pod's directory, which is root's alone. The one that asks makes the directory that the files go to and
//! waits; the owner writes them, and answers with the manifest.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Weak;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{MAX_MANIFEST, Manifest, SnapshotError};
use crate::pod::Pod;
use crate::text;

const SOCKET: &str = "snapshot.sock";
/// Most bytes of a request.
const MAX_REQUEST: u64 = 16 << 10;
/// Most bytes of an answer: a manifest within a line.
const MAX_ANSWER: u64 = 2 * MAX_MANIFEST;

/// Where to save the pod. The directory is told by its identity, too: the owner may have another view of the host's files.
#[derive(Debug, Deserialize, Serialize)]
struct Request {
    directory: PathBuf,
    device: u64,
    inode: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Saved(Manifest),
    Refused(String),
}

/// Listens in a pod's directory.
pub(crate) fn listen(dir: &Path) -> io::Result<UnixListener> {
    // By the directory's descriptor: a socket's address is at most 107 bytes long.
    let held = fs::File::open(dir)?;
    let path = address(&held);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn address(dir: &fs::File) -> PathBuf {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).into()
}

/// Serves one after the other, until the pod has gone.
pub(crate) async fn serve(listener: UnixListener, pod: Weak<Pod>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        if let Err(error) = answer(stream, &pod).await {
            tracing::warn!(%error, step = "answer who wants a snapshot");
        }
    }
}

async fn answer(stream: UnixStream, pod: &Weak<Pod>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let request: Request = serde_json::from_str(&line(&mut stream, MAX_REQUEST).await?)?;
    // Not before: a pod lives no longer for somebody who asks nothing.
    let Some(pod) = pod.upgrade() else { return Ok(()) };
    let answer = match check(&request) {
        Ok(()) => match pod.save(&request.directory).await {
            Ok(manifest) => Answer::Saved(manifest),
            Err(error) => Answer::Refused(text::chain(&error)),
        },
        Err(refusal) => Answer::Refused(refusal),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    stream.get_mut().write_all(&text).await
}

fn check(request: &Request) -> Result<(), String> {
    let path = request.directory.display();
    match fs::symlink_metadata(&request.directory) {
        Ok(found) if found.is_dir() && (found.dev(), found.ino()) == (request.device, request.inode) => {
            Ok(())
        }
        _ => Err(format!(
            "the process that owns the pod does not see {path}: choose a directory that was mounted before the pod was started"
        )),
    }
}

/// Has the owner of the pod with this directory save it into `directory`, which is empty.
pub(crate) async fn ask(pod: &Path, directory: &Path) -> Result<Manifest, SnapshotError> {
    let name = || pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ownerless = |source| SnapshotError::Ownerless { pod: name(), source };
    let metadata = fs::metadata(directory).map_err(SnapshotError::io("look at", directory))?;
    let request = Request { directory: directory.to_owned(), device: metadata.dev(), inode: metadata.ino() };
    let asked = async {
        let held = fs::File::open(pod)?;
        let mut stream = BufReader::new(UnixStream::connect(address(&held)).await?);
        let mut text = serde_json::to_vec(&request)?;
        text.push(b'\n');
        stream.get_mut().write_all(&text).await?;
        Ok(serde_json::from_str(&line(&mut stream, MAX_ANSWER).await?)?)
    };
    match asked.await.map_err(ownerless)? {
        Answer::Saved(manifest) => Ok(manifest),
        Answer::Refused(reason) => Err(SnapshotError::Refused(reason)),
    }
}

async fn line(stream: &mut BufReader<UnixStream>, most: u64) -> io::Result<String> {
    let mut line = String::new();
    stream.take(most).read_line(&mut line).await?;
    if line.ends_with('\n') { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
