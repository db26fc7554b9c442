//! Frames of the guest.
#![forbid(unsafe_code)]

use std::io::{self, Read};

use nix::libc::{EBADF, EBADFD, ENODEV, ENXIO, EPIPE};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::rx::Outcome;
use super::tap::Port;
use super::{FRAMES, HEADER, MAX_FRAME, MIN_FRAME};
use crate::devices::limiter::Limiter;
use crate::devices::queue::{Chain, Drained, Violation, next_chain};
use crate::virtio::Interrupt;

/// Takes frames from the guest and gives them to a port.
#[derive(Debug)]
pub(super) struct Sender {
    buffer: Vec<u8>,
    /// The port takes no more for now: the guest's frames wait in the queue.
    blocked: bool,
}

/// What came of sending one frame.
#[derive(Debug)]
enum Sent {
    /// It was sent, or can't be and was dropped. How many bytes.
    Done(usize),
    /// The port takes no more for now.
    Blocked,
    /// The port failed for good.
    Unplugged(io::Error),
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; MAX_FRAME], blocked: false }
    }

    /// Whether to watch the port for room.
    pub(super) fn wants_room(&self) -> bool {
        self.blocked
    }

    /// The port is gone.
    pub(super) fn clear(&mut self) {
        self.blocked = false;
    }

    /// Sends a bounded number of the guest's frames, while the port takes them. Without a port they are dropped, as on
    /// a cable that leads nowhere. [`Drained::More`] when the bound was reached, [`Drained::Limited`] when the limiter closed.
    pub(super) fn serve(
        &mut self,
        port: Option<&dyn Port>,
        queue: &mut Queue,
        mem: &GuestMemoryMmap,
        interrupt: &Interrupt,
        limiter: &mut Limiter,
    ) -> Result<(Drained, Outcome), Violation> {
        let before = queue.next_used();
        let mut result = (Drained::More, Outcome::Served);
        self.blocked = false;
        queue.disable_notification(mem)?;
        for _ in 0..FRAMES {
            if !limiter.is_open() {
                result.0 = Drained::Limited;
                break;
            }
            let Some(chain) = next_chain(queue, mem)? else {
                result.0 = Drained::Empty;
                break;
            };
            let head = chain.head_index();
            match self.send(&chain, port, mem)? {
                Sent::Done(bytes) => limiter.pass(bytes as u64),
                Sent::Blocked => {
                    queue.go_to_previous_position();
                    self.blocked = true;
                    result.0 = Drained::Empty;
                    break;
                }
                Sent::Unplugged(error) => {
                    queue.go_to_previous_position();
                    result.1 = Outcome::Unplugged(error);
                    break;
                }
            }
            queue.add_used(mem, head, 0)?;
        }
        if queue.next_used() != before && queue.needs_notification(mem)? {
            interrupt.used();
        }
        Ok(result)
    }

    fn send(
        &mut self,
        chain: &Chain,
        port: Option<&dyn Port>,
        mem: &GuestMemoryMmap,
    ) -> Result<Sent, Violation> {
        let Some(port) = port else { return Ok(Sent::Done(0)) };
        let mut reader = chain.reader(mem)?;
        let len = reader.available_bytes();
        if len < MIN_FRAME {
            return Ok(Sent::Done(0));
        }
        let Some(frame) = self.buffer.get_mut(..len) else { return Ok(Sent::Done(0)) };
        reader.read_exact(frame).map_err(|_| Violation)?;
        loop {
            return Ok(match port.send(frame) {
                Ok(()) => Sent::Done(len - HEADER),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked,
                Err(error) if is_final(&error) => Sent::Unplugged(error),
                // The frame is no good (EINVAL), the tap is down (EIO), or there is no memory for it: a network may
                // lose frames.
                Err(_) => Sent::Done(0),
            });
        }
    }
}

/// Whether a port with this error has gone.
fn is_final(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EBADF | EBADFD | ENODEV | ENXIO | EPIPE))
}
