//! What the owner of a pod has to say: its own log, and what its VMM, its fs server and a dying guest say to it.
//!
//! A line goes to the engine, if that has made a FIFO for it, and is kept for `monohull logs` ([`kept`]), also when the pod has
//! ended. Every line has the same fields, in this order: `time`, `level`, `msg`, those of the event (`step`, `container`,
//! `error`, …), `part`, `pod`.

mod kept;
mod line;
#[cfg(test)]
mod tests;
mod words;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::settings::{LogFormat, LogLevel, Settings};
use kept::Keeper;
pub use kept::{Follower, KeptLog, list, remove_all};
use line::Line;
pub use line::{Part, quoted};
pub(crate) use words::{Words, say};

/// What is said before it is known where to keep it, in bytes; the rest is not kept.
const MAX_EARLY: usize = 16 << 10;

/// Who besides [`kept`] gets the lines.
#[derive(Debug)]
enum Reader {
    Nobody,
    /// An engine, through a FIFO.
    Fifo(File),
    /// A person at standard error, who gets errors and no other lines.
    Person,
}

/// The log of this process. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    part: Part,
    pod: String,
    reader: Reader,
    /// The engine wants debug messages, whatever the settings say.
    debug: bool,
    /// A [`LogLevel`] as a number.
    level: AtomicU8,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    format: LogFormat,
    keeping: Keeping,
}

#[derive(Debug)]
enum Keeping {
    /// Until it is known where.
    Early(Vec<u8>),
    Kept(Keeper),
    /// It can't be kept.
    Lost,
}

impl Log {
    /// The log of a pod's shim, for an engine that has made the FIFO `path`. `debug`: the engine wants debug messages.
    pub fn of_shim(path: &Path, pod: &str, debug: bool) -> Self {
        // Open for reading too: a FIFO without a reader would refuse to open, and later raise SIGPIPE. Non-blocking: a
        // containerd that is away must not stop us; its lines are lost.
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        Self::new(Part::Shim, pod, file.map_or(Reader::Nobody, Reader::Fifo), debug)
    }

    /// The log of `monohull run`, whose user reads its errors.
    pub fn of_run(pod: &str) -> Self {
        Self::new(Part::Run, pod, Reader::Person, false)
    }

    /// A log that nobody gets but [`Self::keep`]'s readers.
    pub fn unread(pod: &str) -> Self {
        Self::new(Part::Shim, pod, Reader::Nobody, false)
    }

    fn new(part: Part, pod: &str, reader: Reader, debug: bool) -> Self {
        let state = State { format: LogFormat::Text, keeping: Keeping::Early(Vec::new()) };
        let level = if debug { LogLevel::Debug } else { LogLevel::Info };
        let (pod, level) = (pod.to_owned(), AtomicU8::new(level as u8));
        Self(Arc::new(Inner { part, pod, reader, debug, level, state: state.into() }))
    }

    /// Takes all events of this process from now on, and its panics with them. The first log of a process to do so stays.
    pub fn install(&self) {
        // It fails only if there is a subscriber already, which is then as good.
        let _ = tracing::subscriber::set_global_default(self.clone());
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }

    /// Follows the settings, and keeps what has been and will be said, for [`list`]. A log that can't be kept is no reason to
    /// fail: it says so, once.
    pub fn keep(&self, settings: &Settings, namespace: &str) {
        if !self.0.debug {
            self.0.level.store(settings.log_level as u8, Ordering::Relaxed);
        }
        let kept = self.keep_in(settings, namespace);
        if let Err(error) = kept {
            tracing::warn!(error = %crate::text::chain(&error), step = "keep log");
        }
    }

    /// Removes the oldest logs of pods that have ended. For the end of this one: no start waits for that.
    pub fn forget_ended(&self) {
        let dir = match &self.0.state().keeping {
            Keeping::Kept(keeper) => keeper.dir().to_owned(),
            Keeping::Early(_) | Keeping::Lost => return,
        };
        // What can't be removed now is left to the next one.
        let _ = kept::forget(&dir);
    }

    fn keep_in(&self, settings: &Settings, namespace: &str) -> io::Result<()> {
        let mut state = self.0.state();
        state.format = settings.log_format;
        let Keeping::Early(early) = &mut state.keeping else { return Ok(()) };
        let early = std::mem::take(early);
        state.keeping = Keeping::Lost;
        let mut keeper = Keeper::open(&settings.state_dir, namespace, &self.0.pod)?;
        keeper.write(&early)?;
        state.keeping = Keeping::Kept(keeper);
        Ok(())
    }
}

/// Notes in the log of a pod whose owner has died what became of it. Without a log nothing is to be done.
pub(crate) fn note_death(state_dir: &Path, namespace: &str, pod: &str) {
    let what =
        "owner has died without cleaning up: its VMM and fs server are killed, its directory is removed";
    let line = Line::new(Level::ERROR, what, Part::Shim, pod).render(LogFormat::Text);
    let _ = kept::append(state_dir, namespace, pod, &line);
    let _ = kept::forget(&state_dir.join(kept::DIR));
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: &Line) {
        if let (Reader::Person, Level::ERROR) = (&self.reader, line.level()) {
            // If standard error is closed there is nobody to tell.
            let _ = writeln!(io::stderr(), "monohull: {}", line.plain());
        }
        let mut state = self.state();
        let text = line.render(state.format);
        if let Reader::Fifo(file) = &self.reader {
            // A full pipe loses the line, as it must: there is nobody to tell.
            let _ = (&*file).write(text.as_bytes());
        }
        match &mut state.keeping {
            Keeping::Early(early) if early.len() + text.len() <= MAX_EARLY => {
                early.extend_from_slice(text.as_bytes());
            }
            Keeping::Kept(keeper) => {
                if keeper.write(text.as_bytes()).is_err() {
                    state.keeping = Keeping::Lost;
                }
            }
            Keeping::Early(_) | Keeping::Lost => {}
        }
    }
}

impl Subscriber for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // The level may change.
        if metadata.is_event() { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = match *metadata.level() {
            Level::ERROR => LogLevel::Error,
            Level::WARN => LogLevel::Warn,
            Level::INFO => LogLevel::Info,
            _ => LogLevel::Debug,
        };
        metadata.is_event() && level as u8 <= self.0.level.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }

    fn event(&self, event: &Event<'_>) {
        self.0.take(&Line::of(event, self.0.part, &self.0.pod, SystemTime::now()));
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
