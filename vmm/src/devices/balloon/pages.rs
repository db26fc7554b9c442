//! The page numbers in a driver's inflate request.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::ops::Range;

/// Bytes of a page number.
pub(super) const NUMBER: usize = 4;

/// Reads at most `most` page numbers and joins those of neighbouring pages into ranges. Numbers come in any order and
/// need not be of guest memory.
pub(super) fn read(numbers: impl Read, most: usize) -> io::Result<Vec<Range<u64>>> {
    let mut bytes = Vec::new();
    // Sizes of buffers in memory fit.
    numbers.take((most * NUMBER) as u64).read_to_end(&mut bytes)?;
    let (numbers, _) = bytes.as_chunks::<NUMBER>();
    let mut pages: Vec<_> = numbers.iter().map(|number| u64::from(u32::from_le_bytes(*number))).collect();
    pages.sort_unstable();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if page <= last.end => last.end = page + 1,
            _ => ranges.push(page..page + 1),
        }
    }
    Ok(ranges)
}
