//! The names of files in a guest's requests: that they are names, and not paths.
//!
//! `virtiofsd` hands the kernel what it gets. By a path a guest would walk from one of its directories into another, through
//! the pod's tree, as no guest's kernel does: each component is a request of its own there.

/// Operations (linux/fuse.h).
const LOOKUP: u32 = 1;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const CREATE: u32 = 35;
const RENAME2: u32 = 45;

/// Longest name that Linux sends, with the zero that ends it (`FUSE_NAME_MAX`).
const NAME: usize = 1025;
/// Most bytes of a request's arguments, of which the names are a part, that [`are_bad`] has to see.
pub(crate) const MOST: usize = 16 + 2 * NAME;

/// Where in the arguments of an operation the names begin, and how many there are.
fn place(operation: u32) -> Option<(usize, usize)> {
    match operation {
        LOOKUP | SYMLINK | UNLINK | RMDIR => Some((0, 1)),
        MKDIR | LINK => Some((8, 1)),
        MKNOD | CREATE => Some((16, 1)),
        RENAME => Some((8, 2)),
        RENAME2 => Some((16, 2)),
        _ => None,
    }
}

/// Whether an operation has names at all.
pub(crate) fn has_any(operation: u32) -> bool {
    place(operation).is_some()
}

/// Whether one of an operation's names is none: empty, the directory itself or the one above it, or a path.
pub(crate) fn are_bad(operation: u32, arguments: &[u8]) -> bool {
    let Some((at, count)) = place(operation) else { return false };
    let mut names = arguments.get(at..).unwrap_or_default().split(|byte| *byte == 0).take(count);
    names.any(|name| matches!(name, b"" | b"." | b"..") || name.contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_behind_the_numbers_of_each_operation() {
        for (operation, numbers, count) in [
            (LOOKUP, 0, 1),
            (SYMLINK, 0, 1),
            (MKNOD, 16, 1),
            (MKDIR, 8, 1),
            (UNLINK, 0, 1),
            (RMDIR, 0, 1),
            (RENAME, 8, 2),
            (LINK, 8, 1),
            (CREATE, 16, 1),
            (RENAME2, 16, 2),
        ] {
            let with = |first: &str, second: &str| {
                let names = format!("{first}\0{second}\0");
                are_bad(operation, &[vec![b'/'; numbers], names.into_bytes()].concat())
            };
            for bad in ["", ".", "..", "/", "a/b", "/a", "a/"] {
                assert!(with(bad, "b"), "{operation} {bad:?}");
                // What follows a single name is not for us: a link's target is any path.
                assert_eq!(with("a", bad), count == 2, "{operation} {bad:?}");
            }
            assert!(!with("a", "b") && !with("...", "..a") && !with("a b\\", "ä"), "{operation}");
        }
        assert!(!are_bad(15, b"/"), "READ has no name");
    }
}
