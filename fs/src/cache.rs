//! What the guest may keep in its cache.
//!
//! By default it asks at every use whether what it has is still true, because the host changes files, too. That is a
//! round trip for each component of a path. The files of a container's root are changed by its own guest alone: for them
//! the replies that `virtiofsd` has written are given a longer life, and closing one is not told.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock};

use monohull_fs_protocol::PRIVATE;

/// For how many seconds the guest may believe what it knows of such a file. The host changes one rarely (`cp` into a
/// container), and then the guest sees it that much later; a new name it sees at once, because it asks for what it does
/// not know.
const LIFE: u64 = 1;
/// For how many nanoseconds it may believe what it has just been told of a volume: the attributes that came with a name,
/// and names and attributes of directories. It counts in ticks and rounds up, to one of 4 ms. So the calls that follow each
/// other along a path need not ask for each of its directories.
pub const MOMENT: u32 = 1;
/// The node of the tree of exports (`FUSE_ROOT_ID`).
const ROOT: u64 = 1;

/// Operations, structures and flags of linux/fuse.h.
mod fuse {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const INIT: u32 = 26;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const CREATE: u32 = 35;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const READDIRPLUS: u32 = 44;
    /// `fuse_init_in` and `fuse_init_out`: where in a request and in what follows a reply's header their flags are.
    pub(super) const INIT_IN_FLAGS: u32 = 40 + 12;
    pub(super) const INIT_OUT_FLAGS: u32 = 12;
    /// What symbolic links say may be cached.
    pub(super) const CACHE_SYMLINKS: u32 = 1 << 23;
    /// `fuse_out_header`: length, error, unique.
    pub(super) const OUT_HEADER: u32 = 16;
    /// `fuse_entry_out`: where in it entry_valid and attr_valid are, and its length.
    pub(super) const ENTRY_VALID: u32 = 16;
    pub(super) const ENTRY_ATTR_VALID: u32 = 24;
    /// Where in it entry_valid_nsec and the file's mode are.
    pub(super) const ENTRY_VALID_NSEC: u32 = 32;
    pub(super) const ENTRY_MODE: u32 = 40 + 60;
    pub(super) const ENTRY_OUT: u32 = 128;
    /// `fuse_dirent`, which follows a `fuse_entry_out` in a listing: where in it namelen is, its length without the name,
    /// and what that is padded to.
    pub(super) const DIRENT_NAME_LENGTH: u32 = 16;
    pub(super) const DIRENT: u32 = 24;
    pub(super) const DIRENT_ALIGN: u32 = 8;
    /// `fuse_attr_out`: where attr_valid_nsec and the file's mode are.
    pub(super) const ATTR_VALID_NSEC: u32 = 8;
    pub(super) const ATTR_MODE: u32 = 16 + 60;
    /// The type of a file in its mode, and that of a directory.
    pub(super) const TYPE: u32 = 0o170_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    /// `fuse_open_out`: where open_flags is.
    pub(super) const OPEN_FLAGS: u32 = 8;
    /// Opening the file does not empty its cache; nor the directory's.
    pub(super) const KEEP_CACHE: u32 = 1 << 1;
    pub(super) const CACHE_DIR: u32 = 1 << 3;
    /// Closing the file need not be told.
    pub(super) const NO_FLUSH: u32 = 1 << 5;
}

/// A request and its reply, in a slot.
pub trait Exchange {
    /// A number of the request, `offset` bytes from its beginning.
    fn request<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// A number of the reply.
    fn reply<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Changes the reply.
    fn change(&self, offset: u32, bytes: &[u8]);
}

/// The nodes that only the guest changes.
#[derive(Debug, Default)]
pub struct Cache {
    nodes: RwLock<HashSet<u64>>,
}

