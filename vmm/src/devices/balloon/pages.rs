//! The page numbers in a driver's inflate request.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::ops::Range;

/// Bytes of a page number.
const NUMBER: u64 = 4;

/// Reads at most `most` page numbers and joins those of neighbouring pages into ranges. Numbers come in any order and
/// need not be of guest memory.
pub(super) fn read(numbers: impl Read, most: u64) -> io::Result<Vec<Range<u64>>> {
    let mut bytes = Vec::new();
    numbers.take(most * NUMBER).read_to_end(&mut bytes)?;
    let (numbers, _) = bytes.as_chunks::<{ NUMBER as usize }>();
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
