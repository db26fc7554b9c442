//! A process's standard streams: the paths in containerd's requests on one side, the guest's streams on the other.
//!
//! A path is a FIFO that the client made, a regular file, `file://…` (appended to), `binary://…` (a logging program,
//! [`crate::logger`]) or empty (not wanted). Data is copied with one buffer per stream, and only while there is some.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use monohull_runtime::process::{Stdio, Streams};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::logger::{self, Logger};
use crate::namespaces::Outside;

/// The buffer of a busy stream: what a pipe holds by default (pipe(7)).
const BUFFER: usize = 64 * 1024;
/// A client that takes nothing for so long while its process is being deleted, or a guest that does not close the
/// streams of a process that has ended, is given up. Both are other people's programs.
const STALLED: Duration = Duration::from_secs(10);
/// How many times that, if something is taken each time: a guest may write for ever in the name of a process that has ended.
/// Engines wait two minutes for an answer.
const STALLS: u32 = 6;
/// The end of a process is announced after that of its output, which some clients stop to read then (ctr of containerd
/// 1.6); but not if it takes longer than this: nobody may be reading, or a process that it has left behind still write.
const SETTLED: Duration = Duration::from_millis(500);

/// A stdio path that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IoError {
    /// It can't be opened.
    #[error("cannot open {stream} {path}")]
    Open {
        /// Which of the three.
        stream: &'static str,
        /// The path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It has a scheme that is none of ours.
    #[error("{stream} {uri} is not supported: it is a path, file:// or binary://")]
    Scheme {
        /// Which of the three.
        stream: &'static str,
        /// The address.
        uri: String,
    },
    /// The logging program does not run.
    #[error("cannot start the logging program {0}")]
    Logger(PathBuf, #[source] io::Error),
}

/// The stdio fields of a Create or Exec request, which State repeats.
#[derive(Clone, Debug, Default)]
pub(crate) struct StdioPaths {
    /// One terminal: stdin and stdout, no stderr.
    pub(crate) terminal: bool,
    /// Empty or a FIFO.
    pub(crate) stdin: String,
    /// Empty, a path or an address.
    pub(crate) stdout: String,
    /// Likewise.
    pub(crate) stderr: String,
}

impl StdioPaths {
    /// Which streams the process shall have.
    pub(crate) fn wanted(&self, size: Option<(u16, u16)>) -> Stdio {
        let logged = self.stdout.starts_with(logger::SCHEME);
        Stdio {
            terminal: self.terminal,
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.terminal && (logged || !self.stderr.is_empty()),
            size,
        }
    }
}

/// For whom a logging program is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// The container's id.
    pub(crate) container: &'a str,
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
    /// Where programs of the host run.
    pub(crate) outside: Option<&'a Outside>,
}

/// The opened paths of a process that does not exist yet. Dropping it closes them.
#[derive(Debug)]
pub(crate) struct Endpoints {
    stdin: Option<PathBuf>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    logger: Option<Logger>,
}

/// Where output goes.
struct Sink {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    reader: ReaderHold,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("reader", &self.reader).finish_non_exhaustive()
    }
}

/// A reader of our own on an output FIFO: containerd may close its end and come back after a restart. Once that can't
/// matter any more it is released, so that a FIFO that nobody reads breaks instead of blocking.
#[derive(Clone, Debug, Default)]
struct ReaderHold(Arc<Mutex<Option<File>>>);

