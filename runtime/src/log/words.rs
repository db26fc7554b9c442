//! What a child of the owner writes to its standard error, and a guest leaves behind: a few lines about its end, if it is
//! honest. Bounded in lines and length, whatever it is.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use super::Part;
use crate::text;

/// Lines that are taken of one speaker.
const MAX_LINES: usize = 200;
/// Characters of a line.
const MAX_LINE: usize = 512;
/// Bytes read at once.
const CHUNK: usize = 1024;

/// Logs the lines of a text that an untrusted party wrote, the last ones if they are many.
pub(crate) fn say(part: Part, text: &str) {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    for line in lines.iter().skip(lines.len().saturating_sub(MAX_LINES)) {
        say_line(part, line);
    }
}

fn say_line(part: Part, line: &str) {
    tracing::error!(part = part.name(), "{}", text::untrusted(line, MAX_LINE));
}

/// The standard error of a child.
#[derive(Debug)]
pub(crate) struct Words {
    part: Part,
    pipe: Receiver,
    line: Vec<u8>,
    /// How many more lines are taken.
    left: usize,
}

impl Words {
    /// The pipe's other end is the child's. To be called in an event loop.
    pub(crate) fn new(part: Part) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let pipe = Receiver::from_owned_fd(read)?;
        Ok((Self { part, pipe, line: Vec::new(), left: MAX_LINES }, write))
    }

    /// Logs what comes until the child has closed its end. It can be dropped at any point and called again.
    pub(crate) async fn listen(&mut self) {
        let mut chunk = [0; CHUNK];
        while let Ok(count @ 1..) = self.pipe.read(&mut chunk).await {
            self.take(chunk.get(..count).unwrap_or_default());
        }
        self.finish();
    }

    /// Logs what a child has written that has ended.
    pub(crate) fn drain(&mut self) {
        let mut chunk = [0; CHUNK];
        // As much as a pipe can hold, and no more: somebody else may have its other end.
        for _ in 0..64 {
            match self.pipe.try_read(&mut chunk) {
                Ok(count @ 1..) => self.take(chunk.get(..count).unwrap_or_default()),
                Ok(0) | Err(_) => break,
            }
        }
        self.finish();
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.finish(),
                byte if self.line.len() < MAX_LINE * 4 => self.line.push(*byte),
                _ => {}
            }
        }
    }

    /// A line is complete.
    fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.trim().is_empty() {
            return;
        }
        match self.left {
            0 => {}
            1 => say_line(self.part, "… and more, which is left out"),
            _ => say_line(self.part, &line),
        }
        self.left = self.left.saturating_sub(1);
    }
}
