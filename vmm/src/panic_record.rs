//! The guest kernel's last words, which it leaves in the memory reserved for pstore/ramoops (fs/pstore/ram.c).
//!
//! All of it is written by the guest; it becomes one short line of printable characters.
#![forbid(unsafe_code)]

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::api::ExitReason;
use crate::x86::layout::{RAMOOPS, RAMOOPS_RECORD};

/// `PERSISTENT_RAM_SIG`, the first word of a record.
const SIGNATURE: u32 = 0x4347_4244;
/// Signature, start, size.
const HEADER: u64 = 12;
/// What the kernel prints when it panics (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";
/// How a panic begins that is the end of PID 1 (kernel/exit.c), and what stands before the agent's words in the log.
const INIT_ENDED: &str = "Attempted to kill init!";
const INIT: &str = "monohull-agent: ";
/// Panics for want of memory (mm/oom_kill.c).
const OUT_OF_MEMORY: [&str; 2] = ["System is deadlocked on memory", "Out of memory"];
/// Longest text that is passed on, in characters.
const MAX_TEXT: usize = 200;

/// Bytes of the log's end that are passed on.
const MAX_LOG: usize = 8 << 10;

/// A guest kernel's panic.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panic {
    /// What it means.
    pub(crate) reason: ExitReason,
    /// The end of the kernel's log up to there.
    pub(crate) log: String,
}

/// Why the guest ended, if its kernel panicked.
pub(crate) fn read(memory: &GuestMemoryMmap) -> Option<Panic> {
    let records = RAMOOPS.step_by(usize::try_from(RAMOOPS_RECORD).ok()?);
    let (record, text) = records
        .filter_map(|start| record(memory, start))
        .find_map(|record| panic_text(&record).map(|text| (record, text)))?;
    let out_of_memory = OUT_OF_MEMORY.iter().any(|prefix| text.starts_with(prefix));
    let reason =
        if out_of_memory { ExitReason::GuestOutOfMemory(text) } else { ExitReason::GuestPanic(text) };
    Some(Panic { reason, log: end_of(&record) })
}

/// The last lines of a record.
fn end_of(record: &[u8]) -> String {
    let clean = |byte: &u8| if matches!(byte, b' '..=b'~' | b'\n') { char::from(*byte) } else { '?' };
    let end = record.get(record.len().saturating_sub(MAX_LOG)..).unwrap_or_default();
    end.iter().map(clean).collect()
}

/// The content of the record at `start`: the end of the kernel's log.
fn record(memory: &GuestMemoryMmap, start: u64) -> Option<Vec<u8>> {
    // Signature, where the next byte would go, valid bytes. A panic is written from the beginning and does not wrap.
    let [signature, _, size] = memory.read_obj::<[u32; 3]>(GuestAddress(start)).ok()?;
    let size = u64::from(size);
    if signature != SIGNATURE || size > RAMOOPS_RECORD - HEADER {
        return None;
    }
    let mut text = vec![0; usize::try_from(size).ok()?];
    memory.read_slice(&mut text, GuestAddress(start + HEADER)).ok()?;
    Some(text)
}

fn panic_text(record: &[u8]) -> Option<String> {
    let record = String::from_utf8_lossy(record);
    let line = record.lines().find_map(|line| line.split_once(PANIC))?.1;
    // The kernel only knows that init has ended; init may have said why.
    let mut words = record.lines().rev().filter_map(|line| line.split_once(INIT));
    let last_words = if line.starts_with(INIT_ENDED) { words.next() } else { None };
    let line = last_words.map_or(line, |(_, text)| text);
    Some(line.trim().chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).take(MAX_TEXT).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guest_with(records: &[(u64, u32, &[u8])]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        for (index, size, text) in records {
            let start = RAMOOPS.start + index * RAMOOPS_RECORD;
            memory.write_obj([SIGNATURE, *size, *size], GuestAddress(start)).unwrap();
            memory.write_slice(text, GuestAddress(start + HEADER)).unwrap();
        }
        memory
    }

    fn reason_of(text: &str) -> Option<ExitReason> {
        read(&guest_with(&[(0, text.len() as u32, text.as_bytes())])).map(|panic| panic.reason)
    }

    #[test]
    fn the_end_of_the_log_is_printable_and_bounded() {
        let log =
            format!("{}\x1b[31m\n<0>[ 1.2] Kernel panic - not syncing: x\n", "<6>[ 1.0] y\n".repeat(1000));
        let panic = read(&guest_with(&[(0, log.len() as u32, log.as_bytes())])).unwrap();
        assert!(panic.log.ends_with("?[31m\n<0>[ 1.2] Kernel panic - not syncing: x\n"), "{}", panic.log);
        assert_eq!(panic.log.len(), MAX_LOG);
    }

    #[test]
    fn no_record_is_no_panic() {
        assert_eq!(read(&guest_with(&[])), None);
        assert_eq!(reason_of("<6>[    1.0] reboot: Restarting system\n"), None);
    }

    #[test]
    fn the_end_of_init_is_told_in_its_own_last_words() {
        let log = "<6>[ 1.0] monohull-agent: hello\n<3>[ 1.1] monohull-agent: mount the new root: No such device\n\
                   <0>[ 1.2] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n";
        assert_eq!(reason_of(log), Some(ExitReason::GuestPanic("mount the new root: No such device".into())));
        let other = log.replace("Attempted to kill init!", "VFS: x");
        assert_eq!(reason_of(&other), Some(ExitReason::GuestPanic("VFS: x exitcode=0x00000100".into())));
    }

    #[test]
    fn a_panic_is_its_one_line() {
        let log = "====1.5-D\nPanic#1 Part1\n<4>[ 1.0] x\n<0>[ 1.2] Kernel panic - not syncing: Attempted to kill init! \
                   exitcode=0x00000100\n<4>[ 1.2] CPU: 0\n";
        let text = "Attempted to kill init! exitcode=0x00000100";
        assert_eq!(reason_of(log), Some(ExitReason::GuestPanic(text.into())));
    }

    #[test]
    fn want_of_memory_is_told_apart() {
        for text in ["System is deadlocked on memory", "Out of memory and no killable processes..."] {
            let log = format!("<0>[ 1.2] Kernel panic - not syncing: {text}\n");
            assert_eq!(reason_of(&log), Some(ExitReason::GuestOutOfMemory(text.into())));
        }
    }

    #[test]
    fn a_later_record_is_found() {
        let log = b"Kernel panic - not syncing: x\n";
        let memory = guest_with(&[(0, 3, b"old"), (3, log.len() as u32, log)]);
        assert_eq!(read(&memory).map(|panic| panic.reason), Some(ExitReason::GuestPanic("x".into())));
    }

    #[test]
    fn a_size_beyond_the_record_is_no_record() {
        let log = b"Kernel panic - not syncing: x\n";
        assert_eq!(read(&guest_with(&[(0, u32::MAX, log)])), None);
        assert_eq!(read(&guest_with(&[(0, RAMOOPS_RECORD as u32 - 11, log)])), None);
    }

    proptest! {
        #[test]
        fn whatever_a_guest_writes_becomes_a_short_printable_line(noise: Vec<u8>) {
            let mut text = PANIC.as_bytes().to_vec();
            text.extend(noise);
            text.truncate(4000);
            let panic = read(&guest_with(&[(0, text.len() as u32, &text)]));
            if let Some(ExitReason::GuestPanic(line)) = panic.map(|panic| panic.reason) {
                prop_assert!(line.len() <= MAX_TEXT && line.bytes().all(|b| (b' '..=b'~').contains(&b)));
            }
        }
    }
}