impl ReaderHold {
    fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Endpoints {
    /// Opens what a process's paths name. Waits for nobody but a logging program's readiness.
    pub(crate) async fn open(paths: &StdioPaths, owner: Owner<'_>) -> Result<Self, IoError> {
        let stdin = if paths.stdin.is_empty() { None } else { Some(find_stdin(Path::new(&paths.stdin))?) };
        if paths.stdout.starts_with(logger::SCHEME) {
            let (logger, stdout, stderr) = logger::start(&paths.stdout, owner).await?;
            let sink = |writer| Some(Sink { writer: Box::new(writer), reader: ReaderHold::default() });
            let stderr = if paths.terminal { None } else { sink(stderr) };
            return Ok(Self { stdin, stdout: sink(stdout), stderr, logger: Some(logger) });
        }
        let stdout = open_output("stdout", &paths.stdout)?;
        let stderr = if paths.terminal { None } else { open_output("stderr", &paths.stderr)? };
        Ok(Self { stdin, stdout, stderr, logger: None })
    }

    /// Joins them with the streams of the process, now that it exists.
    pub(crate) fn connect(self, streams: Streams) -> Copies {
        let mut copies = Copies {
            stdin: None,
            outputs: Vec::new(),
            readers: Vec::new(),
            progress: Arc::default(),
            logger: self.logger,
        };
        if let (Some(path), Some(stream)) = (self.stdin, streams.stdin) {
            copies.stdin = Some(Input::Waiting { path, stream, closed: false });
        }
        for (sink, stream) in [(self.stdout, streams.stdout), (self.stderr, streams.stderr)] {
            if let (Some(sink), Some(stream)) = (sink, stream) {
                copies.readers.push(sink.reader.clone());
                let open = OpenOutput::new(&copies.progress);
                copies.outputs.push(tokio::spawn(copy_output(stream, sink, open)));
            }
        }
        copies
    }
}

/// Looks for a FIFO without opening it.
fn find_stdin(path: &Path) -> Result<PathBuf, IoError> {
    let found = fs::metadata(path).and_then(|metadata| match metadata.file_type().is_fifo() {
        true => Ok(path.to_owned()),
        false => Err(io::Error::other("not a FIFO")),
    });
    found.map_err(|source| IoError::Open { stream: "stdin", path: path.into(), source })
}

fn open_output(stream: &'static str, uri: &str) -> Result<Option<Sink>, IoError> {
    let opened = |path: &Path, result: io::Result<Sink>| {
        result.map(Some).map_err(|source| IoError::Open { stream, path: path.into(), source })
    };
    match uri.split_once("://") {
        None if uri.is_empty() => Ok(None),
        None | Some(("fifo", _)) => {
            let path = Path::new(uri.strip_prefix("fifo://").unwrap_or(uri));
            opened(path, open_path(path))
        }
        Some(("file", path)) => opened(Path::new(path), open_log_file(Path::new(path))),
        Some(_) => Err(IoError::Scheme { stream, uri: uri.into() }),
    }
}

fn open_path(path: &Path) -> io::Result<Sink> {
    if !fs::metadata(path)?.file_type().is_fifo() {
        return Ok(file_sink(OpenOptions::new().append(true).open(path)?));
    }
    // The reader first: without any, a non-blocking open for writing fails.
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let writer = pipe::OpenOptions::new().open_sender(path)?;
    Ok(Sink { writer: Box::new(writer), reader: ReaderHold(Arc::new(Mutex::new(Some(reader)))) })
}

fn open_log_file(path: &Path) -> io::Result<Sink> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).map(file_sink)
}

fn file_sink(file: File) -> Sink {
    Sink { writer: Box::new(tokio::fs::File::from_std(file)), reader: ReaderHold::default() }
}

/// The running copies of one process.
#[derive(Debug)]
pub(crate) struct Copies {
    stdin: Option<Input>,
    outputs: Vec<JoinHandle<()>>,
    readers: Vec<ReaderHold>,
    progress: Arc<Progress>,
    logger: Option<Logger>,
}

/// How far a process's output has come.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Bytes that have reached their sinks.
    written: AtomicU64,
    /// Streams that have not ended.
    open: watch::Sender<usize>,
}

impl Progress {
    /// Waits for the end of all output, for a moment.
    pub(crate) async fn settle(&self) {
        let _ = timeout(SETTLED, self.ended()).await;
    }

    /// Waits for the end of all output as long as it moves, within reason. Returns whether it has ended.
    async fn delivered(&self) -> bool {
        for _ in 0..STALLS {
            let before = self.written.load(Ordering::Relaxed);
            if within_limit(self.ended()).await.is_some() {
                return true;
            }
            if self.written.load(Ordering::Relaxed) == before {
                return false;
            }
        }
        false
    }

    async fn ended(&self) {
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }
}

/// One stream that has not ended.
struct OpenOutput(Arc<Progress>);

impl OpenOutput {
    fn new(progress: &Arc<Progress>) -> Self {
        progress.open.send_modify(|open| *open += 1);
        Self(progress.clone())
    }
}

