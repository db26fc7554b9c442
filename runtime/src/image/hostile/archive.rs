//! Layers, as hostile builders write them.

use super::*;

/// Parts of names.
const PARTS: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"a",
    b"b",
    b"precious",
    b"..",
    b".",
    b"",
    b".wh.a",
    b".wh.b",
    b".wh..wh..opq",
    b".wh.",
    b".wh...",
    b".wh..wh.x",
    b"\xff\n\x1b",
];
/// Types of entries: the usual ones, and those that say something of the next.
const TYPES: [u8; 16] = *b"00055112203467SL";

/// A layer: a tar stream.
pub(super) fn layer(input: &mut Input<'_>, outside: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..input.u8() % 16 {
        match input.u8() % 8 {
            0 => {
                let mut records = Vec::new();
                for _ in 0..1 + input.u8() % 3 {
                    records.extend(record(input, outside));
                }
                let kind = if input.u8() < 240 { b'x' } else { b'g' };
                entry(&mut stream, kind, b"pax", b"", records, input);
            }
            1 => {
                let kind = if input.u8().is_multiple_of(2) { b'L' } else { b'K' };
                let data = name(input, outside);
                entry(&mut stream, kind, b"././@LongLink", b"", data, input);
            }
            _ => {
                let kind = TYPES[usize::from(input.u8()) % TYPES.len()];
                let (name, link) = (name(input, outside), name(input, outside));
                let data = input.take::<8>();
                let data = data[..usize::from(input.u8()) % 9].repeat(1 + usize::from(input.u8() / 240));
                entry(&mut stream, kind, &name, &link, data, input);
            }
        }
    }
    stream.extend([0; 1024]);
    let cut = usize::from(input.u16()) * usize::from(input.u8() / 240);
    stream.truncate(stream.len() - cut.min(stream.len()));
    stream
}

/// A name, at most of what is outside.
fn name(input: &mut Input<'_>, outside: &Path) -> Vec<u8> {
    let parts: Vec<_> =
        (0..1 + input.u8() % 3).map(|_| PARTS[usize::from(input.u8()) % PARTS.len()]).collect();
    let name = parts.join(&b'/');
    let name = if input.u8() < 16 { [&name[..], b"/"].concat().repeat(60) } else { name };
    match name.strip_prefix(b"/") {
        Some(name) => [outside.as_os_str().as_bytes(), b"/", name].concat(),
        None => name,
    }
}

/// A record of a pax header.
fn record(input: &mut Input<'_>, outside: &Path) -> Vec<u8> {
    let (key, value): (&[u8], Vec<u8>) = match input.u8() % 8 {
        0 => (b"path", name(input, outside)),
        1 => (b"linkpath", name(input, outside)),
        2 => (b"size", input.u32().to_string().into_bytes()),
        3 => (b"uid", input.u64().to_string().into_bytes()),
        4 => (b"SCHILY.xattr.user.x", input.take::<4>().to_vec()),
        5 => (b"SCHILY.xattr.security.capability", input.take::<20>().to_vec()),
        6 => (b"SCHILY.xattr.trusted.overlay.opaque", b"y".to_vec()),
        // Seldom more than there may be.
        _ => match input.u8() {
            255 => (b"comment", b"x".repeat(3 << 19)),
            length => (b"comment", b"x".repeat(length.into())),
        },
    };
    let length = (key.len() + value.len() + 3 + input.u8() as usize / 64).to_string();
    // Its own digits count too; where that makes it longer the record lies.
    let length = (length.parse::<usize>().unwrap() + length.len()).to_string();
    [length.as_bytes(), b" ", key, b"=", &value, b"\n"].concat()
}

/// Appends an entry, whose header may lie.
fn entry(stream: &mut Vec<u8>, kind: u8, name: &[u8], link: &[u8], mut data: Vec<u8>, input: &mut Input<'_>) {
    let mut header = if input.u8() < 128 { tar::Header::new_gnu() } else { tar::Header::new_ustar() };
    header.set_size(data.len() as u64);
    header.set_mode(u32::from(input.u16()) % 0o10_000);
    // Files of the user who runs the test: the test needs no privileges.
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header.set_mtime(u64::from(input.u8()));
    let bytes = header.as_mut_bytes();
    let (name, link) = (&name[..name.len().min(99)], &link[..link.len().min(99)]);
    bytes[..name.len()].copy_from_slice(name);
    bytes[157..157 + link.len()].copy_from_slice(link);
    bytes[156] = kind;
    // Anything but the names, which must not lead to "/", and the checksum.
    for _ in 0..input.u8().saturating_sub(248) {
        let at = match input.u8() % 4 {
            0 => 100 + usize::from(input.u8()) % 48,
            1 => 156,
            2 => 257 + usize::from(input.u8()) % 88,
            // Where a GNU header has the map of a sparse file; in others a prefix of the name.
            _ => 386 + usize::from(input.u8()) % 109,
        };
        bytes[at] = if input.u8() < 128 { b'0' + input.u8() % 8 } else { input.u8() };
    }
    header.set_cksum();
    stream.extend(header.as_bytes());
    data.resize(data.len().next_multiple_of(512), 0);
    stream.extend(data);
}
