//! A stream's way to the host, which is another one in a copy of the VM.
//!
//! In a copy all connections are gone: the transport was reset. Its processes must not learn of that. So who copies a stream has
//! a line in place of a connection. While the pod is frozen, what breaks waits to be replaced; before the pod goes on, each
//! line of a copy is given another connection, or none, which the agent does by its plug.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::stdio::{Connection, Connections};

/// Gives a line another connection. None leads nowhere: input is at its end, and output is dropped.
pub(crate) type Plug = UnboundedSender<Option<Connection>>;

/// The plugs of a process's streams; none for one that is /dev/null.
#[derive(Debug, Default)]
pub(crate) struct Plugs {
    pub(crate) stdin: Option<Plug>,
    pub(crate) stdout: Option<Plug>,
    pub(crate) stderr: Option<Plug>,
}

impl Plugs {
    /// Gives each line its connection.
    pub(crate) fn connect(&self, connections: Connections) {
        let Connections { stdin, stdout, stderr, .. } = connections;
        for (plug, connection) in [(&self.stdin, stdin), (&self.stdout, stdout), (&self.stderr, stderr)] {
            if let Some(plug) = plug {
                // It fails for a stream that has come to its end.
                let _ = plug.send(connection);
            }
        }
    }
}

/// See the module.
pub(crate) struct Line {
    connection: Option<Connection>,
    others: UnboundedReceiver<Option<Connection>>,
    frozen: watch::Receiver<bool>,
}

impl Line {
    /// One that begins with `connection`. `frozen` is true while connections that break may be replaced.
    pub(crate) fn new(connection: Option<Connection>, frozen: watch::Receiver<bool>) -> (Self, Plug) {
        let (plug, others) = unbounded_channel();
        (Self { connection, others, frozen }, plug)
    }

    /// Reads some bytes, none at the end. Nothing is lost when it is dropped.
    pub(crate) async fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let Some(connection) = &mut self.connection else { return Ok(0) };
            let result = tokio::select! {
                biased;
                Some(other) = self.others.recv() => {
                    self.connection = other;
                    continue;
                }
                result = connection.read_buf(buffer) => result,
            };
            // Of a connection that was reset the end may be all that is seen.
            if matches!(result, Ok(1..)) || !self.is_replaced().await {
                return result;
            }
        }
    }

    /// Writes all of `bytes`, or drops them if it leads nowhere.
    pub(crate) async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.take_others();
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let result = tokio::select! {
                biased;
                Some(other) = self.others.recv() => {
                    self.connection = other;
                    continue;
                }
                result = connection.write(bytes) => result,
            };
            match result {
                Ok(written @ 1..) => bytes = bytes.get(written..).unwrap_or_default(),
                _ if self.is_replaced().await => {}
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is written from now on is dropped.
    pub(crate) fn hang_up(&mut self) {
        self.connection = None;
    }

    /// The half-close tells the host that this was all. The connection stays until the host has read up to there.
    pub(crate) async fn finish(mut self) {
        self.take_others();
        let Some(mut connection) = self.connection else { return };
        if connection.shutdown().await.is_ok() {
            let mut byte = [0];
            tokio::select! {
                _ = connection.read(&mut byte) => {}
                // In a copy, what the original's process has said is the original's.
                Some(_) = self.others.recv() => {}
            }
        }
    }

    fn take_others(&mut self) {
        while let Ok(other) = self.others.try_recv() {
            self.connection = other;
        }
    }

    /// Whether a connection that has broken has another in its place: in a copy. Everywhere else it has really broken.
    async fn is_replaced(&mut self) -> bool {
        // It fails when the pod is gone.
        let _ = self.frozen.wait_for(|frozen| !frozen).await;
        match self.others.try_recv() {
            Ok(other) => {
                self.connection = other;
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
#[path = "line/tests.rs"]
mod tests;
