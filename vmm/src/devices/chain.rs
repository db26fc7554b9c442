//! A chain of buffers that a driver made available. Its descriptors are read once, and there are at most as many as its
//! queue can have.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

use super::queue::Violation;

/// A chain.
#[derive(Debug)]
pub(crate) struct Chain {
    head: u16,
    descriptors: Vec<Descriptor>,
}

impl Chain {
    /// The next chain of a queue, if there is one. One that is longer than the largest queue of the device breaks the
    /// protocol (virtio 1.2 §2.7.5.3.1): a table of descriptors of its own could make it 65,535 long, or a circle of as many
    /// turns, and reading them all keeps everything else waiting.
    pub(crate) fn next(queue: &mut Queue, mem: &GuestMemoryMmap) -> Result<Option<Self>, Violation> {
        let longest = usize::from(queue.max_size());
        let Some(mut chain) = queue.iter(mem)?.next() else { return Ok(None) };
        let head = chain.head_index();
        let descriptors: Vec<_> = chain.by_ref().take(longest).collect();
        if chain.next().is_some() { Err(Violation) } else { Ok(Some(Self { head, descriptors })) }
    }

    /// The number of its first descriptor, by which it is returned.
    pub(crate) fn head_index(&self) -> u16 {
        self.head
    }

    /// The descriptors in their order.
    pub(crate) fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }

    /// The buffers that the device may write, as they are described: they need not be in memory.
    pub(crate) fn writable(&self) -> impl Iterator<Item = (GuestAddress, u32)> {
        let writable = self.descriptors.iter().filter(|descriptor| descriptor.is_write_only());
        writable.map(|descriptor| (descriptor.addr(), descriptor.len()))
    }

    /// Reads what the driver has to say.
    pub(crate) fn reader<'m>(&self, mem: &'m GuestMemoryMmap) -> Result<Reader<'m>, Violation> {
        let readable = self.descriptors.iter().filter(|descriptor| !descriptor.is_write_only());
        Ok(Reader(Pieces::map(mem, readable.map(|descriptor| (descriptor.addr(), descriptor.len())))?))
    }

    /// Writes the device's answer.
    pub(crate) fn writer<'m>(&self, mem: &'m GuestMemoryMmap) -> Result<Writer<'m>, Violation> {
        Ok(Writer { pieces: Pieces::map(mem, self.writable())?, written: 0 })
    }
}

/// A run of bytes in guest memory, in pieces that each lie within one region.
#[derive(Debug)]
struct Pieces<'m>(VecDeque<VolatileSlice<'m>>);

impl<'m> Pieces<'m> {
    fn map(
        mem: &'m GuestMemoryMmap,
        buffers: impl Iterator<Item = (GuestAddress, u32)>,
    ) -> Result<Self, Violation> {
        let mut pieces = VecDeque::new();
        for (address, len) in buffers {
            let len = usize::try_from(len).map_err(|_| Violation)?;
            for piece in GuestMemoryBackend::get_slices(mem, address, len) {
                pieces.push_back(piece.map_err(|_| Violation)?);
            }
        }
        Ok(Self(pieces))
    }

    fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Has `transfer` move bytes from or to the first piece that has any. Returns how many it did.
    fn advance<E>(
        &mut self,
        transfer: impl FnOnce(&VolatileSlice<'m>) -> Result<usize, E>,
    ) -> io::Result<usize>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        while self.0.front().is_some_and(VolatileSlice::is_empty) {
            self.0.pop_front();
        }
        let Some(piece) = self.0.front_mut() else { return Ok(0) };
        let count = transfer(piece).map_err(io::Error::other)?;
        *piece = piece.offset(count).map_err(io::Error::other)?;
        Ok(count)
    }
}

/// What the driver has to say. The end of its buffers is the end of the file.
#[derive(Debug)]
pub(crate) struct Reader<'m>(Pieces<'m>);

impl Reader<'_> {
    /// Bytes left.
    pub(crate) fn available_bytes(&self) -> usize {
        self.0.len()
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.advance(|piece| piece.read(bytes, 0))
    }
}

/// Where the driver wants the answer. When its buffers are full, nothing more can be written.
#[derive(Debug)]
pub(crate) struct Writer<'m> {
    pieces: Pieces<'m>,
    written: usize,
}

impl Writer<'_> {
    /// Bytes of room left.
    pub(crate) fn available_bytes(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes written so far.
    pub(crate) fn bytes_written(&self) -> usize {
        self.written
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.pieces.advance(|piece| piece.write(bytes, 0))?;
        self.written += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
