//! Every short sequence of additions and removals, against a list of what is where.

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

fn file(sectors: u64) -> File {
    let file = File::from(memfd_create("extent", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(sectors * SECTOR).unwrap();
    file
}

fn saved(sectors: u64) -> SavedExtent {
    SavedExtent { sectors, read_only: true }
}

#[test]
fn what_was_saved_comes_back_with_its_gaps_and_its_end() {
    let mut extents = Extents::default();
    for sectors in [3, 5, 7] {
        extents.add(file(sectors), true).unwrap();
    }
    extents.remove(2 * ALIGNMENT).unwrap();
    let state = extents.save();

    let mut copy = Extents::default();
    copy.restore(&state).unwrap();
    assert_eq!((copy.save(), copy.missing(), copy.capacity()), (state, 2, extents.capacity()));
    assert!(copy.locate(Range { start: ALIGNMENT, sectors: 1 }).is_err(), "it has no file");
    copy.fill(file(7), 3 * ALIGNMENT, true).unwrap();
    copy.fill(file(3), ALIGNMENT, true).unwrap();
    assert!(copy.locate(Range { start: ALIGNMENT, sectors: 3 }).is_ok());
    assert!(copy.locate(Range { start: 2 * ALIGNMENT, sectors: 1 }).is_err());
    assert_eq!(copy.add(file(1), true).unwrap().start, 4 * ALIGNMENT);
}

#[test]
fn a_disk_that_cannot_have_been_saved_is_refused() {
    let good = [(ALIGNMENT, saved(1)), (2 * ALIGNMENT, saved(1))];
    let restore = |extents: &[(u64, SavedExtent)], end| {
        let state = DiskState { extents: extents.iter().copied().collect(), end };
        Extents::default().restore(&state).is_ok()
    };
    assert!(restore(&good, 2 * ALIGNMENT + 1) && restore(&good, 9 * ALIGNMENT) && restore(&[], 0));
    assert!(!restore(&good, 2 * ALIGNMENT), "it ends within an extent");
    assert!(!restore(&[(0, saved(1))], ALIGNMENT), "where a partition table would be");
    assert!(!restore(&[(ALIGNMENT + 1, saved(1))], 9 * ALIGNMENT));
    assert!(!restore(&[(ALIGNMENT, saved(0))], 9 * ALIGNMENT));
    assert!(!restore(&[(ALIGNMENT, saved(ALIGNMENT + 1)), good[1]], 9 * ALIGNMENT), "they overlap");
    assert!(!restore(&[(ALIGNMENT, saved(u64::MAX))], u64::MAX) && !restore(&[], u64::MAX));
    let many: Vec<_> = (1..=256).map(|number| (number * ALIGNMENT, saved(1))).collect();
    assert!(!restore(&many, 999 * ALIGNMENT) && restore(&many[..255], 999 * ALIGNMENT));
}

/// Lengths in sectors: the least, one that ends where the next begins, and one that goes just beyond that.
const LENGTHS: [u64; 3] = [1, ALIGNMENT, ALIGNMENT + 1];
/// Whether an extent is read-only, by its number.
const READ_ONLY: [bool; 2] = [false, true];
/// Additions, and removals of the first, second and last extent.
const CHOICES: usize = LENGTHS.len() * READ_ONLY.len() + 3;
const STEPS: u32 = 4;

/// What the model knows of an extent.
#[derive(Clone, Copy, Debug)]
struct Known {
    extent: Extent,
    read_only: bool,
    inode: u64,
}

#[derive(Debug, Default)]
struct Model {
    extents: Extents,
    known: Vec<Known>,
    /// All starts there have ever been.
    used: Vec<u64>,
    /// Where the last of them ended.
    end: u64,
}

fn inode(file: &File) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap())
}

impl Model {
    fn add(&mut self, sectors: u64, read_only: bool) {
        let file = file(sectors);
        let inode = inode(&file);
        let extent = self.extents.add(file, read_only).unwrap();
        assert_eq!(extent.sectors, sectors);
        assert!(extent.start > 0 && extent.start.is_multiple_of(ALIGNMENT));
        assert!(self.used.iter().all(|start| *start < extent.start), "sectors are never used again");
        self.used.push(extent.start);
        self.end = extent.start + extent.sectors;
        self.known.push(Known { extent, read_only, inode });
    }

    fn remove(&mut self, index: usize) {
        if index >= self.known.len() {
            return;
        }
        let known = self.known.remove(index);
        let removed = self.extents.remove(known.extent.start).unwrap();
        assert_eq!(inode(&removed.file), known.inode);
        assert!(matches!(self.extents.remove(known.extent.start), Err(BlkError::Unknown(_))));
    }

    /// Asks for ranges of some lengths around every boundary there is or was.
    fn check(&mut self) {
        assert_eq!(
            self.extents.capacity(),
            self.end.max(ALIGNMENT),
            "the disk ends behind all there ever were"
        );
        for start in self.used.clone() {
            for length in LENGTHS {
                for first in [start - 1, start, start + length - 1, start + length, u64::MAX] {
                    for sectors in [0, 1, 2, length, u64::MAX] {
                        self.check_range(Range { start: first, sectors });
                    }
                }
            }
        }
    }

    fn check_range(&mut self, range: Range) {
        let is_within = |extent: Extent| {
            let end = range.start.checked_add(range.sectors);
            range.sectors > 0
                && range.start >= extent.start
                && end.is_some_and(|end| end <= extent.start + extent.sectors)
        };
        let owner = self.known.iter().find(|known| is_within(known.extent));
        let found = self.extents.locate(range).map(|(backing, offset)| (inode(&backing.file), offset));
        let expected = owner.map(|known| (known.inode, (range.start - known.extent.start) * SECTOR));
        assert_eq!(found.ok(), expected, "{range:?} of {:?}", self.known);
        let writable = self.extents.locate_writable(range).is_ok();
        assert_eq!(writable, owner.is_some_and(|known| !known.read_only), "{range:?} of {:?}", self.known);
    }
}

#[test]
fn every_range_is_in_the_one_extent_that_holds_it_or_in_none() {
    for number in 0..CHOICES.pow(STEPS) {
        let mut model = Model::default();
        for step in 0..STEPS {
            match number / CHOICES.pow(step) % CHOICES {
                choice @ 0..6 => model.add(LENGTHS[choice / 2], READ_ONLY[choice % 2]),
                6 => model.remove(0),
                7 => model.remove(1),
                _ => model.remove(model.known.len().saturating_sub(1)),
            }
        }
        model.check();
    }
}
