//! Archives of which an entry's names and attributes take a bounded amount of memory: the reader of archives takes what is
//! said of an entry into memory whole, and a few compressed bytes can say gigabytes.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use tar::{Entries, Entry, EntryType};

/// Most bytes of an entry's headers: its names, which Linux has no use for beyond 4096 bytes, and attributes, of which it takes
/// 64 KiB each.
pub(super) const MAX_HEADERS: u64 = 1 << 20;
/// Contents take whole blocks.
const BLOCK: u64 = 512;

/// A stream that is not read beyond a limit.
pub(super) struct Metered<R> {
    inner: R,
    meter: Rc<Meter>,
}

#[derive(Default)]
struct Meter {
    /// Where in the stream the reader is.
    at: Cell<u64>,
    /// Where it must not go on.
    end: Cell<u64>,
}

/// An archive's entries, one after the other.
pub(super) struct Walk {
    meter: Rc<Meter>,
    /// Where the headers of the next entry begin.
    next: u64,
}

/// An archive, and what walks through its entries.
pub(super) fn archive<R: Read>(inner: R) -> (tar::Archive<Metered<R>>, Walk) {
    let meter = Rc::new(Meter::default());
    (tar::Archive::new(Metered { inner, meter: meter.clone() }), Walk { meter, next: 0 })
}

impl Walk {
    /// The next entry, if there is one.
    pub(super) fn next<'a, R: Read>(
        &mut self,
        entries: &mut Entries<'a, Metered<R>>,
    ) -> io::Result<Option<Entry<'a, Metered<R>>>> {
        let begin = self.next.max(self.meter.at.get());
        self.meter.end.set(begin.saturating_add(MAX_HEADERS));
        let Some(entry) = entries.next().transpose()? else { return Ok(None) };
        self.meter.end.set(u64::MAX);
        // The size of a sparse file is another than that of what is stored of it.
        let sparse = entry.header().entry_type() == EntryType::GNUSparse;
        let stored = if sparse { entry.header().entry_size()? } else { entry.size() };
        let stored = stored.div_ceil(BLOCK).saturating_mul(BLOCK);
        self.next = entry.raw_file_position().saturating_add(stored);
        Ok(Some(entry))
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.meter.end.get().saturating_sub(self.meter.at.get());
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            let text = format!("the names and attributes of an entry take more than {MAX_HEADERS} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let count = self.inner.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.meter.at.set(self.meter.at.get() + count as u64);
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.inner.seek(to)?;
        self.meter.at.set(at);
        Ok(at)
    }
}
