//! The agent's end of a process's pseudo terminal.
//!
//! Unlike a pipe's, its locks are only tried when the descriptor is non-blocking (`n_tty_read` and `tty_write_lock` of
//! Linux' drivers/tty), so that no process can hold up who reads and writes here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Doing, Result};
use crate::line::{Line, Plugs};
use crate::stdio::{BUFFER, Connections};
use crate::{kmsg, sys};

/// The master. Clones are the same terminal.
#[derive(Clone, Debug)]
pub(crate) struct Terminal(Arc<AsyncFd<Arc<OwnedFd>>>);

impl Terminal {
    /// Takes over the master. The terminal is given to `owner`.
    pub(crate) fn new(master: OwnedFd, owner: u32) -> Result<Self> {
        let peer = sys::terminal_peer(&master).doing(|| "open the terminal".into())?;
        fchown(&peer, Some(Uid::from_raw(owner)), None)
            .doing(|| "give the terminal to the process's user".into())?;
        let what = || "watch the terminal".to_owned();
        let flags = fcntl_getfl(&master).doing(what)?;
        fcntl_setfl(&master, flags | OFlags::NONBLOCK).doing(what)?;
        let watched = sys::watch(master, Interest::READABLE | Interest::WRITABLE).doing(what)?;
        Ok(Self(Arc::new(watched)))
    }

    /// Sets its size; 0 leaves it.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let what = || format!("resize the terminal to {columns}x{rows}");
        if columns == 0 || rows == 0 {
            return Ok(());
        }
        let (ws_col, ws_row) = (columns.try_into().doing(what)?, rows.try_into().doing(what)?);
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.0.get_ref(), size).doing(what)
    }

    /// Starts to copy.
    pub(crate) fn join(&self, connections: Connections) -> Plugs {
        let Connections { stdin, stdout, frozen, .. } = connections;
        let mut plugs = Plugs::default();
        if let Some(connection) = stdin {
            let (line, plug) = Line::new(Some(connection), frozen.clone());
            tokio::spawn(self.clone().copy_input(line));
            plugs.stdin = Some(plug);
        }
        let (line, plug) = Line::new(stdout, frozen);
        tokio::spawn(self.clone().copy_output(line));
        plugs.stdout = Some(plug);
        plugs
    }

    async fn copy_input(self, mut line: Line) {
        let mut buffer = Vec::with_capacity(BUFFER);
        while let Ok(1..) = line.read(&mut buffer).await {
            if self.write_all(&buffer).await.is_err() {
                break;
            }
            buffer.clear();
        }
    }

    /// Output is read even when nobody wants it, or no longer: a full terminal would stop the process.
    async fn copy_output(self, mut line: Line) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match self.read(&mut buffer).await {
                Ok(0) => break,
                Ok(length) => length,
                // Its end: all its other ends are closed.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(error) => {
                    kmsg::error(format!("read a terminal's output: {error}"));
                    break;
                }
            };
            if line.write_all(buffer.get(..length).unwrap_or_default()).await.is_err() {
                line.hang_up();
            }
        }
        drop(buffer);
        line.finish().await;
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *buffer)?)).await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.0.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}
