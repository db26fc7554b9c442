//! containerd's stream of events.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use monohull_tests::engine::{Engine, finish, unique};
use monohull_tests::watch::Watch;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// What containerd says of a change that the harness makes to learn whether it is being told.
const PROBE: &str = "/namespaces/update";
/// How long a probe's event may take before the next probe.
const PROBE_PATIENCE: Duration = Duration::from_millis(500);
/// How long a client may take to be told.
const PATIENCE: Duration = Duration::from_secs(30);

/// `ctr events`, which ends with containerd.
#[derive(Debug)]
pub(crate) struct Events {
    client: Child,
    stdout: ChildStdout,
    text: String,
}

impl Events {
    /// Subscribes, and makes sure that events arrive: ctr does not tell when they do.
    pub(crate) fn subscribe(engine: &Engine) -> io::Result<Self> {
        let mut events = engine.ctr(&["events"]);
        events.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut client = events.spawn()?;
        let stdout = client.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        fcntl(&stdout, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let mut events = Self { client, stdout, text: String::new() };
        let (watch, begun) = (Watch::new(Vec::new())?, Instant::now());
        while begun.elapsed() < PATIENCE {
            let label = format!("probe={}", unique());
            finish(&mut engine.ctr(&["namespaces", "label", "default", &label]));
            let stdout = events.stdout.as_fd().try_clone_to_owned()?;
            let told = || events.text().contains(PROBE);
            if watch.until(Instant::now() + PROBE_PATIENCE, &[stdout.as_fd()], told)? {
                return Ok(events);
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "no events arrive"))
    }

    /// Readable when there is something new.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }

    /// Whether containerd has said `topic` of something whose `key` is `name`, since the last [`Self::forget`].
    pub(crate) fn tell(&mut self, topic: &str, key: &str, name: &str) -> bool {
        let (topic, field) = (format!(" {topic} "), format!("\"{key}\":\"{name}\""));
        self.text().lines().any(|line| line.contains(&topic) && line.replace(' ', "").contains(&field))
    }

    /// All there has been.
    pub(crate) fn text(&mut self) -> &str {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = self.stdout.read(&mut buffer) {
            self.text.push_str(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()));
        }
        &self.text
    }

    /// Adds what an earlier stream has told.
    pub(crate) fn recall(&mut self, text: &str) {
        self.text.insert_str(0, text);
    }

    /// Forgets all there has been.
    pub(crate) fn forget(&mut self) {
        self.text();
        self.text.clear();
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