impl Cache {
    /// Looks at an answered request, and gives its reply the life it may have.
    ///
    /// What it gets wrong, because the guest or VMM changes the slot meanwhile, harms that guest's own view alone.
    pub fn pass(&self, exchange: &impl Exchange) -> Option<()> {
        let operation = exchange.request(4).map(u32::from_ne_bytes)?;
        let node = exchange.request(16).map(u64::from_ne_bytes)?;
        match operation {
            fuse::FORGET => self.forget(node),
            fuse::BATCH_FORGET => {
                let count = exchange.request(40).map(u32::from_ne_bytes)?;
                for index in 0..count {
                    // Ends at the end of the slot.
                    let offset = index.checked_mul(16)?.checked_add(48)?;
                    self.forget(exchange.request(offset).map(u64::from_ne_bytes)?);
                }
            }
            _ if exchange.reply(4).map(i32::from_ne_bytes)? != 0 => {}
            fuse::INIT => began(exchange)?,
            fuse::LOOKUP if node == ROOT && exchange.request(40)? == [PRIVATE as u8] => {
                self.entry(exchange, fuse::OUT_HEADER)?;
            }
            fuse::LOOKUP | fuse::MKDIR if node != ROOT && !self.has(node) => walked(exchange)?,
            // A directory of ours, of which nothing but names matters: the guest looks at its mode before each.
            fuse::GETATTR if node == ROOT => exchange.change(fuse::OUT_HEADER, &LIFE.to_ne_bytes()),
            fuse::GETATTR if !self.has(node) => asked(exchange)?,
            _ if !self.has(node) => {}
            fuse::LOOKUP | fuse::SYMLINK | fuse::MKNOD | fuse::MKDIR | fuse::LINK => {
                self.entry(exchange, fuse::OUT_HEADER)?;
            }
            fuse::READDIRPLUS => self.listing(exchange),
            fuse::CREATE => {
                self.entry(exchange, fuse::OUT_HEADER)?;
                opened(exchange, fuse::OUT_HEADER + fuse::ENTRY_OUT)?;
            }
            fuse::OPEN | fuse::OPENDIR => opened(exchange, fuse::OUT_HEADER)?,
            fuse::GETATTR | fuse::SETATTR => exchange.change(fuse::OUT_HEADER, &LIFE.to_ne_bytes()),
            _ => {}
        }
        Some(())
    }

    /// The reply has, at `at`, an entry of a directory that only the guest changes.
    fn entry(&self, exchange: &impl Exchange, at: u32) -> Option<()> {
        let node = exchange.reply(at).map(u64::from_ne_bytes)?;
        for field in [fuse::ENTRY_VALID, fuse::ENTRY_ATTR_VALID] {
            exchange.change(at + field, &LIFE.to_ne_bytes());
        }
        if !self.has(node) {
            self.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(node);
        }
        Some(())
    }

    /// The reply is a list of such entries, until it ends.
    fn listing(&self, exchange: &impl Exchange) {
        let mut at = fuse::OUT_HEADER;
        while let Some(next) = self.listed(exchange, at) {
            at = next;
        }
    }

    /// One of them. Returns where the next one is.
    fn listed(&self, exchange: &impl Exchange, at: u32) -> Option<u32> {
        // The directory itself and its parent are not looked up.
        if exchange.reply(at).map(u64::from_ne_bytes)? != 0 {
            self.entry(exchange, at)?;
        }
        let name = at.checked_add(fuse::ENTRY_OUT)?;
        let length = exchange.reply(name.checked_add(fuse::DIRENT_NAME_LENGTH)?).map(u32::from_ne_bytes)?;
        name.checked_add(fuse::DIRENT)?.checked_add(length)?.checked_next_multiple_of(fuse::DIRENT_ALIGN)
    }

    fn has(&self, node: u64) -> bool {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    /// The guest lets go of a node, perhaps not for the last time: then its directory's next lookup adds it again.
    fn forget(&self, node: u64) {
        if self.has(node) {
            self.nodes.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
        }
    }
}

/// What a symbolic link says never changes: another link is another file.
fn began(exchange: &impl Exchange) -> Option<()> {
    let offered = exchange.request(fuse::INIT_IN_FLAGS).map(u32::from_ne_bytes)?;
    let at = fuse::OUT_HEADER + fuse::INIT_OUT_FLAGS;
    let flags = exchange.reply(at).map(u32::from_ne_bytes)? | offered & fuse::CACHE_SYMLINKS;
    exchange.change(at, &flags.to_ne_bytes());
    Some(())
}

/// A directory of a volume, on a path that is walked more than once in a moment.
fn walked(exchange: &impl Exchange) -> Option<()> {
    let mode = exchange.reply(fuse::OUT_HEADER + fuse::ENTRY_MODE).map(u32::from_ne_bytes)?;
    if mode & fuse::TYPE == fuse::DIRECTORY {
        exchange.change(fuse::OUT_HEADER + fuse::ENTRY_VALID_NSEC, &MOMENT.to_ne_bytes());
    }
    Some(())
}

/// Who asks for what a file is that it has open may have been told of a change by other means.
fn asked(exchange: &impl Exchange) -> Option<()> {
    let mode = exchange.reply(fuse::OUT_HEADER + fuse::ATTR_MODE).map(u32::from_ne_bytes)?;
    if mode & fuse::TYPE != fuse::DIRECTORY {
        exchange.change(fuse::OUT_HEADER + fuse::ATTR_VALID_NSEC, &[0; 4]);
    }
    Some(())
}

fn opened(exchange: &impl Exchange, at: u32) -> Option<()> {
    let flags = exchange.reply(at + fuse::OPEN_FLAGS).map(u32::from_ne_bytes)?;
    // There is nothing that the host would do at the end of each use: locks are the guest's, and the last end is told.
    let flags = flags | fuse::KEEP_CACHE | fuse::CACHE_DIR | fuse::NO_FLUSH;
    exchange.change(at + fuse::OPEN_FLAGS, &flags.to_ne_bytes());
    Some(())
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::unwrap_used)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    struct Slot {
        request: Vec<u8>,
        reply: RefCell<Vec<u8>>,
    }

