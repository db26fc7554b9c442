//! The cpio "newc" format, as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst).

/// `S_IFDIR`, `S_IFCHR` and `S_IFREG` of stat(2).
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
/// Name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// Names and data begin at multiples of this.
const ALIGNMENT: usize = 4;

/// What an entry is. All belong to root and are of 1970.
pub(crate) enum Entry<'a> {
    Directory { mode: u32 },
    CharacterDevice { mode: u32, major: u32, minor: u32 },
    File { mode: u32, data: &'a [u8] },
}

/// An archive under construction. Methods return none when a size does not fit the format's 32 bits.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds an entry; its parent must have been added before. `name` has no leading slash.
    pub(crate) fn add(&mut self, name: &str, entry: Entry<'_>) -> Option<()> {
        let (mode, links, device, data): (_, _, _, &[u8]) = match entry {
            Entry::Directory { mode } => (DIRECTORY | mode, 2, (0, 0), &[]),
            Entry::CharacterDevice { mode, major, minor } => {
                (CHARACTER_DEVICE | mode, 1, (major, minor), &[])
            }
            Entry::File { mode, data } => (REGULAR | mode, 1, (0, 0), data),
        };
        self.write(name, (mode, links, device), data)
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Option<Vec<u8>> {
        self.write(TRAILER, (0, 1, (0, 0)), &[])?;
        Some(self.bytes)
    }

    fn write(
        &mut self,
        name: &str,
        (mode, links, device): (u32, u32, (u32, u32)),
        data: &[u8],
    ) -> Option<()> {
        self.entries += 1;
        let size = u32::try_from(data.len()).ok()?;
        let name_size = u32::try_from(name.len()).ok()?.checked_add(1)?;
        let (inode, (major, minor)) = (self.entries, device);
        // inode, mode, uid, gid, links, mtime, size, device of the filesystem, device number, length of the name, checksum
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(data);
        self.align();
        Some(())
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_the_formats_layout() {
        let mut archive = Archive::default();
        archive.add("ab", Entry::File { mode: 0o755, data: b"xyz" }).unwrap();
        let header = "070701\
            00000001000081ed00000000000000000000000100000000\
            000000030000000000000000000000000000000000000003\
            00000000";
        // 110 bytes of header and 3 of name, to 116; 3 of data, to 120.
        let expected = [header.as_bytes(), b"ab\0", &[0; 3], b"xyz", &[0; 1]].concat();
        assert_eq!(archive.bytes, expected);
    }

    #[test]
    fn devices_have_their_numbers() {
        let mut archive = Archive::default();
        archive.add("c", Entry::CharacterDevice { mode: 0o600, major: 5, minor: 1 }).unwrap();
        assert_eq!(&archive.bytes[78..94], b"0000000500000001");
        assert_eq!(&archive.bytes[14..22], b"00002180");
    }

    #[test]
    fn an_archive_ends_with_the_trailer() {
        let bytes = Archive::default().finish().unwrap();
        assert!(bytes.windows(TRAILER.len()).any(|window| window == TRAILER.as_bytes()));
        assert_eq!(bytes.len() % ALIGNMENT, 0);
    }
}
