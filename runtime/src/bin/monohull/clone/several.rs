//! Several copies: each is a process of its own, as one pod's VM is to die with its owner and with nobody else.

use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::Arguments;
use crate::failure::Failure;
use crate::prepare::random_name;
use crate::session::{Event, Signals, killed_by};

/// Starts the copies and stays to the end of the last one.
pub(super) fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let base = match &arguments.name {
        Some(name) => name.clone(),
        None => random_name().map_err(|e| Failure::of("cannot make a name", &e))?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?;
        let (mut copies, mut pids) = (JoinSet::new(), Vec::new());
        for number in 1..=arguments.count {
            let name = format!("{base}-{number}");
            let child = start(arguments, &name).map_err(|e| Failure::of("cannot start a copy", &e))?;
            pids.extend(child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw));
            copies.spawn(async move { (number, attend(child, &name).await) });
        }
        let mut codes = Vec::new();
        loop {
            tokio::select! {
                ended = copies.join_next() => match ended {
                    Some(Ok(ended)) => codes.push(ended),
                    Some(Err(error)) => return Err(Failure::of("cannot wait for a copy", &error)),
                    None => break,
                },
                event = signals.next() => if let Event::Terminating(number) = event {
                    pass_on(number, &pids);
                },
            }
        }
        codes.sort_unstable();
        Ok(codes.into_iter().map(|(_, code)| code).find(|code| *code != 0).unwrap_or(0))
    })
}

fn start(arguments: &Arguments, name: &str) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["clone", "--interactive=false", "--name", name]);
    command.args(["--parent", &std::process::id().to_string()]);
    if let Some(container) = &arguments.container {
        command.args(["--container", container]);
    }
    if arguments.timeline {
        command.arg("--timeline");
    }
    command.args(["--", &arguments.snapshot]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn()
}

/// A terminal has sent its signal to all, who may then get it twice.
fn pass_on(number: i32, pids: &[Pid]) {
    let Ok(signal) = Signal::try_from(number) else { return };
    for pid in pids {
        // One that has ended needs none. Its number is nobody else's before all are waited for, or hardly.
        let _ = kill(*pid, signal);
    }
}

/// Passes on what a copy says, and returns its exit code.
async fn attend(mut child: Child, name: &str) -> u8 {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let streams = async {
        tokio::join!(
            async {
                if let Some(from) = stdout {
                    label(from, tokio::io::stdout(), name).await;
                }
            },
            async {
                if let Some(from) = stderr {
                    label(from, tokio::io::stderr(), name).await;
                }
            },
        );
    };
    streams.await;
    child.wait().await.map_or(super::OWN_FAILURE, code)
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, signal) => signal.map_or(super::OWN_FAILURE, killed_by),
    }
}

/// Copies line by line, each with the copy's name before it.
async fn label(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, name: &str) {
    /// A line that is longer becomes several.
    const LONGEST: u64 = 64 << 10;
    let mut from = BufReader::new(from);
    loop {
        let mut line = format!("{name}: ").into_bytes();
        let before = line.len();
        let read = tokio::io::AsyncReadExt::take(&mut from, LONGEST).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return;
        }
        if line.len() == before || line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // In one piece: others write there, too.
        if to.write_all(&line).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_line_has_its_copys_name() {
        let mut to = Vec::new();
        label(b"one\n\nlast without an end".as_slice(), &mut to, "w-1").await;
        assert_eq!(String::from_utf8(to).unwrap(), "w-1: one\nw-1: \nw-1: last without an end\n");
    }
}
