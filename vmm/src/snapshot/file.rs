//! The state file: a header that tells what follows, and the state.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | "MHULSNAP" |
//! | 8 | 4 | [`VERSION`], little endian as all numbers |
//! | 12 | 4 | CRC-32 (IEEE) of the state |
//! | 16 | 8 | length of the state in bytes |
//! | 24 | | the state: a [`State`] in postcard's format |
//!
//! The checksum is against accidents. Against malice there is what follows the decoding: whoever reads a state checks it.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::State;

const MAGIC: [u8; 8] = *b"MHULSNAP";
/// Of the format, which is that of [`State`]: any change of the types in it is another version. A VMM reads its own only.
pub(crate) const VERSION: u32 = 4;
pub(crate) const HEADER: usize = 24;
/// Longest state: several times that of the largest VM.
pub(crate) const MAX_STATE: usize = 8 << 20;

/// A file that is not a state file of this VMM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It can't be read.
    #[error("can't read the state file")]
    Read(#[source] io::Error),
    /// It can't be written.
    #[error("can't write the state file")]
    Write(#[source] io::Error),
    /// The state can't be encoded, or is longer than [`MAX_STATE`].
    #[error("the VM's state does not fit a state file")]
    Encode,
    /// Another kind of file.
    #[error("the state file is not one: it does not begin with MHULSNAP")]
    Magic,
    /// Of another version.
    #[error("the state file has format {0}, this VMM reads format {VERSION}; make the snapshot anew")]
    Version(u32),
    /// Cut off, or with something after its end.
    #[error("the state file has {found} bytes, its header says {said}; make the snapshot anew")]
    Length {
        /// Bytes of the state that the file has room for.
        found: u64,
        /// Bytes of the state that there should be.
        said: u64,
    },
    /// Something else than what was written.
    #[error("the state file is damaged: its checksum is wrong; make the snapshot anew")]
    Checksum,
    /// No state of a VM.
    #[error("the state file does not hold the state of a VM")]
    Malformed,
}

/// Writes the state into an empty file. Returns the bytes of the file.
pub(crate) fn write(file: &File, state: &State) -> Result<u64, FileError> {
    let bytes = encode(state)?;
    file.write_all_at(&bytes, 0).map_err(FileError::Write)?;
    Ok(bytes.len() as u64)
}

/// Reads what [`write`] has written.
pub(crate) fn read(file: &File) -> Result<State, FileError> {
    let len = file.metadata().map_err(FileError::Read)?.len();
    let most = (HEADER + MAX_STATE) as u64;
    // A longer one is no state file, but its header says best what is wrong with it.
    let mut bytes = vec![0; usize::try_from(len.min(most + 1)).unwrap_or(HEADER)];
    file.read_exact_at(&mut bytes, 0).map_err(FileError::Read)?;
    decode(&bytes)
}

/// A state file's contents.
pub(crate) fn encode(state: &State) -> Result<Vec<u8>, FileError> {
    let state = postcard::to_allocvec(state).map_err(|_| FileError::Encode)?;
    if state.len() > MAX_STATE {
        return Err(FileError::Encode);
    }
    let mut bytes = Vec::with_capacity(HEADER + state.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(&state).to_le_bytes());
    bytes.extend((state.len() as u64).to_le_bytes());
    bytes.extend(state);
    Ok(bytes)
}

/// The state in a state file's contents.
pub(crate) fn decode(bytes: &[u8]) -> Result<State, FileError> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(FileError::Magic)?;
    if *magic != MAGIC {
        return Err(FileError::Magic);
    }
    let short = || FileError::Length { found: 0, said: 0 };
    let (version, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (checksum, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (length, state) = rest.split_first_chunk().ok_or_else(short)?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(FileError::Version(version));
    }
    let (found, said) = (state.len() as u64, u64::from_le_bytes(*length));
    if found != said || state.len() > MAX_STATE {
        return Err(FileError::Length { found, said });
    }
    if crc32fast::hash(state) != u32::from_le_bytes(*checksum) {
        return Err(FileError::Checksum);
    }
    parse(state)
}

/// Decodes a state, which must be just what this VMM would have written for it.
pub(crate) fn parse(bytes: &[u8]) -> Result<State, FileError> {
    let state: State = postcard::from_bytes(bytes).map_err(|_| FileError::Malformed)?;
    // The decoder takes structures of the kernel that are too short, and whatever follows the end.
    match postcard::to_allocvec(&state) {
        Ok(again) if again == bytes => Ok(state),
        _ => Err(FileError::Malformed),
    }
}
