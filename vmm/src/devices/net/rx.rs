//! Frames for the guest.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::tap::Port;
use super::used::{needs_interrupt, publish};
use super::{FRAMES, HEADER, MAX_FRAME, MIN_FRAME};
use crate::devices::limiter::Limiter;
use crate::devices::queue::{Violation, next_chain};
use crate::virtio::Interrupt;

/// Where `num_buffers` is in a header (virtio 1.2 §5.1.6).
const NUM_BUFFERS: std::ops::Range<usize> = 10..HEADER;

/// What came of serving a direction.
#[derive(Debug)]
pub(super) enum Outcome {
    /// All is well.
    Served,
    /// The port failed for good.
    Unplugged(io::Error),
}

/// Takes frames from a port and gives them to the guest.
#[derive(Debug)]
pub(super) struct Receiver {
    buffer: Vec<u8>,
    /// Length of the frame in `buffer` that still has to be given.
    frame: Option<usize>,
    /// The guest has no buffers for that frame: none is taken from the port before it has.
    starved: bool,
    /// So many have been given that the next has to wait.
    limited: bool,
    mergeable: bool,
}

/// What came of giving one frame.
#[derive(Debug, PartialEq, Eq)]
enum Given {
    /// It was given, or can never be and was dropped.
    Done,
    /// The guest kicks when it has more buffers.
    Starved,
}

impl Receiver {
    pub(super) fn new(mergeable: bool) -> Self {
        Self { buffer: vec![0; MAX_FRAME], frame: None, starved: false, limited: false, mergeable }
    }

    /// Whether to watch the port for frames.
    pub(super) fn wants_frames(&self) -> bool {
        !self.starved && !self.limited
    }

    /// The guest may have new buffers.
    pub(super) fn refilled(&mut self) {
        self.starved = false;
    }

    /// Forgets the frame of a port that is gone.
    pub(super) fn clear(&mut self) {
        self.frame = None;
        self.starved = false;
    }

    /// Gives the guest a bounded number of frames, while the port has some, the guest has buffers and the limiter is open.
    pub(super) fn serve(
        &mut self,
        port: &dyn Port,
        queue: &mut Queue,
        mem: &GuestMemoryMmap,
        interrupt: &Interrupt,
        limiter: &mut Limiter,
    ) -> Result<Outcome, Violation> {
        let before = queue.next_used();
        let mut outcome = Outcome::Served;
        self.limited = false;
        queue.disable_notification(mem)?;
        for _ in 0..FRAMES {
            if self.starved {
                break;
            }
            self.limited = !limiter.is_open();
            if self.limited {
                break;
            }
            let len = match self.frame {
                Some(len) => len,
                None => match port.receive(&mut self.buffer) {
                    Ok(0) => {
                        outcome = Outcome::Unplugged(io::ErrorKind::UnexpectedEof.into());
                        break;
                    }
                    Ok(len) if len < MIN_FRAME => continue,
                    Ok(len) => len,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        outcome = Outcome::Unplugged(error);
                        break;
                    }
                },
            };
            let frame = self.buffer.get_mut(..len).unwrap_or_default();
            self.starved = give(frame, self.mergeable, queue, mem)? == Given::Starved;
            if !self.starved {
                limiter.pass((len - HEADER) as u64);
            }
            self.frame = self.starved.then_some(len);
        }
        if needs_interrupt(queue, mem, before)? {
            interrupt.used();
        }
        Ok(outcome)
    }
}

/// Gives one frame to the guest, in as many chains as it takes if the driver agreed to that.
fn give(
    frame: &mut [u8],
    mergeable: bool,
    queue: &mut Queue,
    mem: &GuestMemoryMmap,
) -> Result<Given, Violation> {
    let first = queue.next_avail();
    let most = if mergeable { usize::from(queue.size()) } else { 1 };
    let mut chains = Vec::new();
    let mut room = 0_usize;
    while room < frame.len() && chains.len() < most {
        let Some(chain) = next_chain(queue, mem)? else {
            queue.set_next_avail(first);
            return Ok(Given::Starved);
        };
        let head = chain.head_index();
        let writer = chain.writer(mem)?;
        room = room.saturating_add(writer.available_bytes());
        chains.push((head, writer));
    }
    if room < frame.len() {
        // It would not fit if all the guest's buffers were free. They are good for smaller frames.
        queue.set_next_avail(first);
        return Ok(Given::Done);
    }
    // There are at most a queue size of chains.
    let count = u16::try_from(chains.len()).unwrap_or(u16::MAX).to_le_bytes();
    if let Some(field) = frame.get_mut(NUM_BUFFERS) {
        field.copy_from_slice(&count);
    }
    let mut rest = &*frame;
    let mut used = Vec::with_capacity(chains.len());
    for (head, mut writer) in chains {
        let (part, after) = rest.split_at_checked(writer.available_bytes()).unwrap_or((rest, &[]));
        writer.write_all(part).map_err(|_| Violation)?;
        used.push((head, u32::try_from(part.len()).unwrap_or(0)));
        rest = after;
    }
    publish(queue, mem, &used)?;
    Ok(Given::Done)
}