impl Drop for OpenOutput {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// A process's input.
#[derive(Debug)]
enum Input {
    /// Nobody has been told that it is wanted.
    Waiting {
        path: PathBuf,
        stream: UnixStream,
        /// The engine has announced its end already.
        closed: bool,
    },
    Copied(StdinCopy),
}

#[derive(Debug)]
struct StdinCopy {
    task: JoinHandle<()>,
    /// A writer of our own: the end of input is when the engine says so (CloseIO), not when a client detaches.
    writer: Option<pipe::Sender>,
}

impl StdinCopy {
    fn start(path: &Path, stream: UnixStream, closed: bool) -> io::Result<Self> {
        let fifo = pipe::OpenOptions::new().open_receiver(path)?;
        // A FIFO ends when its last writer closes, so one must have been there.
        let writer = pipe::OpenOptions::new().open_sender(path)?;
        Ok(Self {
            task: tokio::spawn(copy_input(fifo, stream)),
            writer: if closed { None } else { Some(writer) },
        })
    }
}

impl Drop for StdinCopy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Copies {
    /// Lets the process see the end of its input once all clients have closed theirs too. Can be repeated.
    pub(crate) fn close_stdin(&mut self) {
        match &mut self.stdin {
            None => {}
            Some(Input::Waiting { closed, .. }) => *closed = true,
            Some(Input::Copied(copy)) => copy.writer = None,
        }
    }

    /// Opens the input's FIFO, which lets its clients write. Not before the engine knows the process: a client with
    /// little to say closes at once, and its CloseIO must find the process.
    pub(crate) fn open_stdin(&mut self) {
        let Some(Input::Waiting { path, stream, closed }) =
            self.stdin.take_if(|stdin| matches!(stdin, Input::Waiting { .. }))
        else {
            return;
        };
        match StdinCopy::start(&path, stream, closed) {
            Ok(copy) => self.stdin = Some(Input::Copied(copy)),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "input can't be opened: it is empty");
            }
        }
    }

    /// How far the output has come, from now on.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The process has ended: nobody will read its input.
    pub(crate) fn process_ended(&mut self) {
        self.stdin = None;
    }

    /// Waits until all output of an ended process has reached its sinks, and the logging program has ended.
    pub(crate) async fn finish(mut self, container: &str) {
        self.stdin = None;
        self.readers.iter().for_each(ReaderHold::release);
        if !self.progress.delivered().await {
            tracing::warn!(container, "output is given up: it does not move, or does not end");
            self.outputs.iter().for_each(JoinHandle::abort);
        }
        if let Some(logger) = self.logger.take() {
            logger.finish(container).await;
        }
    }
}

async fn copy_input(fifo: pipe::Receiver, mut stream: UnixStream) {
    while fifo.readable().await.is_ok() {
        // Made anew for each burst: a stream that waits costs no buffer.
        let mut buffer = vec![0; BUFFER];
        loop {
            match fifo.try_read(&mut buffer) {
                Ok(0) => {
                    let _ = stream.shutdown().await;
                    return;
                }
                Ok(n) => {
                    // An error means that the process does not read any more.
                    if stream.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
    }
}

async fn copy_output(stream: UnixStream, mut sink: Sink, open: OpenOutput) {
    if let Err(error) = try_copy_output(stream, &mut sink, &open.0.written).await {
        // Dropping the stream tells the process, as a broken pipe would.
        tracing::warn!(%error, "output can't be written");
    }
    let _ = sink.writer.flush().await;
    sink.reader.release();
    drop(sink);
    drop(open);
}

async fn try_copy_output(stream: UnixStream, sink: &mut Sink, written: &AtomicU64) -> io::Result<()> {
    while stream.readable().await.is_ok() {
        let mut buffer = vec![0; BUFFER];
        loop {
            match stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    sink.writer.write_all(buffer.get(..n).unwrap_or_default()).await?;
                    written.fetch_add(u64::try_from(n).unwrap_or(0), Ordering::Relaxed);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    // The VM has gone: its output ends here.
                    tracing::debug!(%error, "output ends without its end");
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Bounds waiting for a program of somebody else.
pub(crate) async fn within_limit<T>(future: impl Future<Output = T>) -> Option<T> {
    timeout(STALLED, future).await.ok()
}

#[cfg(test)]
mod tests;
