//! The agent's log: the kernel's, which the debug console shows and the panic record keeps.

use std::fmt::Display;
use std::io::Write;

/// Longest record that the kernel takes, less its own prefix (`PRINTKRB_RECORD_MAX` of printk).
const LONGEST: usize = 900;

/// Logs an error. Never fails: there is nobody to tell.
pub(crate) fn error(message: impl Display) {
    write(3, &message.to_string());
}

/// Logs something an operator may want to know.
pub(crate) fn info(message: impl Display) {
    write(6, &message.to_string());
}

fn write(level: u8, message: &str) {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if let Ok(mut kmsg) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record. An error here has nowhere to go.
        let _ = kmsg.write_all(format!("<{level}>monohull-agent: {line}\n").as_bytes());
    }
}
