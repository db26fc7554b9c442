//! One line of a log: logfmt as logrus writes it, which is what containerd's own lines are, or JSON.

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use crate::settings::LogFormat;

/// A pipe takes as much in one piece (pipe(7), PIPE_BUF): longer lines are cut.
pub(super) const LINE_LIMIT: usize = 4096;
/// What is left of a message in JSON that would be too long, in bytes before it is quoted.
const CUT_MESSAGE: usize = 512;

/// Who has said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The shim.
    Shim,
    /// `monohull run`.
    Run,
    /// The VMM, on its standard error: it is about to die.
    Vmm,
    /// The fs server, likewise.
    Fs,
    /// The guest's kernel and agent. Whatever they say, the guest may have said in their name.
    Guest,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Shim, Self::Run, Self::Vmm, Self::Fs, Self::Guest];

    /// As it is in lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Run => "run",
            Self::Vmm => "vmm",
            Self::Fs => "fs",
            Self::Guest => "guest",
        }
    }

    /// Whose line this is, which [`Line::render`] has made.
    pub fn of_line(line: &str) -> Option<Self> {
        // The last two fields, and a pod's id holds neither space nor quote.
        let name = match line.rsplit_once(" part=") {
            Some((_, rest)) => rest.split(' ').next()?,
            None => line.rsplit_once(",\"part\":\"")?.1.split('"').next()?,
        };
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

/// An event as it is to be written.
#[derive(Debug)]
pub(super) struct Line {
    time: SystemTime,
    level: Level,
    message: String,
    fields: Vec<(&'static str, Value)>,
    part: Part,
    pod: String,
}

impl Line {
    /// What `event` says. One with a field `part` is told of that part, others of `part`; without a message, its `step` is that.
    pub(super) fn of(event: &Event<'_>, part: Part, pod: &str, time: SystemTime) -> Self {
        let mut seen = Seen::default();
        event.record(&mut seen);
        let Seen { mut message, mut fields } = seen;
        let mut part = part;
        fields.retain(|(name, value)| match (*name, value.as_str()) {
            ("part", Some(name)) => {
                part = Part::ALL.into_iter().find(|part| part.name() == name).unwrap_or(part);
                false
            }
            // It is that of the log.
            ("pod", _) => false,
            ("step", Some(step)) if message.is_empty() => {
                step.clone_into(&mut message);
                true
            }
            _ => true,
        });
        Self { time, level: *event.metadata().level(), message, fields, part, pod: pod.to_owned() }
    }

    /// A message without fields, of now.
    pub(super) fn new(level: Level, message: &str, part: Part, pod: &str) -> Self {
        let (message, pod) = (message.to_owned(), pod.to_owned());
        Self { time: SystemTime::now(), level, message, fields: Vec::new(), part, pod }
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// For a person who knows which pod it is.
    pub(super) fn plain(&self) -> String {
        let error = self.fields.iter().find(|(name, _)| *name == "error");
        let error = error.map(|(_, error)| format!(": {}", text(error))).unwrap_or_default();
        let part = if self.part == Part::Run { String::new() } else { format!("{}: ", self.part.name()) };
        crate::text::untrusted(&format!("{part}{}{error}", self.message), LINE_LIMIT)
    }

    pub(super) fn render(&self, format: LogFormat) -> String {
        match format {
            LogFormat::Text => self.logfmt(),
            LogFormat::Json => self.json(),
        }
    }

    fn level_name(&self) -> &'static str {
        match self.level {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            _ => "debug",
        }
    }

    fn logfmt(&self) -> String {
        let mut line = format!(
            "time=\"{}\" level={} msg={}",
            rfc3339(self.time),
            self.level_name(),
            quoted(&self.message)
        );
        for (name, value) in &self.fields {
            let _ = write!(line, " {name}={}", quoted(&text(value)));
        }
        let end = format!(" part={} pod={}\n", self.part.name(), quoted(&self.pod));
        cut(&mut line, LINE_LIMIT.saturating_sub(end.len()));
        line + &end
    }

    fn json(&self) -> String {
        let whole = self.object(&self.message, &self.fields);
        if whole.len() <= LINE_LIMIT {
            return whole;
        }
        let mut message = self.message.clone();
        cut(&mut message, CUT_MESSAGE);
        self.object(&message, &[("cut", Value::Bool(true))])
    }

    /// By hand, for the order of the fields: those that have a place of their own are at both ends.
    fn object(&self, message: &str, fields: &[(&'static str, Value)]) -> String {
        let fields: Map<String, Value> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let fields = Value::Object(fields).to_string();
        let fields = fields.trim_start_matches('{').trim_end_matches('}');
        let comma = if fields.is_empty() { "" } else { "," };
        format!(
            "{{\"time\":\"{}\",\"level\":\"{}\",\"msg\":{}{comma}{fields},\"part\":\"{}\",\"pod\":{}}}\n",
            rfc3339(self.time),
            self.level_name(),
            Value::from(message),
            self.part.name(),
            Value::from(self.pod.as_str()),
        )
    }
}

/// Shortens a text to so many bytes.
fn cut(text: &mut String, most: usize) {
    while text.len() > most {
        text.pop();
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Collects an event's fields.
#[derive(Default)]
struct Seen {
    message: String,
    fields: Vec<(&'static str, Value)>,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields.push((field.name(), value.into()));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.into()));
    }
}

/// A value as logrus would write it: quoted where it holds anything unusual, always on one line.
pub fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(plain) { value.to_owned() } else { format!("{value:?}") }
}

/// UTC with microseconds, as in RFC 3339.
pub(super) fn rfc3339(time: SystemTime) -> String {
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
