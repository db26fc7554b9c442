//! Commands that are run to their end.

use std::io::Write as _;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its status.
    pub status: ExitStatus,
    /// Standard output, raw.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The exit code; 255 when a signal ended the command.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(255)
    }
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Output {
    finish_with_input(command.stdin(Stdio::null()), Vec::new())
}

/// Runs a command to its end with `input` as its standard input.
pub fn finish_with_input(command: &mut Command, input: Vec<u8>) -> Output {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => panic!("cannot run {command:?}: {error}"),
    };
    let writer = child.stdin.take().map(|mut stdin| thread::spawn(move || stdin.write_all(&input)));
    let output = match child.wait_with_output() {
        Ok(output) => output,
        Err(error) => panic!("cannot wait for {command:?}: {error}"),
    };
    if let Some(writer) = writer {
        // A container that does not read its input closes the pipe: that is its right.
        let _ = writer.join();
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Output { status: output.status, stdout: output.stdout, stderr }
}
