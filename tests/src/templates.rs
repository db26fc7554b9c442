//! What pods are forked from, as far as it concerns tests.

use std::fs;
use std::io;
use std::process::Command;

use crate::engine::finish;

/// Whether pods are forked here; they are not with `tests/run --cold`.
pub fn are_on() -> bool {
    !fs::read_to_string("/etc/monohull/config.toml").unwrap_or_default().contains("templates = \"off\"")
}

/// Makes the templates, if pods are forked, before anything is counted or measured: the first pod would have them made in
/// the background.
pub fn make() -> io::Result<()> {
    if !are_on() {
        return Ok(());
    }
    let output = finish(Command::new("monohull").args(["template", "build"]));
    if output.status.success() { Ok(()) } else { Err(io::Error::other(output.stderr)) }
}
