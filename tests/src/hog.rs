//! A program in a container that uses memory and frees it (`in-container use`).

use std::io::{self, BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use crate::engine::Engine;

/// The running program. It ends with its input.
#[derive(Debug)]
pub struct Hog {
    client: Child,
    input: ChildStdin,
    said: Lines<BufReader<ChildStdout>>,
}

impl Hog {
    /// Starts it in container `id`, where `in-container` is `program`, for so many MiB.
    pub fn start(engine: &Engine, id: &str, program: &str, mib: u32) -> io::Result<Self> {
        let mut command = engine.exec_command(id, &[program, "use", &mib.to_string()]);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (client.stdin.take(), client.stdout.take()) else {
            return Err(io::Error::other("no standard input or output"));
        };
        let mut hog = Self { client, input, said: BufReader::new(output).lines() };
        hog.hear("ready")?;
        Ok(hog)
    }

    /// Has it use the memory.
    pub fn take(&mut self) -> io::Result<()> {
        writeln!(self.input)?;
        self.hear("used")
    }

    /// Has it free the memory.
    pub fn free(&mut self) -> io::Result<()> {
        writeln!(self.input)?;
        self.hear("freed")
    }

    /// Ends it.
    pub fn end(self) -> io::Result<()> {
        let Self { mut client, input, said } = self;
        drop((input, said));
        client.wait().map(drop)
    }

    fn hear(&mut self, word: &str) -> io::Result<()> {
        match self.said.next().transpose()? {
            Some(line) if line == word => Ok(()),
            other => Err(io::Error::other(format!("{other:?} in place of {word:?}"))),
        }
    }
}
