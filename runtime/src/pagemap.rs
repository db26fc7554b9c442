//! Which pages of a file that it maps privately a process has (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::sys;

/// Bytes of a page, and of what is told of one.
const PAGE: u64 = sys::PAGE as u64;
const ENTRY: u64 = 8;
/// Flags of an entry.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// A page of the file, as the process has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// It has not been used.
    Absent,
    /// It is the file's.
    Shared,
    /// It is the process's own: it has been written to, or is in a hole of the file and was used.
    Own,
}

/// The pages of `file` in process `pid`, which maps it from its beginning at consecutive addresses, at least the first of
/// them. Of what is at other addresses nothing is told. Takes root.
pub(crate) fn of(pid: i32, file: &File) -> io::Result<Vec<Page>> {
    let metadata = file.metadata()?;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let base = base(&maps, metadata.dev(), metadata.ino()).ok_or(io::ErrorKind::NotFound)?;
    let mut entries = vec![0; usize::try_from(metadata.len() / PAGE * ENTRY).map_err(io::Error::other)?];
    let mut at = base / PAGE * ENTRY;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut rest = entries.as_mut_slice();
    while !rest.is_empty() {
        match pagemap.read_at(rest, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => (rest, at) = (rest.get_mut(read..).unwrap_or_default(), at + read as u64),
        }
    }
    Ok(entries.as_chunks().0.iter().map(|entry| page(u64::from_ne_bytes(*entry))).collect())
}

fn page(entry: u64) -> Page {
    match entry {
        _ if entry & (PRESENT | SWAPPED) == 0 => Page::Absent,
        _ if entry & OF_A_FILE != 0 => Page::Shared,
        _ => Page::Own,
    }
}

/// Where the beginning of a file is in a process with these `maps` (proc_pid_maps(5)).
fn base(maps: &str, dev: u64, ino: u64) -> Option<u64> {
    let dev = format!("{:02x}:{:02x}", libc::major(dev), libc::minor(dev));
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, offset) = (fields.next()?, fields.nth(1)?);
        if fields.next()? != dev || fields.next()? != ino.to_string() {
            return None;
        }
        let number = |text| u64::from_str_radix(text, 16).ok();
        number(range.split_once('-')?.0)?.checked_sub(number(offset)?)
    })
}

#[cfg(test)]
#[allow(unsafe_code)] // Memory that a file is mapped into, and that is read and written as such.
mod tests {
    use super::*;

    #[test]
    fn what_is_the_files_is_told_from_what_is_the_processs_own() {
        use nix::sys::mman::{MapFlags, ProtFlags, mmap};
        let file = tempfile::tempfile().unwrap();
        // One page that nobody maps, and 16 between one that is read and one that is written: a fault brings its neighbours.
        file.set_len(40 * PAGE + 16).unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        file.write_all_at(&[1; 4096], 32 * PAGE).unwrap();
        let len = std::num::NonZeroUsize::new(33 * 4096).unwrap();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; what is read and written is in it.
        let (read, written) = unsafe {
            let memory = mmap(None, len, access, MapFlags::MAP_PRIVATE, &file, 0).unwrap().cast::<u8>();
            memory.byte_add(32 * 4096).write_volatile(2);
            (memory.read_volatile(), memory.byte_add(32 * 4096).read_volatile())
        };
        assert_eq!((read, written), (1, 2));
        let pages = of(std::process::id().try_into().unwrap(), &file).unwrap();
        assert_eq!(pages.len(), 40);
        assert_eq!((pages[0], pages[32], pages[20]), (Page::Shared, Page::Own, Page::Absent));
    }

    #[test]
    fn the_beginning_of_a_file_is_found_by_any_part_of_it() {
        let maps = "7f0000000000-7f0000004000 rw-p 00000000 00:00 0\n\
                    7f0000204000-7f0000300000 rw-p 00004000 00:1e 7022                       /run/a b (deleted)\n";
        assert_eq!(base(maps, libc::makedev(0, 0x1e), 7022), Some(0x7f00_0020_0000));
        assert_eq!(base(maps, libc::makedev(0, 0x1e), 702), None);
        assert_eq!(base("", 0, 0), None);
    }
}