    impl Exchange for Slot {
        fn request<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.request.get(offset as usize..)?.first_chunk().copied()
        }

        fn reply<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
            self.reply.borrow().get(offset as usize..)?.first_chunk().copied()
        }

        fn change(&self, offset: u32, bytes: &[u8]) {
            self.reply.borrow_mut()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    impl Cache {
        /// Passes a request about `node` whose reply begins with the number `answer`; returns the reply.
        fn ask(&self, operation: u32, node: u64, arguments: &[u8], answer: u64) -> Vec<u8> {
            let mut request = vec![0; 40];
            request[4..8].copy_from_slice(&operation.to_ne_bytes());
            request[16..24].copy_from_slice(&node.to_ne_bytes());
            request.extend(arguments);
            let mut reply = vec![0; 16 + 128 + 16];
            reply[16..24].copy_from_slice(&answer.to_ne_bytes());
            let slot = Slot { request, reply: reply.into() };
            self.pass(&slot);
            slot.reply.into_inner()
        }
    }

    fn lives(reply: &[u8]) -> bool {
        let number = |at: usize| u64::from_ne_bytes(reply[at..at + 8].try_into().unwrap());
        assert_eq!(number(32), number(40));
        number(32) == LIFE
    }

    #[test]
    fn what_is_below_a_private_export_lives_longer() {
        let cache = Cache::default();
        assert!(lives(&cache.ask(fuse::LOOKUP, ROOT, b"r7\0", 2)));
        assert!(lives(&cache.ask(fuse::LOOKUP, 2, b"etc\0", 3)));
        assert!(lives(&cache.ask(fuse::MKDIR, 3, b"new\0", 4)));
        let opened = cache.ask(fuse::OPEN, 4, &[], 9);
        assert_eq!(opened[24], 2 | 8 | 32, "and keeps its cache");
        let created = cache.ask(fuse::CREATE, 3, b"file\0", 5);
        assert!(lives(&created));
        assert_eq!(created[16 + 128 + 8], 2 | 8 | 32);
        assert_eq!(cache.ask(fuse::GETATTR, 5, &[], 0)[16..24], LIFE.to_ne_bytes());
    }

    /// A list of `.` and files with these nodes, and the entries of the reply that would be sent.
    fn list(cache: &Cache, directory: u64, nodes: &[u64]) -> Vec<Vec<u8>> {
        let mut request = vec![0; 40];
        request[4..8].copy_from_slice(&fuse::READDIRPLUS.to_ne_bytes());
        request[16..24].copy_from_slice(&directory.to_ne_bytes());
        let mut reply = vec![0; 16];
        let mut places = Vec::new();
        for (node, name) in
            [(0, "."), (0, "..")].into_iter().chain(nodes.iter().map(|node| (*node, "a-file")))
        {
            places.push(reply.len());
            let mut entry = vec![0; 128 + 24];
            entry[..8].copy_from_slice(&node.to_ne_bytes());
            entry[128 + 16] = name.len() as u8;
            entry.extend(name.bytes());
            entry.resize(entry.len().next_multiple_of(8), 0);
            reply.extend(entry);
        }
        let slot = Slot { request, reply: reply.into() };
        cache.pass(&slot);
        let reply = slot.reply.into_inner();
        // As `lives` expects it: after a header.
        places.into_iter().map(|at| [&[0; 16], &reply[at..at + 128]].concat()).collect()
    }

    #[test]
    fn a_listing_tells_of_all_its_files() {
        let cache = Cache::default();
        cache.ask(fuse::LOOKUP, ROOT, b"r7\0", 2);
        let lived: Vec<bool> = list(&cache, 2, &[3, 4]).iter().map(|entry| lives(entry)).collect();
        assert_eq!(lived, [false, false, true, true]);
        assert!(lives(&cache.ask(fuse::LOOKUP, 4, b"below\0", 5)), "and what is below them");
        let lived = list(&cache, 9, &[10]).iter().any(|entry| lives(entry));
        assert!(!lived, "not those of a volume");
    }

    #[test]
    fn the_name_of_a_directory_is_known_for_a_moment() {
        let life = |node: u64, mode: u32| {
            let mut request = vec![0; 40];
            request[4..8].copy_from_slice(&fuse::LOOKUP.to_ne_bytes());
            request[16..24].copy_from_slice(&node.to_ne_bytes());
            request.extend(b"name\0");
            let mut reply = vec![0; 16 + 128];
            reply[16 + 100..][..4].copy_from_slice(&mode.to_ne_bytes());
            let slot = Slot { request, reply: reply.into() };
            Cache::default().pass(&slot);
            slot.reply.into_inner()[16 + 32]
        };
        assert_eq!((life(5, 0o040_755), life(5, 0o100_644), life(ROOT, 0o040_755)), (1, 0, 0));
    }

    #[test]
    fn an_open_file_of_a_volume_is_asked_for_at_every_use() {
        let life = |mode: u32| {
            let mut request = vec![0; 40];
            request[4..8].copy_from_slice(&fuse::GETATTR.to_ne_bytes());
            request[16] = 5;
            let mut reply = vec![0; 16 + 16 + 88];
            reply[16 + 8] = 1;
            reply[16 + 76..][..4].copy_from_slice(&mode.to_ne_bytes());
            let slot = Slot { request, reply: reply.into() };
            Cache::default().pass(&slot);
            slot.reply.into_inner()[16 + 8]
        };
        assert_eq!((life(0o040_755), life(0o100_644)), (1, 0));
    }

    #[test]
    fn the_tree_of_exports_itself_lives_longer_and_its_names_do_not() {
        let cache = Cache::default();
        assert_eq!(cache.ask(fuse::GETATTR, ROOT, &[], 0)[16..24], LIFE.to_ne_bytes());
        assert!(!lives(&cache.ask(fuse::LOOKUP, ROOT, b"7\0", 2)));
        assert_eq!(cache.ask(fuse::GETATTR, 2, &[], 0)[16..24], [0; 8]);
    }

    #[test]
    fn symbolic_links_are_cached_by_a_guest_that_can() {
        let flags = |offered: u32| {
            let arguments = [7, 31, 0, offered].map(u32::to_ne_bytes).concat();
            Cache::default().ask(fuse::INIT, 0, &arguments, 7)[28..32].to_vec()
        };
        assert_eq!(flags(1 << 23 | 1), (1_u32 << 23).to_ne_bytes());
        assert_eq!(flags(1), [0; 4]);
    }

    #[test]
    fn volumes_are_asked_for_at_every_use() {
        let cache = Cache::default();
        assert!(!lives(&cache.ask(fuse::LOOKUP, ROOT, b"7\0", 2)));
        assert!(!lives(&cache.ask(fuse::LOOKUP, 2, b"r\0", 3)));
        assert_eq!(cache.ask(fuse::OPEN, 3, &[], 9)[24], 0);
        assert_eq!(cache.ask(fuse::GETATTR, 3, &[], 0)[16..24], [0; 8]);
    }

    #[test]
    fn forgotten_nodes_are_forgotten() {
        let cache = Cache::default();
        for (name, node) in [(b"r1\0", 2), (b"r2\0", 3), (b"r3\0", 4)] {
            cache.ask(fuse::LOOKUP, ROOT, name, node);
        }
        cache.ask(fuse::FORGET, 2, &1_u64.to_ne_bytes(), 0);
        let mut batch = [2_u32, 0].map(u32::to_ne_bytes).concat();
        batch.extend([3_u64, 1, 4, 1].map(u64::to_ne_bytes).concat());
        cache.ask(fuse::BATCH_FORGET, 0, &batch, 0);
        assert!(cache.nodes.read().unwrap().is_empty());
    }

    #[test]
    fn errors_and_short_replies_are_left_alone() {
        let cache = Cache::default();
        let slot = |reply: Vec<u8>| {
            let mut request = vec![0; 40];
            request[4] = fuse::LOOKUP as u8;
            request[16] = ROOT as u8;
            request.extend(b"r1\0");
            Slot { request, reply: reply.into() }
        };
        let error = [&16_u32.to_ne_bytes()[..], &(-2_i32).to_ne_bytes(), &[0; 8]].concat();
        cache.pass(&slot(error));
        cache.pass(&slot(Vec::new()));
        cache.pass(&Slot { request: vec![1, 2], reply: Vec::new().into() });
        assert!(cache.nodes.read().unwrap().is_empty());
    }
}
