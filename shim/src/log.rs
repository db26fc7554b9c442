//! Log lines for containerd: logfmt text in the bundle's `log` FIFO, which containerd copies to its own log.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// A pipe takes as much in one piece (pipe(7), PIPE_BUF): longer lines are cut.
const LINE_LIMIT: usize = 4096;

/// Sends this process's log to `path` from now on, and panics with it. Without such a file nothing is logged: CRI-O
/// makes none.
pub(crate) fn init(path: &Path, pod: &str, debug: bool) {
    let level = if debug { Level::DEBUG } else { Level::INFO };
    // Open for reading too: a FIFO without a reader would refuse to open, and later raise SIGPIPE. Non-blocking: a
    // containerd that is away must not stop us; its lines are lost.
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
    if let Ok(file) = file {
        // It fails only if there is a subscriber already, which is then as good.
        let _ = tracing::subscriber::set_global_default(Logfmt { file, pod: pod.to_owned(), level });
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// A subscriber that writes events and ignores spans.
struct Logfmt {
    file: File,
    pod: String,
    level: Level,
}

impl Subscriber for Logfmt {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.into())
    }

    fn event(&self, event: &Event<'_>) {
        let line = format_line(event, &self.pod, SystemTime::now());
        // A full pipe loses the line, as it must: there is nobody to tell.
        let _ = (&self.file).write(line.as_bytes());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn format_line(event: &Event<'_>, pod: &str, now: SystemTime) -> String {
    let level = match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    };
    let mut fields = Fields::default();
    event.record(&mut fields);
    let mut line = format!("time=\"{}\" level={level} msg={}", rfc3339(now), quoted(&fields.message));
    line.push_str(&fields.others);
    let _ = write!(line, " pod={}", quoted(pod));
    while line.len() >= LINE_LIMIT {
        line.pop();
    }
    line.push('\n');
    line
}

/// Collects an event's fields.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            let _ = write!(self.others, " {}={}", field.name(), quoted(value));
        }
    }
}

/// A value as logrus would write it: quoted where it holds anything unusual, always on one line.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("{value:?}") }
}

/// UTC with microseconds, as in RFC 3339.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Year, month and day of a count of days since 1970-01-01 (the "civil from days" algorithm: years begin in March, so
/// that the leap day comes last, and 400 of them have 146,097 days).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn times_are_rfc3339() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_795_372_799), "2026-11-22T18:39:59.000000Z");
    }

    #[test]
    fn values_are_quoted_where_logrus_would() {
        assert_eq!(quoted("/run/a-b_c"), "/run/a-b_c");
        assert_eq!(quoted("v1.2"), "v1.2");
        assert_eq!(quoted("two\nlines"), r#""two\nlines""#);
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn lines_reach_the_fifo_and_a_full_one_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut reader = open().unwrap();
        let log = Logfmt { file: open().unwrap(), pod: "p1".into(), level: Level::INFO };
        tracing::subscriber::with_default(log, || {
            tracing::info!(step = "agent ready", us = 7, "pod started");
            tracing::debug!("not at this level");
        });
        let mut buffer = [0; 8192];
        let n = reader.read(&mut buffer).unwrap();
        let line = std::str::from_utf8(&buffer[..n]).unwrap();
        assert!(line.starts_with("time=\"20"), "{line}");
        assert!(
            line.ends_with(" level=info msg=\"pod started\" step=\"agent ready\" us=7 pod=p1\n"),
            "{line}"
        );

        let log = Logfmt { file: open().unwrap(), pod: "p1".into(), level: Level::INFO };
        tracing::subscriber::with_default(log, || (0..2000).for_each(|_| tracing::info!("{:1000}", "x")));
    }
}
