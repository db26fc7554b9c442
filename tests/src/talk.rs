//! Pods of `monohull run` and `monohull clone` that a test speaks to.

// A test that can't go on ends with the reason.
#![allow(clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::engine::in_container;

/// A script that executes lines of its input, and counts them in a variable of its own.
pub const SHELL: &str = "n=0; while read -r line; do n=$((n+1)); eval \"$line\"; echo \"$n end\"; done; echo \"bye $n $(hostname)\"; exit 3";

/// A container's files: busybox, and the program that does what that can't.
pub fn tree() -> TempDir {
    let root = tempfile::tempdir().expect("a directory");
    for directory in ["bin", "proc", "sys", "dev", "etc", "tmp"] {
        fs::create_dir(root.path().join(directory)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox on the host");
    fs::copy(in_container(), root.path().join("bin/in-container")).expect("a program of the tests");
    for name in ["sh", "cat", "hostname", "ls", "date", "seq", "true"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name)).expect("a link");
    }
    root
}

/// A pod that a test speaks to.
#[derive(Debug)]
pub struct Pod {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Pod {
    fn start(arguments: &[&str], settings: Option<&str>) -> Self {
        let mut command = Command::new("monohull");
        command.args(arguments);
        if let Some(settings) = settings {
            command.env("MONOHULL_CONFIG", settings);
        }
        Self::of(command)
    }

    /// The pod of a command that stays with it.
    pub fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a command");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { input: process.stdin.take(), process, output }
    }

    /// `monohull run` of a shell script.
    pub fn run(name: &str, options: &[&str], tree: &Path, script: &str) -> Self {
        Self::run_with_settings(name, options, tree, script, None)
    }

    /// [`Self::run`] with another file of settings.
    pub fn run_with_settings(
        name: &str,
        options: &[&str],
        tree: &Path,
        script: &str,
        settings: Option<&str>,
    ) -> Self {
        let tree = tree.to_string_lossy();
        let run = ["run", "--name", name, "--rootfs", &tree];
        Self::start(&[&run, options, &["--", "/bin/busybox", "sh", "-c", script]].concat(), settings)
    }

    /// `monohull clone`.
    pub fn copy(snapshot: &str, name: &str) -> Self {
        Self::start(&["clone", snapshot, "--name", name], None)
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output");
        assert!(line.ends_with('\n'), "it has ended after {line:?}");
        line.trim_end().to_owned()
    }

    /// Has [`SHELL`] do something. Returns the number of the command, and what it has printed.
    pub fn ask(&mut self, command: &str) -> (u32, Vec<String>) {
        writeln!(self.input.as_mut().expect("its input"), "{command}").expect("its input");
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            match line.strip_suffix(" end") {
                Some(number) => return (number.parse().expect("a number"), lines),
                None => lines.push(line),
            }
        }
    }

    /// What a command of [`SHELL`] prints.
    pub fn says(&mut self, command: &str) -> String {
        self.ask(command).1.join(" ")
    }

    /// Ends its input, and with that [`SHELL`]. Returns its last line.
    pub fn end(mut self) -> String {
        self.input = None;
        let last = self.line();
        assert_eq!(self.process.wait().expect("its end").code(), Some(3), "{last}");
        last
    }

    /// Reads nothing more, which ends a process that minds.
    pub fn hang_up(self) {
        let Self { mut process, input, output } = self;
        drop((input, output));
        process.wait().expect("its end");
    }
}
