//! UNIX sockets of the host that a pod's containers reach: each connection of a container's continues on the host.
//!
//! A socket is the one that was there when the container was created, held by a descriptor: another one that takes its
//! place at its path is not reached, as with any bind mount of a file. The guest names a socket by a number that it was
//! given, so it reaches those of its containers' specs and no other.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, oneshot};

use crate::text;

/// Most connections at a time, as many as the VMM lets the guest have.
const MAX_CONNECTIONS: usize = 256;
/// Longest name that this end gives a socket, a number.
const MAX_NAME: usize = 20;

/// As whom the host's servers see a container (`SO_PEERCRED`): what its spec says, not what the guest does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Further groups.
    pub(crate) groups: Vec<u32>,
}

/// A socket of the host.
#[derive(Debug)]
pub(crate) struct HostSocket {
    /// Where it was found.
    pub(crate) path: PathBuf,
    /// Opened for its path alone (`O_PATH`).
    pub(crate) socket: OwnedFd,
    pub(crate) client: Client,
}

/// The sockets of a pod's containers, by the names that the guest was given.
#[derive(Debug)]
pub(crate) struct Sockets {
    table: Mutex<Table>,
    connections: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    sockets: HashMap<String, Arc<HostSocket>>,
}

/// A socket that the guest reaches until this is dropped.
#[derive(Debug)]
pub(crate) struct Reachable {
    sockets: Arc<Sockets>,
    name: String,
}

/// Why a container's connection does not continue.
#[derive(Debug, thiserror::Error)]
enum SocketError {
    #[error("there are {MAX_CONNECTIONS} of them")]
    Many,
    #[error("the guest named no socket of its containers")]
    Name,
    #[error("lost the guest")]
    Lost(#[source] io::Error),
    #[error("cannot connect to {0} as user {1}")]
    Connect(PathBuf, u32, #[source] io::Error),
}

impl Default for Sockets {
    fn default() -> Self {
        Self { table: Mutex::default(), connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl Sockets {
    /// Lets the guest reach a socket.
    pub(crate) fn add(self: &Arc<Self>, socket: HostSocket) -> Reachable {
        let mut table = self.lock();
        let name = table.next.to_string();
        table.next += 1;
        table.sockets.insert(name.clone(), Arc::new(socket));
        drop(table);
        Reachable { sockets: self.clone(), name }
    }

    /// Serves a connection that the guest has opened, in the background.
    pub(crate) fn serve(self: &Arc<Self>, guest: UnixStream) {
        let sockets = self.clone();
        tokio::spawn(async move {
            if let Err(error) = sockets.join(guest).await {
                tracing::info!(error = %text::chain(&error), "a connection to a socket of the host is refused");
            }
        });
    }

    async fn join(&self, mut guest: UnixStream) -> Result<(), SocketError> {
        let _permit = self.connections.try_acquire().map_err(|_| SocketError::Many)?;
        let name = read_name(&mut guest).await?;
        let socket = self.lock().sockets.get(&name).cloned().ok_or(SocketError::Name)?;
        let connected = connect(socket.clone()).await;
        let mut server =
            connected.map_err(|e| SocketError::Connect(socket.path.clone(), socket.client.uid, e))?;
        // What one side's end or error means to the other is their business.
        let _ = copy_bidirectional(&mut guest, &mut server).await;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reachable {
    /// The name by which the guest asks for it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Reachable {
    fn drop(&mut self) {
        self.sockets.lock().sockets.remove(&self.name);
    }
}

/// The preamble of agent.proto.
async fn read_name(guest: &mut UnixStream) -> Result<String, SocketError> {
    let length = usize::from(guest.read_u8().await.map_err(SocketError::Lost)?);
    if length > MAX_NAME {
        return Err(SocketError::Name);
    }
    let mut name = vec![0; length];
    guest.read_exact(&mut name).await.map_err(SocketError::Lost)?;
    String::from_utf8(name).map_err(|_| SocketError::Name)
}

/// Connects as the socket's client.
async fn connect(socket: Arc<HostSocket>) -> io::Result<UnixStream> {
    let (connected, result) = oneshot::channel();
    // A thread of its own: it never gets the owner's credentials back, and waits while the server's queue is full.
    let thread = std::thread::Builder::new().name("connect".into()).stack_size(64 * 1024);
    thread.spawn(move || drop(connected.send(connect_as(&socket))))?;
    let stream = result.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Gives the calling thread the credentials of the socket's client for good, and connects.
fn connect_as(socket: &HostSocket) -> io::Result<std::os::unix::net::UnixStream> {
    let Client { uid, gid, groups } = &socket.client;
    let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    // The system calls themselves, which are for one thread (setuid(3) would be for all).
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    std::os::unix::net::UnixStream::connect(format!("/proc/self/fd/{}", socket.socket.as_raw_fd()))
}

#[cfg(test)]
mod tests;
