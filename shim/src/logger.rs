//! `binary://` logging programs (containerd `core/runtime/v2/README.md`, "Logging"): they get the output of a process
//! on descriptors 3 and 4, and close descriptor 5 when they are ready. `nerdctl run -d` uses one.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::io::{IoError, Owner, within_limit};
use crate::namespaces::spawn_outside;

/// What such a stdout address begins with.
pub(crate) const SCHEME: &str = "binary://";

/// A running logging program.
#[derive(Debug)]
pub(crate) struct Logger {
    child: Child,
}

/// Starts the program that `uri` names and waits until it is ready. Returns it with the pipes for stdout and stderr; it
/// ends when both are closed.
pub(crate) async fn start(
    uri: &str,
    owner: Owner<'_>,
) -> Result<(Logger, pipe::Sender, pipe::Sender), IoError> {
    let (program, arguments) = parse(uri);
    let run = async {
        let (stdout_read, stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr_read, stderr) = pipe2(OFlag::O_CLOEXEC)?;
        let (ready, ready_write) = pipe2(OFlag::O_CLOEXEC)?;
        let child = spawn(&program, &arguments, owner, vec![stdout_read, stderr_read, ready_write])?;
        // The end of this pipe is the sign, whether the program closes it or dies.
        pipe::Receiver::from_owned_fd(ready)?.read_to_end(&mut Vec::new()).await?;
        Ok((Logger { child }, pipe::Sender::from_owned_fd(stdout)?, pipe::Sender::from_owned_fd(stderr)?))
    };
    run.await.map_err(|e| IoError::Logger(program.clone(), e))
}

fn spawn(
    program: &PathBuf,
    arguments: &[String],
    owner: Owner<'_>,
    passed: Vec<OwnedFd>,
) -> io::Result<Child> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("CONTAINER_ID", owner.container)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    spawn_outside(command, owner.outside, "/".as_ref(), passed)
}

impl Logger {
    /// Waits for the program to write out what it has, or kills one that does not end.
    pub(crate) async fn finish(mut self, container: &str) {
        match within_limit(self.child.wait()).await {
            Some(Ok(status)) if status.success() => {}
            Some(status) => tracing::warn!(container, ?status, "logging program failed"),
            None => {
                tracing::warn!(container, "logging program does not end: it is killed");
                let _ = self.child.kill().await;
            }
        }
    }
}

/// The program and its arguments: each key of the query, followed by its value if it has one.
fn parse(uri: &str) -> (PathBuf, Vec<String>) {
    let rest = uri.strip_prefix(SCHEME).unwrap_or(uri);
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments
            .extend([key, value].into_iter().filter(|part| !part.is_empty()).map(|part| decode(part, true)));
    }
    (decode(path, false).into(), arguments)
}

/// Undoes URL encoding.
fn decode(text: &str, query: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = if first == b'%' { tail.get(..2) } else { None };
        let escaped = digits.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = if escaped.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
        bytes.push(escaped.unwrap_or(if query && first == b'+' { b' ' } else { first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nerdctls_address_is_its_command_line() {
        let (program, arguments) =
            parse("binary:///usr/bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fnerdctl%2F1935");
        assert_eq!(program, PathBuf::from("/usr/bin/nerdctl"));
        assert_eq!(arguments, ["_NERDCTL_INTERNAL_LOGGING", "/var/lib/nerdctl/1935"]);
    }

    #[test]
    fn queries_are_decoded_and_lone_keys_stay_alone() {
        let (program, arguments) = parse("binary:///a%20b+c?one&two=x+y&%2");
        assert_eq!(program, PathBuf::from("/a b+c"));
        assert_eq!(arguments, ["one", "two", "x y", "%2"]);
    }
}
